"""What one HTTP request costs the client: our transport, httpx's API over it, and httpx's own.

    python -m rollwave.benchmarks.http_transport

Each client keeps 32, 256 or 1,000 connections busy with small POST requests to the
stub server, which runs in a process of its own. The figure is the CPU of the client
process for one request, the opening of connections included. Requests that fail are
counted: past some hundred connections httpx's own pool closes some that are in use.

Not here: what the engine adds (`engine`) and how others compare (`throughput`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import httpx
import trio

from ..cli.output import Output
from ..engine.http_transport import TrioTransport
from .report import Spread, write
from .stub_server import stub_server

CONNECTIONS: Final = (32, 256, 1000)
BODY: Final = b'{"model": "stub", "messages": [{"role": "user", "content": "%s"}]}' % (
    b"go on " * 60
)
HEADERS: Final = {"content-type": "application/json"}
TIMEOUT: Final = httpx.Timeout(600.0)
UNLIMITED: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None)

Send = Callable[[], Awaitable[None]]


async def _ours(url: str, measure: Callable[[Send], Awaitable[None]]) -> None:
    target = httpx.URL(url)
    extensions = {"timeout": TIMEOUT.as_dict()}

    async with TrioTransport() as transport:

        async def send() -> None:
            request = httpx.Request(
                "POST", target, headers=HEADERS, content=BODY, extensions=extensions
            )
            response = await transport.handle_async_request(request)
            await response.aread()
            assert response.status_code == 200

        await measure(send)


async def _client(
    client: httpx.AsyncClient, url: str, measure: Callable[[Send], Awaitable[None]]
) -> None:
    async with client:

        async def send() -> None:
            response = await client.post(url, content=BODY, headers=HEADERS)
            assert response.status_code == 200

        await measure(send)


async def _api(url: str, measure: Callable[[Send], Awaitable[None]]) -> None:
    await _client(httpx.AsyncClient(transport=TrioTransport(), timeout=TIMEOUT), url, measure)


async def _httpx(url: str, measure: Callable[[Send], Awaitable[None]]) -> None:
    await _client(httpx.AsyncClient(limits=UNLIMITED, timeout=TIMEOUT), url, measure)


CLIENTS: Final = {
    "TrioTransport": _ours,
    "httpx.AsyncClient over TrioTransport": _api,
    "httpx.AsyncClient": _httpx,
}


def cost(name: str, url: str, connections: int, requests: int) -> tuple[float, int]:
    """Client CPU of one request in µs, over about `requests` of them, and how many failed."""
    each = max(requests // connections, 3)
    used = 0.0
    failed = 0

    async def measure(send: Send) -> None:
        nonlocal used

        async def worker() -> None:
            nonlocal failed
            for _ in range(each):
                try:
                    await send()
                except httpx.TransportError:
                    failed += 1

        started = time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(worker)
        used = time.process_time() - started

    trio.run(CLIENTS[name], url, measure)
    return used / (connections * each) * 1e6, failed


def main() -> None:
    """Measure, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description="Client CPU of one HTTP request.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3000, help="of one measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/http_transport.json"))
    options = parser.parse_args()
    values: dict[tuple[str, int], list[float]] = {}
    failures = dict.fromkeys(CLIENTS, 0)
    with stub_server(5) as url:
        for _ in range(options.repeats):  # interleaved: a busy moment hits all alike
            for name in CLIENTS:
                for connections in CONNECTIONS:
                    figure, failed = cost(
                        name, f"{url}/v1/chat/completions", connections, options.requests
                    )
                    values.setdefault((name, connections), []).append(figure)
                    failures[name] += failed
    spreads = {key: Spread.of(figures) for key, figures in values.items()}
    Output().table(
        ["client CPU a request, µs", *(f"{n} connections" for n in CONNECTIONS), "failed"],
        [[name, *(str(spreads[name, n]) for n in CONNECTIONS), failures[name]] for name in CLIENTS],
    )
    figures = {name: {str(n): asdict(spreads[name, n]) for n in CONNECTIONS} for name in CLIENTS}
    write(options.out, {"microseconds_per_request": figures, "failed": failures})


if __name__ == "__main__":
    main()

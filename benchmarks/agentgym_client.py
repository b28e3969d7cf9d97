"""What one step costs our client of AgentGym's servers, and over httpx as it comes.

    python -m rollwave.benchmarks.agentgym_client

Sessions on a server of ours (`rollwave serve`, in a process of its own) all step at once,
as in a rollout without a model. The figure is the CPU of the client's process for one
request: building it, httpx's API, the transport, reading and checking the answer.

* `AgentGymHost`: as it comes, httpx's API over our own transport;
* `… over httpx's transport`: the same client with `httpx.AsyncHTTPTransport` put in,
  which is what `httpx.AsyncClient()` has, here without limits on its connections;
* `open_batches`: the batched wire on four connections, for a step.

Not here: the transport alone (`http_transport`), the server (`agentgym_server`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import httpx
import trio

from ..cli.output import Output
from ..engine.errors import EnvironmentFault
from ..envs.agentgym.batch_client import open_batches
from ..envs.agentgym.client import AgentGymHost
from ..envs.base import Task
from ..envs.hosting import Host
from .report import Spread, write

SESSIONS: Final = (32, 256, 1000)
ENV: Final = "textcraft-v1"
UNLIMITED: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None)
BAR: Final = 500.0
"""Microseconds a request, at 1,000 sessions."""

Measure = Callable[[Host], Awaitable[None]]


async def _ours(url: str, measure: Measure) -> None:
    async with AgentGymHost(url, "textcraft") as host:
        await measure(host)


async def _httpx(url: str, measure: Measure) -> None:
    transport = httpx.AsyncHTTPTransport(limits=UNLIMITED)
    async with AgentGymHost(url, "textcraft", transport=transport) as host:
        await measure(host)


async def _batched(url: str, measure: Measure) -> None:
    async with open_batches(url, rebuild=False) as host:
        await measure(host)


CLIENTS: Final = {
    "AgentGymHost": _ours,
    "AgentGymHost over httpx's transport": _httpx,
    "open_batches": _batched,
}


@contextmanager
def served() -> Iterator[str]:
    """Serve the world in a process of its own; gives the address."""
    command = [sys.executable, "-m", "rollwave", "serve", "--env", ENV, "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.communicate(timeout=30)


def cost(name: str, url: str, sessions: int, requests: int) -> tuple[float, float, int]:
    """Client CPU of one step in µs, steps a second, and how many steps failed."""
    each = max(requests // sessions, 3)
    used = seconds = 0.0
    failed = 0

    async def measure(host: Host) -> None:
        nonlocal used, seconds, failed
        opened = [await host.open() for _ in range(sessions)]
        for number, session in enumerate(opened):
            await session.reset(Task(ENV, number % 500), 0)

        async def play(number: int) -> None:
            nonlocal failed
            for turn in range(each):
                try:
                    await opened[number].step("inventory" if turn % 2 else "get 1 oak log")
                except EnvironmentFault:
                    failed += 1

        cpu, wall = time.process_time(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(sessions):
                nursery.start_soon(play, number)
        used, seconds = time.process_time() - cpu, time.perf_counter() - wall
        for session in opened:
            try:
                await session.close()
            except EnvironmentFault:
                failed += 1

    trio.run(CLIENTS[name], url, measure)
    steps = sessions * each
    return used / steps * 1e6, steps / seconds, failed


def main() -> None:
    """Measure, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description="Client CPU of one step on a server.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6000, help="of one measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/agentgym_client.json"))
    options = parser.parse_args()
    cpu: dict[tuple[str, int], list[float]] = {}
    rate: dict[tuple[str, int], list[float]] = {}
    failures = dict.fromkeys(CLIENTS, 0)
    with served() as url:
        for _ in range(options.repeats):  # interleaved: a busy moment hits all alike
            for name in CLIENTS:
                for sessions in SESSIONS:
                    figure, steps, failed = cost(name, url, sessions, options.requests)
                    cpu.setdefault((name, sessions), []).append(figure)
                    rate.setdefault((name, sessions), []).append(steps)
                    failures[name] += failed
    spreads = {key: Spread.of(figures) for key, figures in cpu.items()}
    rates = {key: Spread.of(figures) for key, figures in rate.items()}
    Output().table(
        ["client CPU a step, µs", *(f"{n} sessions" for n in SESSIONS), "failed"],
        [[name, *(str(spreads[name, n]) for n in SESSIONS), failures[name]] for name in CLIENTS],
    )
    Output().table(
        ["steps/s", *(f"{n} sessions" for n in SESSIONS)],
        [[name, *(str(rates[name, n]) for n in SESSIONS)] for name in CLIENTS],
    )
    reached = spreads["AgentGymHost", SESSIONS[-1]].median <= BAR
    Output().text(f"at most {BAR:g} µs at 1,000 sessions: {'reached' if reached else 'missed'}")
    figures = {
        name: {
            str(n): {"cpu_us": asdict(spreads[name, n]), "steps_per_second": asdict(rates[name, n])}
            for n in SESSIONS
        }
        for name in CLIENTS
    }
    write(options.out, {"clients": figures, "failed": failures})


if __name__ == "__main__":
    main()

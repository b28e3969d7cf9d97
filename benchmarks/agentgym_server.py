"""Our TextCraft server and AgentGym's, under the same raw client, in one run.

    python -m rollwave.benchmarks.agentgym_server --agentgym CHECKOUT

CHECKOUT is a copy of AgentGym's repository; its server runs unmodified, from a virtual
environment of its own (`.bench/agentgym`: fastapi, uvicorn, gymnasium). The client is an
asyncio protocol that splits answers by hand (about 50 µs a step), in a process of its
own. 256 and 1,000 sessions step at once, each on its own connection, after all have been
opened and reset; the sides take turns, so that a busy moment hits both alike. With
`--hypercorn` a third side, an application that does nothing under Hypercorn's trio
worker, shows what its connections alone cost.

Not here: the cost of our client (`agentgym_client`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ..cli.output import Output
from .report import Spread, write

SESSIONS: Final = (256, 1000)
ACTIONS: Final = ("get 1 oak log", "inventory")
PACKAGES: Final = ("fastapi", "uvicorn", "gymnasium")
HYPERCORN: Final = "Hypercorn, empty"
OPENING: Final = 64
"""Sessions that are opened at a time."""
SECONDS: Final = 300.0
"""Deadline of one measurement."""

_LAUNCH: Final = "import agentenv_textcraft; agentenv_textcraft.launch()"
_EMPTY: Final = """
import json, sys, trio
from hypercorn.config import Config
from hypercorn.trio import serve
ANSWER = json.dumps({"id": 0, "observation": "x", "reward": 0, "done": False}).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
config = Config()
config.bind, config.backlog = [f"127.0.0.1:{sys.argv[2]}"], 4096
config.keep_alive_timeout = 75
trio.run(serve, app, config)
"""


class Client(asyncio.Protocol):
    """One keep-alive connection: one request at a time, opened again when the server hung up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:") + 15
        size = end + 4 + int(head[at:].partition(b"\r\n")[0])
        if len(self._buffer) < size or self._answer is None:
            return
        body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
        if head[9:12] == b"200":
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(f"{head[:40]!r}: {body[:200]!r}"))

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Send one request and read its answer; once more if the server had just hung up."""
        try:
            return await self._post(path, body)
        except ConnectionError:
            return await self._post(path, body)

    async def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if self._transport is None:  # uvicorn closes what is idle for five seconds
            self._buffer = b""
            await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        assert self._transport is not None
        self._answer = loop.create_future()
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self._transport.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        answer: dict[str, Any] = json.loads(await self._answer)
        return answer


async def load(port: int, sessions: int, steps: int) -> dict[str, float]:
    """Open the sessions, then step them all at once; figures of the steps."""
    opening = asyncio.Semaphore(OPENING)

    async def begin(number: int) -> tuple[Client, int]:
        async with opening:
            client = Client(port)
            id = (await client.post("/create", {}))["id"]
            await client.post("/reset", {"id": id, "data_idx": number})
            return client, id

    clients = await asyncio.gather(*(begin(number) for number in range(sessions)))
    waits: list[float] = []

    async def play(client: Client, id: int) -> None:
        for number in range(steps):
            before = time.perf_counter()
            await client.post("/step", {"id": id, "action": ACTIONS[number % len(ACTIONS)]})
            waits.append(time.perf_counter() - before)

    for client, id in clients:  # connections that were closed meanwhile are opened here
        await client.post("/step", {"id": id, "action": "inventory"})
    started = time.perf_counter()
    await asyncio.gather(*(play(client, id) for client, id in clients))
    seconds = time.perf_counter() - started
    waits.sort()
    return {
        "steps_per_second": sessions * steps / seconds,
        "p50_ms": waits[len(waits) // 2] * 1e3,
        "p99_ms": waits[len(waits) * 99 // 100] * 1e3,
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(process: int) -> float:
    """CPU that a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[int]:
    """Run a server until the block ends; gives its process id once it listens."""
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                assert process.stderr is not None
                raise SystemExit(f"{command[0]} ended: {process.stderr.read().decode()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.kill()
        process.communicate(timeout=30)


def measure(command: list[str], folder: Path, sessions: int, steps: int) -> dict[str, float]:
    """One server, one load, each in its own process."""
    port = free_port()
    with running(command, port, folder) as server:
        client = [sys.executable, "-m", "rollwave.benchmarks.agentgym_server", "--load"]
        before = cpu_seconds(server)
        done = subprocess.run(
            [*client, str(port), str(sessions), str(steps)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        used = cpu_seconds(server) - before
    if done.returncode:
        raise SystemExit(f"the load on {command} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"server_cpu_us": used / (sessions * (steps + 3)) * 1e6}


def install(folder: Path) -> str:
    """Make the virtual environment of AgentGym's server, once. Gives its interpreter."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "installed").touch()
    return str(python)


def sides(agentgym: Path) -> dict[str, tuple[list[str], Path]]:
    """Each server's command and the folder that it runs in."""
    here = Path.cwd()
    python = install(Path(".bench/agentgym").absolute())
    ours = [sys.executable, "-m", "rollwave", "serve", "--env", "textcraft-v1"]
    theirs = [python, "-c", _LAUNCH, "--host", "127.0.0.1"]
    return {
        "Rollwave": (ours, here),
        "AgentGym": (theirs, agentgym / "agentenv-textcraft"),
        HYPERCORN: ([sys.executable, "-c", _EMPTY], here),
    }


def main() -> None:
    """Measure, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description="TextCraft servers, ours and AgentGym's.")
    parser.add_argument("--agentgym", type=Path, help="a checkout of AgentGym")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12_000, help="of one measurement")
    parser.add_argument("--hypercorn", action="store_true", help="measure its connections too")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/agentgym_server.json"))
    parser.add_argument("--load", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(asyncio.run(load(*options.load))))
        return
    if options.agentgym is None:
        raise SystemExit("say where a checkout of AgentGym is: --agentgym PATH")
    servers = sides(options.agentgym.absolute())
    if not options.hypercorn:
        del servers[HYPERCORN]
    found: dict[tuple[str, int, str], list[float]] = {}
    ratios: dict[int, list[float]] = {}
    for _ in range(options.repeats):
        for sessions in SESSIONS:
            once = {}
            for name, (command, folder) in servers.items():
                figures = once[name] = measure(command, folder, sessions, options.steps // sessions)
                for key, value in figures.items():
                    found.setdefault((name, sessions, key), []).append(value)
            ours, theirs = (once[name]["steps_per_second"] for name in ("Rollwave", "AgentGym"))
            ratios.setdefault(sessions, []).append(ours / theirs)
    spreads = {key: Spread.of(values) for key, values in found.items()}
    columns = ("steps_per_second", "p50_ms", "p99_ms", "server_cpu_us")
    Output().table(
        ["server", "sessions", "steps/s", "p50, ms", "p99, ms", "server CPU a call, µs"],
        [
            [name, n, *(str(spreads[name, n, key]) for key in columns)]
            for n in SESSIONS
            for name in servers
        ],
    )
    Output().table(
        ["Rollwave / AgentGym, steps/s", "ratio", "bar"],
        [[f"{n} sessions", str(Spread.of(ratios[n])), "at least 3"] for n in SESSIONS],
    )
    nested: dict[str, Any] = {}
    for (name, n, key), spread in spreads.items():
        nested.setdefault(name, {}).setdefault(str(n), {})[key] = asdict(spread)
    ratio = {str(n): asdict(Spread.of(values)) for n, values in ratios.items()}
    write(options.out, {"servers": nested, "ratio": ratio})


if __name__ == "__main__":
    main()

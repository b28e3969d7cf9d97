"""A kit of HTTP servers, each as good or as bad as its script.

Most listen on a Unix socket: bytes arrive in the very call that sends them, so that
timeouts can be tested on the virtual clock.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from rollwave.engine.http_transport import TrioTransport

URL = "http://server/path?q=1"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def read_request(stream: trio.SocketStream) -> bytes:
    """One whole request, or b"" where the client hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some()
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line[15:]):
                body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


class Server:
    """Answers the k-th connection by `scripts[k]` (the last one for ever): bytes for each
    request in turn, then it hangs up. A script may be a handler of its own."""

    def __init__(self, *scripts: list[bytes] | Handler) -> None:
        self.scripts = scripts
        self.connections = 0
        self.live = 0
        self.most_live = 0
        self.requests: list[bytes] = []
        self.hung_up = trio.Event()

    async def __call__(self, stream: trio.SocketStream) -> None:
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        try:
            async with stream:
                if callable(script):
                    await script(stream)
                    return
                for answer in script:
                    request = await read_request(stream)
                    if not request:
                        return
                    self.requests.append(request)
                    await stream.send_all(answer)
        except trio.BrokenResourceError:
            pass
        finally:
            self.live -= 1
            self.hung_up.set()


@asynccontextmanager
async def unix_server(path: str, handler: Handler) -> AsyncIterator[None]:
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(path)
    listening.listen(128)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, [trio.SocketListener(listening)])
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_server(handler: Handler) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Every test gives back every file descriptor that it took."""
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    yield
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


async def exchange(
    transport: TrioTransport, method: str = "POST", url: str = URL, **options: Any
) -> httpx.Response:
    """One request, its body read to the end."""
    if method == "POST":
        options.setdefault("content", b"{}")
    response = await transport.handle_async_request(httpx.Request(method, url, **options))
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response


def timeouts(**seconds: float) -> dict[str, Any]:
    return {"timeout": {"connect": None, "read": None, "write": None, "pool": None} | seconds}


class Fickle(Server):
    """Answers the first request of a connection; takes the second and hangs up."""

    def __init__(self, *, answers: int = 1, kind: bytes = b"") -> None:
        super().__init__([])
        self.answers = answers
        self.kind = kind

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            for _ in range(self.answers if self.connections == 1 else 0):
                self.requests.append(await read_request(stream))
                await stream.send_all(OK)
            self.requests.append(await read_request(stream))
            if self.kind:
                await stream.send_all(self.kind)
            elif self.connections == 2 and self.answers:
                await stream.send_all(OK)


async def silent(stream: trio.SocketStream) -> None:
    """Takes what comes and never answers."""
    while await stream.receive_some():
        pass


async def deaf(stream: trio.SocketStream) -> None:
    """Does not even read."""
    await trio.sleep_forever()


@pytest.fixture(scope="session")
def http() -> SimpleNamespace:
    """The kit, as one argument."""
    return SimpleNamespace(
        Server=Server,
        Fickle=Fickle,
        unix_server=unix_server,
        tcp_server=tcp_server,
        exchange=exchange,
        read_request=read_request,
        timeouts=timeouts,
        silent=silent,
        deaf=deaf,
    )

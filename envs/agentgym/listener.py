"""HTTP/1.1 connections on trio: reads requests, hands them over, writes the replies.

It is small because it serves one thing: requests that fit into memory, answered whole.
httptools (the parser of Node.js) finds their ends; what is not HTTP/1.1, or larger than
allowed, is answered once and the connection closed.

Why not Hypercorn, for which `asgi` is there: with an application that does nothing its
trio worker answered about as many requests as AgentGym's servers, and half of that at
1,000 connections (`benchmarks/agentgym_server.py`).

Invariants:

* requests of one connection are answered one after the other, in their order, also when
  they come pipelined; while one is served nothing more is read;
* a connection that is slow to send a request, or to take its answer, or idle for too
  long, is closed: no wait is without an end;
* a connection costs no more memory than the largest request.

Not here: what is answered (`server`), TLS (put a proxy before it).
"""

from __future__ import annotations

import ipaddress
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import trio

from ...engine.errors import ConfigError, MissingDependency
from .server import Reply, Request, WireServer, problem

if TYPE_CHECKING:
    from trio.abc import Stream

RECEIVE_BYTES: Final = 64 * 1024
SWEEP_SECONDS: Final = 1.0

_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: ".encode()
    for status in HTTPStatus
}


WRONG: Final = problem(400, "protocol", "This is not a request in HTTP/1.1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a connection may take, in seconds, and how many there may be."""

    request_seconds: float = 20.0
    """From the first byte of a request to its last, and for taking an answer."""
    idle_seconds: float = 75.0
    """Between requests."""
    connections: int = 8192
    head_bytes: int = 16 * 1024
    """Largest request line with headers."""
    drain_seconds: float = 5.0
    """For requests in progress when the server ends."""


class _TooLong(Exception):
    """What a request carries is above the limit."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class _Reader:
    """Collects the requests of one connection: the callbacks of httptools' parser."""

    def __init__(
        self, parser: Callable[[Any], Any], head: int, limit: Callable[[bytes], int]
    ) -> None:
        self.ready: deque[tuple[Request, bool]] = deque()
        """Whole requests, and whether the connection stays open behind each."""
        self.refused: Reply | None = None
        """Set when something is too long: nothing behind it is read."""
        self.expects = False
        """Whether the client waits for a word before it sends the body."""
        self._head_limit = head
        self._limit = limit
        self._parser = parser(self)
        self._clear()

    @property
    def inside(self) -> bool:
        """Whether a request has begun and not ended."""
        return self._begun

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            _TooLong: the request has to be refused as it stands.
            httptools.HttpParserError: it is not HTTP/1.1.
        """
        if self._begun and not self._body_open:
            self._grow(len(data))  # also what the parser keeps of a header that has not ended
        self._parser.feed_data(data)
        if self.refused is not None:
            raise _TooLong(self.refused)

    def _grow(self, size: int) -> None:
        self._head += size
        if self._head > self._head_limit and self.refused is None:
            self.refused = problem(431, "head", f"Headers take {self._head_limit} bytes at most.")

    def _clear(self) -> None:
        self._begun = False
        self._body_open = False
        self._head = 0
        self._url = b""
        self._authorization = b""
        self._origin = b""
        self._declared: float = 0
        self._size = 0
        self._most = 0
        self._chunks: list[bytes] = []
        self.expects = False

    def on_message_begin(self) -> None:
        self._clear()
        self._begun = True

    def on_url(self, part: bytes) -> None:
        self._grow(len(part))
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value))
        name = name.lower()
        if name == b"content-length":
            self._declared = int(value) if value.isdigit() and len(value) < 16 else math.inf
        elif name == b"authorization":
            self._authorization = value
        elif name == b"origin":
            self._origin = value
        elif name == b"expect":
            self.expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._body_open = True
        path, _, self._query = self._url.partition(b"?")
        self._path = path
        self._most = self._limit(path)
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            self.refused = self.refused or WRONG
        elif self._declared > self._most:
            self._refuse()

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            self._refuse()
        elif self.refused is None:
            self._chunks.append(part)

    def _refuse(self) -> None:
        self._chunks.clear()
        self.refused = self.refused or problem(
            413, "body", f"A body has {self._most} bytes at most here."
        )

    def on_message_complete(self) -> None:
        if self.refused is None:
            request = Request(
                self._parser.get_method(),
                self._path,
                self._query,
                b"".join(self._chunks),
                self._authorization,
                self._origin,
            )
            self.ready.append((request, self._parser.should_keep_alive()))
        self._clear()


class _Connection:
    """One connection, as the sweeper sees it."""

    __slots__ = ("limit", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.limit = math.inf
        """When it is to be closed, by trio's clock; never, while a request is served."""


class Listener:
    """Serves a `WireServer` on streams."""

    def __init__(self, wire: WireServer, patience: Patience | None = None) -> None:
        """Serve it.

        Raises:
            MissingDependency: httptools is not installed.
        """
        try:
            import httptools
        except ModuleNotFoundError:
            raise MissingDependency(
                "serving needs httptools: pip install 'rollwave[serve]'"
            ) from None
        self.patience: Final = patience or Patience()
        self._wire = wire
        self._parser = httptools.HttpRequestParser
        self._wrong = httptools.HttpParserError
        self._upgrade = httptools.HttpParserUpgrade
        self._open: dict[_Connection, None] = {}
        self._left = trio.Event()

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._open)

    async def run(self, listeners: Sequence[trio.abc.Listener[Stream]]) -> None:
        """Serve until cancelled; then let requests in progress end, and close all sessions.

        Args:
            listeners: open sockets, as `trio.open_tcp_listeners` gives them.
        """
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            connections = await nursery.start(_shielded, done)
            try:
                nursery.start_soon(self._sweep)
                await trio.serve_listeners(
                    self.handle, list(listeners), handler_nursery=connections
                )
            finally:
                self._wire.sessions.draining = True
                for connection in self._open:
                    if connection.limit < math.inf:  # it waits for the client, not for us
                        connection.scope.cancel()
                with trio.move_on_after(self.patience.drain_seconds, shield=True):
                    while self._open:
                        self._left = trio.Event()
                        await self._left.wait()
                self._wire.sessions.close_all()
                done.set()
                nursery.cancel_scope.cancel()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            for connection in list(self._open):
                if connection.limit < now:
                    connection.scope.cancel()
            self._wire.sessions.sweep()

    async def handle(self, stream: Stream) -> None:
        """Serve one connection to its end, and close it."""
        connection = _Connection()
        try:
            if len(self._open) >= self.patience.connections:
                text = f"The server has its {self.patience.connections} connections already."
                with trio.move_on_after(SWEEP_SECONDS):
                    await stream.send_all(_bytes(problem(503, "overloaded", text), keep=False))
                return
            self._open[connection] = None
            with connection.scope:
                await self._converse(stream, connection)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away
        finally:
            self._open.pop(connection, None)
            self._left.set()
            with trio.CancelScope(shield=True):  # closing by force does not wait
                await trio.aclose_forcefully(stream)

    async def _converse(self, stream: Stream, connection: _Connection) -> None:
        patience, sessions = self.patience, self._wire.sessions
        reader = _Reader(self._parser, patience.head_bytes, self._wire.body_limit)
        last: Reply | None = None
        while last is None:
            connection.limit = trio.current_time() + patience.idle_seconds
            while not reader.ready and last is None:
                data = await stream.receive_some(RECEIVE_BYTES)
                if not data:
                    return
                begun = reader.inside
                last = self._feed(reader, bytes(data))
                if reader.inside and not begun:
                    connection.limit = trio.current_time() + patience.request_seconds
                if reader.expects and not reader.ready and last is None:
                    reader.expects = False
                    await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            while reader.ready:
                request, keep = reader.ready.popleft()
                connection.limit = math.inf
                reply = await self._wire.answer(request)
                keep = keep and not sessions.draining
                connection.limit = trio.current_time() + patience.request_seconds
                await stream.send_all(_bytes(reply, keep, bare=request.method == b"HEAD"))
                if not keep:
                    return
        connection.limit = trio.current_time() + patience.request_seconds
        await stream.send_all(_bytes(last, keep=False))
        if isinstance(stream, trio.abc.HalfCloseableStream):
            # Whoever still sends would be told of a reset, and lose the answer with it.
            await stream.send_eof()
            for _ in range(_LINGERS):
                if not await stream.receive_some(RECEIVE_BYTES):
                    break

    def _feed(self, reader: _Reader, data: bytes) -> Reply | None:
        """Read on; gives the last reply of the connection, if it has to end."""
        try:
            reader.feed(data)
        except _TooLong as error:
            return error.reply
        except self._upgrade:  # offered, and not taken; nothing behind it would be HTTP/1.1
            if reader.refused is not None or not reader.ready:
                return reader.refused or WRONG
            reader.ready[-1] = (reader.ready[-1][0], False)
        except self._wrong:
            return WRONG
        return None


_BACKLOG: Final = 4096

_LINGERS: Final = 64
"""Pieces that are thrown away behind a request that was refused."""


async def open_listeners(
    host: str, port: int, *, guarded: bool = False
) -> list[trio.SocketListener]:
    """Open the sockets to serve on.

    Args:
        host: an address or a name; other machines reach any that is not loopback.
        port: 0 takes a free one.
        guarded: a token is asked for, or the user said that none is needed.

    Raises:
        ConfigError: others could reach it and nothing guards it, or the port is taken.
    """
    if not guarded and not loopback(host):
        raise ConfigError(
            f"{host or 'every address'} can be reached from other machines: set a token, or say "
            "that none is needed (--without-token)"
        )
    try:
        return await trio.open_tcp_listeners(port, host=host or None, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host or '*'}:{port}: {reason}") from None


def loopback(host: str) -> bool:
    """Whether only this machine reaches that address. A name other than localhost may move."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _shielded(
    done: trio.Event, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED
) -> None:
    """A nursery for connections that outlives the cancellation of the server, until `done`."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await done.wait()
            nursery.cancel_scope.cancel()


def _bytes(reply: Reply, keep: bool, *, bare: bool = False) -> bytes:
    """Write a reply out; `bare` leaves the body out, as HEAD wants it."""
    parts = [_LINES[reply.status], reply.media, b"\r\ncontent-length: %d\r\n" % len(reply.body)]
    parts += [name + b": " + value + b"\r\n" for name, value in reply.headers]
    if not keep:
        parts.append(b"connection: close\r\n")
    parts.append(b"\r\n")
    if not bare:
        parts.append(reply.body)
    return b"".join(parts)

"""One HTTP/1.1 connection on a trio stream: one request at a time, kept open between them.

`h11` speaks the protocol, trio moves the bytes, and httpx's exceptions say what
went wrong, so that callers need to know httpx's names only.

Invariant: after any error or cancellation the connection is closed; `idle` is true
exactly when the last response was read to its end and both sides keep the
connection open.

Not here: which connection is used and when a request is repeated (`http_transport`).
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import h11
import httpx
import trio

T = TypeVar("T")

Timeouts = Mapping[str, float | None]
"""httpx's request extension: seconds for "connect", "read", "write" and "pool"."""

RECEIVE_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
"""Longest status line plus headers accepted from a server."""


class Connection:
    """An open connection. It belongs to one task at a time."""

    __slots__ = ("_h11", "_socket", "_stream", "answered", "closed", "idle_since", "used")

    def __init__(self, stream: trio.abc.Stream, socket: trio.socket.SocketType) -> None:
        self._stream = stream
        self._socket = socket
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.closed = False
        self.used = False
        """Whether it has served a request before the present one."""
        self.answered = False
        """Whether any byte of the present response has arrived."""
        self.idle_since = 0.0

    @property
    def idle(self) -> bool:
        """Whether the next request may be sent."""
        return not self.closed and self._h11.states == {
            h11.CLIENT: h11.IDLE,
            h11.SERVER: h11.IDLE,
        }

    def readable(self) -> bool:
        """Whether bytes or an end wait to be read: on an idle connection, the server hung up."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Drop the connection at once, without a farewell. Allowed in any state."""
        self.closed = True
        self._socket.close()

    async def send(self, request: httpx.Request, timeouts: Timeouts) -> None:
        """Send a whole request.

        Raises:
            httpx.WriteError, httpx.WriteTimeout, httpx.LocalProtocolError
        """
        self.answered = False
        head = h11.Request(
            method=request.method.encode("ascii"),
            target=request.url.raw_path,
            headers=request.headers.raw,
        )
        data = self._encode(head)
        if isinstance(request.stream, httpx.ByteStream):
            for chunk in request.stream:  # in memory: one system call for head and body
                data += self._encode(h11.Data(chunk))
        else:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            async for chunk in request.stream:
                await self._write(data, timeouts)
                data = self._encode(h11.Data(chunk))
        data += self._encode(h11.EndOfMessage())
        await self._write(data, timeouts)

    async def receive_head(self, timeouts: Timeouts) -> h11.Response:
        """Wait for the status line and headers; interim (1xx) answers are skipped.

        Raises:
            httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError
        """
        while True:
            event = await self._next_event(timeouts)
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                continue
            raise httpx.RemoteProtocolError("the server wants another protocol than HTTP/1.1")

    async def receive_chunk(self, timeouts: Timeouts) -> bytes | None:
        """Give the next piece of the body; None at its end, the connection is then idle or closed.

        Raises:
            httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError
        """
        event = await self._next_event(timeouts)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._end()
        return None

    def _end(self) -> None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self.used = True
            self.idle_since = trio.current_time()
            if self._h11.trailing_data[0]:  # more than we asked for: out of step
                self.close()
        else:
            self.close()

    def _encode(self, event: h11.Event) -> bytes:
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError as error:
            self.close()
            raise httpx.LocalProtocolError(str(error)) from error

    async def _write(self, data: bytes, timeouts: Timeouts) -> None:
        try:
            await within(timeouts.get("write"), httpx.WriteTimeout, self._stream.send_all, data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            # Not closed: a server that refuses a request early has often answered already.
            raise httpx.WriteError(f"connection lost while sending: {_reason(error)}") from error
        except BaseException:
            self.close()
            raise

    async def _next_event(self, timeouts: Timeouts) -> object:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self._read(timeouts))
        except h11.RemoteProtocolError as error:
            self.close()
            raise httpx.RemoteProtocolError(str(error)) from error
        except BaseException:
            self.close()
            raise
        return event

    async def _read(self, timeouts: Timeouts) -> bytes:
        try:
            data = await within(
                timeouts.get("read"), httpx.ReadTimeout, self._stream.receive_some, RECEIVE_BYTES
            )
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpx.ReadError(f"connection lost while reading: {_reason(error)}") from error
        if data:
            self.answered = True
        elif not self.answered:
            raise httpx.RemoteProtocolError("the server hung up without a response")
        return bytes(data)


async def within(
    seconds: float | None,
    expired: Callable[[str], httpx.TimeoutException],
    function: Callable[..., Awaitable[T]],
    *args: Any,
) -> T:
    """Await `function(*args)`, for `seconds` at most; None waits without a limit."""
    if seconds is None:
        return await function(*args)
    with trio.move_on_after(seconds):
        return await function(*args)
    raise expired(f"nothing happened for {seconds:g} s")


def _reason(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__


async def connect(
    url: httpx.URL,
    timeouts: Timeouts,
    *,
    context: Callable[[], ssl.SSLContext],
    server_name: str | None = None,
    path: str | None = None,
) -> Connection:
    """Open a connection to the origin of `url`, with TLS where its scheme is https.

    Args:
        url: its scheme, host and port count.
        timeouts: "connect" covers the look-up, the connection and the TLS handshake.
        context: gives the shared TLS context; called for https only.
        server_name: name to verify the certificate against; None = the host.
        path: a Unix socket to connect to in place of host and port.

    Raises:
        httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol
    """
    if url.scheme not in {"http", "https"}:
        raise httpx.UnsupportedProtocol(f"{url.scheme or 'no scheme'!s}: only http and https")
    opened: list[trio.SocketStream] = []

    async def dial() -> Connection:
        port = url.port or (443 if url.scheme == "https" else 80)
        raw = (
            await trio.open_unix_socket(path)
            if path is not None
            else await trio.open_tcp_stream(url.host, port)
        )
        opened.append(raw)
        if url.scheme == "http":
            return Connection(raw, raw.socket)
        # Compatible with HTTPS servers, which rarely send a closing notification.
        tls = trio.SSLStream(
            raw, context(), server_hostname=server_name or url.host, https_compatible=True
        )
        await tls.do_handshake()
        return Connection(tls, raw.socket)

    try:
        return await within(timeouts.get("connect"), httpx.ConnectTimeout, dial)
    except (OSError, trio.BrokenResourceError) as error:
        _drop(opened)
        where = path or f"{url.host}:{url.port or url.scheme}"
        raise httpx.ConnectError(f"cannot connect to {where}: {_reason(error)}") from error
    except BaseException:
        _drop(opened)
        raise


def _drop(streams: list[trio.SocketStream]) -> None:
    for stream in streams:
        stream.socket.close()

"""A transport for httpx on trio sockets: what thousands of sessions share to reach one server.

httpx's own pool hands one idle connection to several requests, polls every idle
socket and scans its list for each request, so that its cost grows with the number
of connections. This one keeps the idle connections of an origin on a stack: a
request takes the newest, and only that one is looked at (is it closed, did it
wait too long?). The cost of a request does not depend on how many there are.

Invariants:

* a connection serves one request at a time, and is either idle on its stack, in the
  hands of one request, or closed: cancelling a request closes its connection;
* `max_connections` of one origin is never exceeded; requests beyond it wait in order.

A kept-alive connection may be closed by the server in the very moment it is taken.
Such a request is repeated, once and on a fresh connection, if no byte of a response
had arrived, its body is in memory, and repeating is safe: the method is idempotent
(RFC 9110, 9.2.2) or the request says so (`extensions={"repeatable": True}`: asking a
model the same thing twice costs time and changes nothing).

Not here: HTTP/2, proxies (`transport_for` falls back to httpx's own transport where
one is set), redirects, cookies and authentication (`httpx.AsyncClient` adds those).
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Self
from urllib.request import getproxies, proxy_bypass

import httpx
import trio

from .http_connection import Connection, Timeouts, connect, within

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class _Waiter:
    """A request that waits for room. `connection` is None where it may open one."""

    __slots__ = ("connection", "granted")

    def __init__(self) -> None:
        self.granted = trio.Event()
        self.connection: Connection | None = None


class _Pool:
    """The connections to one origin."""

    __slots__ = ("idle", "keep_seconds", "limit", "max_idle", "open", "waiters")

    def __init__(self, limit: int | None, max_idle: int | None, keep_seconds: float) -> None:
        self.limit = limit
        self.max_idle = max_idle
        self.keep_seconds = keep_seconds
        self.open = 0  # idle, in use, or being opened
        self.idle: deque[Connection] = deque()  # oldest left, newest right
        self.waiters: deque[_Waiter] = deque()

    async def acquire(self, timeouts: Timeouts) -> Connection | None:
        """Take an idle connection, or None: the right to open one."""
        now = trio.current_time()
        while self.idle:
            connection = self.idle.pop()
            if now - connection.idle_since < self.keep_seconds and not connection.readable():
                return connection
            self.open -= 1
            connection.close()
        if self.limit is None or self.open < self.limit:
            self.open += 1
            return None
        waiter = _Waiter()
        self.waiters.append(waiter)
        try:
            await within(timeouts.get("pool"), httpx.PoolTimeout, waiter.granted.wait)
        except BaseException:
            # Cancelled, but somebody may have granted the turn before we ran again: pass it on.
            if waiter.granted.is_set():
                self.release(waiter.connection)
            else:
                self.waiters.remove(waiter)
            raise
        return waiter.connection

    def release(self, connection: Connection | None) -> None:
        """Give back what `acquire` gave; None (or one that is not idle) frees its place."""
        if connection is not None and not connection.idle:
            connection.close()
            connection = None
        if self.waiters:
            waiter = self.waiters.popleft()
            waiter.connection = connection
            waiter.granted.set()
            return
        if connection is None:
            self.open -= 1
            return
        self.idle.append(connection)
        oldest = connection.idle_since - self.keep_seconds
        most = self.max_idle
        while self.idle and (
            self.idle[0].idle_since < oldest or (most is not None and len(self.idle) > most)
        ):
            self.open -= 1
            self.idle.popleft().close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        self.max_idle = 0
        while self.idle:
            self.open -= 1
            self.idle.pop().close()


class _Body(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """A response's body; its end gives the connection back, `aclose` before it drops it."""

    def __init__(self, connection: Connection, pool: _Pool, timeouts: Timeouts) -> None:
        self._connection = connection
        self._pool: _Pool | None = pool
        self._timeouts = timeouts

    def __aiter__(self) -> Self:
        return self  # not a generator: one that is left half-read would be collected late

    async def __anext__(self) -> bytes:
        if self._pool is None:
            raise StopAsyncIteration
        chunk: bytes | None = None
        try:
            chunk = await self._connection.receive_chunk(self._timeouts)
        finally:
            if chunk is None:
                self._release()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.release(self._connection)


class TrioTransport(httpx.AsyncBaseTransport):
    """httpx's swap-point: `httpx.AsyncClient(transport=TrioTransport())`.

    httpx's timeouts hold: connect (look-up and TLS included), write and read (each
    time without progress) and pool (waiting for room).

    Args:
        verify: as httpx takes it: True, False, or an `ssl.SSLContext` to share.
        max_connections: most connections to one origin; None = no limit.
        max_keepalive_connections: most idle ones kept; None = all.
        keepalive_expiry: seconds after which an idle one is not used again. Servers close
            them too (uvicorn, hence vLLM, after 5 s).
        uds: a Unix socket to connect to, whatever the URL's host.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | bool = True,
        max_connections: int | None = None,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float = 4.5,
        uds: str | None = None,
    ) -> None:
        self._verify = verify
        self._limits = (max_connections, max_keepalive_connections, keepalive_expiry)
        self._uds = uds
        self._pools: dict[tuple[bytes, bytes, int | None], _Pool] = {}
        self._context: ssl.SSLContext | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response's body is read as it is iterated.

        Raises:
            httpx.TransportError: one of its kinds, as httpx's own transport.
        """
        if self._closed:
            raise RuntimeError("the transport is closed")
        timeouts: Timeouts = request.extensions.get("timeout", {})
        pool = self._pool(request.url)
        fresh = False
        while True:
            connection = None if fresh else await pool.acquire(timeouts)
            try:
                if connection is None:
                    connection = await self._open(request, timeouts)
                lost: httpx.WriteError | None = None
                try:
                    await connection.send(request, timeouts)
                except httpx.WriteError as error:
                    lost = error  # a server that refuses a request early answers, then hangs up
                try:
                    head = await connection.receive_head(timeouts)
                except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                    if connection.answered:
                        raise
                    if connection.used and not fresh and _repeatable(request):
                        connection.close()
                        fresh = True  # its place in the pool stays ours
                        continue
                    raise (lost or error) from error
            except BaseException:
                if connection is not None:
                    connection.close()
                pool.release(None)
                raise
            break
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_Body(connection, pool, timeouts),
            extensions={
                "http_version": b"HTTP/" + head.http_version,
                "reason_phrase": head.reason,
            },
        )

    def statistics(self) -> dict[str, int]:
        """Count connections over all origins: `open` (idle and used), `idle`, `waiting`."""
        pools = self._pools.values()
        return {
            "open": sum(pool.open for pool in pools),
            "idle": sum(len(pool.idle) for pool in pools),
            "waiting": sum(len(pool.waiters) for pool in pools),
        }

    async def aclose(self) -> None:
        """Close idle connections, and the others as their responses end. Never blocks."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def _pool(self, url: httpx.URL) -> _Pool:
        origin = (url.raw_scheme, url.raw_host, url.port)
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = _Pool(*self._limits)
        return pool

    async def _open(self, request: httpx.Request, timeouts: Timeouts) -> Connection:
        return await connect(
            request.url,
            timeouts,
            context=self._tls,
            server_name=request.extensions.get("sni_hostname"),
            path=self._uds,
        )

    def _tls(self) -> ssl.SSLContext:
        """The shared TLS context: reading the certificates takes longer than a request."""
        if self._context is None:
            if isinstance(self._verify, ssl.SSLContext):
                self._context = self._verify
            else:
                self._context = httpx.create_ssl_context(verify=self._verify)
                self._context.set_alpn_protocols(["http/1.1"])
        return self._context


def _repeatable(request: httpx.Request) -> bool:
    """Whether a request that may have reached the server can be sent again."""
    safe = request.method in _IDEMPOTENT or request.extensions.get("repeatable") is True
    return safe and isinstance(request.stream, httpx.ByteStream)


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment (HTTP_PROXY, ALL_PROXY, NO_PROXY, …) sets for this URL."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def transport_for(url: httpx.URL, **options: Any) -> httpx.AsyncBaseTransport:
    """The fastest transport that reaches this URL: ours, or httpx's own where a proxy is set.

    Args:
        url: where requests will go.
        options: of `TrioTransport`.
    """
    proxy = proxy_for(url)
    if proxy is None:
        return TrioTransport(**options)
    limits = httpx.Limits(
        max_connections=options.get("max_connections"),
        max_keepalive_connections=options.get("max_keepalive_connections"),
    )
    return httpx.AsyncHTTPTransport(
        proxy=proxy, verify=options.get("verify", True), limits=limits, trust_env=False
    )

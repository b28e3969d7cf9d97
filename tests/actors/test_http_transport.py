"""The HTTP transport against servers that behave, and many that do not.

Most servers here listen on a Unix socket: bytes arrive in the very call that sends
them, so that timeouts can be tested on the virtual clock.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.http_transport import TrioTransport, transport_for
from rollwave.engine.testing import run_simulated

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


# -- servers that behave ------------------------------------------------------------


async def test_requests_follow_each_other_on_one_connection(path: str) -> None:
    server = Server([OK, OK, OK])
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        for _ in range(3):
            response = await exchange(transport, headers={"X-Who": "me"}, content=b"abc")
            assert (response.status_code, response.content) == (200, b"hello")
            assert response.extensions["http_version"] == b"HTTP/1.1"
        assert server.connections == 1
        assert transport.statistics() == {"open": 1, "idle": 1, "waiting": 0}
    assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /path?q=1 HTTP/1.1\r\n")
    assert b"x-who: me" in head.lower().split(b"\r\n")
    assert body == b"abc"


CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK


@settings(max_examples=60, deadline=None)
@given(
    answer=st.sampled_from([OK, CHUNKED, UNTIL_CLOSE, INTERIM]),
    cuts=st.sets(st.integers(1, 120), max_size=6),
)
def test_the_answer_is_the_same_however_the_bytes_arrive(
    tmp_path_factory: pytest.TempPathFactory, answer: bytes, cuts: set[int]
) -> None:
    path = str(tmp_path_factory.mktemp("u") / "s")
    edges = [0, *sorted(cut for cut in cuts if cut < len(answer)), len(answer)]

    async def dribble(stream: trio.SocketStream) -> None:
        await read_request(stream)
        for start, end in pairwise(edges):
            await stream.send_all(answer[start:end])
            await trio.sleep(0.1)

    async def main() -> bytes:
        async with unix_server(path, Server(dribble)), TrioTransport(uds=path) as transport:
            return (await exchange(transport)).content

    assert run_simulated(main) == b"hello"


async def test_it_is_a_transport_of_httpx(path: str) -> None:
    moved = b"HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n"
    json = b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    server = Server([moved, json, json])
    async with (
        unix_server(path, server),
        httpx.AsyncClient(
            transport=TrioTransport(uds=path), base_url="http://server", follow_redirects=True
        ) as client,
    ):
        assert (await client.get("/here")).json() == {"a": 1}
        async with client.stream("POST", "/more", json={"b": 2}) as response:
            assert b"".join([part async for part in response.aiter_raw()]) == b'{"a": 1}'
        assert server.connections == 1


async def test_a_body_can_be_streamed_to_the_server(path: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"ab", b"", b"cd"):
            yield part

    server = Server([OK])
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        await exchange(transport, content=parts(), headers={"content-length": "4"})
    assert server.requests[0].endswith(b"\r\n\r\nabcd")


# -- kept-alive connections ---------------------------------------------------------


async def test_a_connection_that_the_server_closed_is_noticed_when_it_is_taken(path: str) -> None:
    server = Server([OK])  # one answer, then it hangs up
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        for k in range(3):
            assert (await exchange(transport)).status_code == 200
            await trio.testing.wait_all_tasks_blocked()
            assert server.connections == k + 1


async def test_unasked_bytes_disqualify_a_connection(path: str) -> None:
    server = Server([OK + b"HTTP/1.1 500 Surprise\r\n\r\n"])
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        assert (await exchange(transport)).content == b"hello"
        assert transport.statistics()["idle"] == 0
        assert (await exchange(transport)).content == b"hello"


async def test_connection_close_is_honoured(path: str) -> None:
    server = Server([b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"])
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        await exchange(transport)
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_idle_connections_are_dropped_by_age_and_number(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server([OK] * 9)
    async with (
        unix_server(path, server),
        TrioTransport(uds=path, keepalive_expiry=5.0, max_keepalive_connections=2) as transport,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(exchange, transport)
        assert transport.statistics() == {"open": 2, "idle": 2, "waiting": 0}
        await trio.sleep(4.9)
        await exchange(transport)  # takes the newest, and finds the oldest still fresh
        assert (server.connections, transport.statistics()["idle"]) == (4, 2)
        await trio.sleep(0.2)
        await exchange(transport)  # the other one is too old by now
        assert (server.connections, transport.statistics()["idle"]) == (4, 1)
        await trio.sleep(5.0)
        await exchange(transport)
        assert server.connections == 5


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


@pytest.mark.parametrize(
    ("method", "extensions"), [("GET", {}), ("PUT", {}), ("POST", {"repeatable": True})]
)
async def test_a_stale_connection_is_replaced_where_repeating_is_safe(
    path: str, method: str, extensions: dict[str, Any]
) -> None:
    server = Fickle()
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        await exchange(transport)
        response = await exchange(transport, method, extensions=extensions)
        assert response.content == b"hello"
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_request_with_effects_is_not_repeated(path: str) -> None:
    server = Fickle()
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        await exchange(transport)
        with pytest.raises(httpx.RemoteProtocolError, match="hung up without a response"):
            await exchange(transport)
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_nothing_is_repeated_after_the_first_byte_of_an_answer(path: str) -> None:
    server = Fickle(kind=b"H")
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        await exchange(transport)
        with pytest.raises(httpx.RemoteProtocolError):
            await exchange(transport, "GET")
        assert server.connections == 1


async def test_a_streamed_body_is_not_repeated(path: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    server = Fickle()
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        await exchange(transport)
        with pytest.raises(httpx.TransportError):
            await exchange(transport, "PUT", content=parts(), headers={"content-length": "4"})
        assert server.connections == 1


async def test_a_fresh_connection_is_never_repeated_and_a_repeat_only_once(path: str) -> None:
    server = Fickle(answers=0)
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        with pytest.raises(httpx.RemoteProtocolError):
            await exchange(transport, "GET")
        assert server.connections == 1

    always = Fickle(answers=1)
    always.connections = 0
    async with TrioTransport(uds=path + "2") as transport:

        async def handler(stream: trio.SocketStream) -> None:
            if always.connections >= 1:
                always.connections += 1
                async with stream:
                    await read_request(stream)
                return
            await always(stream)

        async with unix_server(path + "2", handler):
            await exchange(transport)
            with pytest.raises(httpx.RemoteProtocolError):
                await exchange(transport, "GET")
            assert always.connections == 2
            assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


# -- servers that do not behave -----------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort", httpx.RemoteProtocolError),
        (CHUNKED[:-5], httpx.RemoteProtocolError),
        (CHUNKED.replace(b"3\r\n", b"z\r\n"), httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 80_000, httpx.RemoteProtocolError),
        (b"220 mail.example ESMTP\r\n", httpx.RemoteProtocolError),
        (b"\x16\x03\x01\x00\x02\x02\x28", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", httpx.RemoteProtocolError),
        (b"", httpx.RemoteProtocolError),
    ],
)
async def test_a_broken_answer_is_an_error_and_the_connection_goes(
    path: str, answer: bytes, error: type[Exception]
) -> None:
    server = Server([answer])
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        with pytest.raises(error):
            await exchange(transport)
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_a_reset_in_the_middle_of_a_body(path: str) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhal")
        # Without lingering, closing sends a reset in place of an end.
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with tcp_server(Server(reset)) as url, TrioTransport() as transport:
        with pytest.raises(httpx.ReadError, match="connection lost while reading"):
            await exchange(transport, url=url)
        assert transport.statistics()["open"] == 0


async def test_an_early_refusal_is_read_although_the_sending_failed(path: str) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(
            b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"
        )

    async with unix_server(path, Server(refuse)), TrioTransport(uds=path) as transport:
        response = await exchange(transport, content=b"x" * 8_000_000)
        assert (response.status_code, response.content) == (413, b"no")
        assert transport.statistics()["open"] == 0


async def test_a_failed_sending_without_any_answer_is_a_write_error(path: str) -> None:
    async def vanish(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)

    async with unix_server(path, Server(vanish)), TrioTransport(uds=path) as transport:
        with pytest.raises((httpx.WriteError, httpx.ReadError)):
            await exchange(transport, content=b"x" * 8_000_000)


async def test_nobody_listens(unused_port: int, path: str) -> None:
    async with TrioTransport() as transport:
        with pytest.raises(httpx.ConnectError, match=rf"127\.0\.0\.1:{unused_port}"):
            await exchange(transport, url=f"http://127.0.0.1:{unused_port}/")
        with pytest.raises(httpx.UnsupportedProtocol, match="ftp"):
            await exchange(transport, url="ftp://127.0.0.1/")
        assert transport.statistics()["open"] == 0
    with pytest.raises(RuntimeError, match="closed"):
        await exchange(transport)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- timeouts, limits, cancellation -------------------------------------------------


async def silent(stream: trio.SocketStream) -> None:
    """Takes what comes and never answers."""
    while await stream.receive_some():
        pass


async def deaf(stream: trio.SocketStream) -> None:
    """Does not even read."""
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "seconds", "error"),
    [
        (silent, {"read": 3.0}, httpx.ReadTimeout),
        (deaf, {"write": 3.0}, httpx.WriteTimeout),
    ],
)
async def test_a_timeout_ends_the_wait_and_the_connection(
    path: str,
    autojump_clock: trio.testing.MockClock,
    handler: Handler,
    seconds: dict[str, float],
    error: type[Exception],
) -> None:
    async with unix_server(path, Server(handler)), TrioTransport(uds=path) as transport:
        with pytest.raises(error, match="nothing happened for 3 s"):
            await exchange(transport, content=b"x" * 8_000_000, extensions=timeouts(**seconds))
        assert trio.current_time() == pytest.approx(3.0)
        assert transport.statistics()["open"] == 0


async def test_the_read_timeout_counts_from_the_last_progress(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await read_request(stream)
        for byte in OK:
            await trio.sleep(2.0)
            await stream.send_all(bytes([byte]))

    async with unix_server(path, Server(slow)), TrioTransport(uds=path) as transport:
        assert (await exchange(transport, extensions=timeouts(read=3.0))).content == b"hello"
        assert trio.current_time() == pytest.approx(2.0 * len(OK))


async def test_a_full_pool_makes_wait_in_order_or_time_out(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            await trio.sleep(2.0)
            await stream.send_all(OK)

    server = Server(slow)
    order: list[int] = []
    async with (
        unix_server(path, server),
        TrioTransport(uds=path, max_connections=1) as transport,
    ):

        async def ask(k: int) -> None:
            await exchange(transport)
            order.append(k)

        async with trio.open_nursery() as nursery:
            for k in range(3):
                nursery.start_soon(ask, k)
                await trio.testing.wait_all_tasks_blocked()
            assert transport.statistics() == {"open": 1, "idle": 0, "waiting": 2}
            with pytest.raises(httpx.PoolTimeout):
                await exchange(transport, extensions=timeouts(pool=1.0))
            assert transport.statistics()["waiting"] == 2
        assert order == [0, 1, 2]
        assert trio.current_time() == pytest.approx(6.0)
        assert (server.connections, server.most_live) == (1, 1)


@settings(max_examples=30, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.floats(0, 3), st.floats(0.1, 6), st.booleans()), min_size=1, max_size=14
    ),
    limit=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_the_limit_holds_and_nobody_is_lost_whoever_is_cancelled(
    tmp_path_factory: pytest.TempPathFactory,
    plan: list[tuple[float, float, bool]],
    limit: int,
    seed: int,
) -> None:
    """Requests come and are cancelled at any moment; the server hangs up now and then."""
    path = str(tmp_path_factory.mktemp("u") / "s")

    async def moody(stream: trio.SocketStream) -> None:
        count = 0
        while await read_request(stream):
            await trio.sleep(1.0)
            await stream.send_all(OK)
            count += 1
            if count == 2:
                return

    server = Server(moody)
    answered = 0

    async def ask(transport: TrioTransport, start: float, patience: float, drop: bool) -> None:
        nonlocal answered
        await trio.sleep(start)
        with trio.move_on_after(patience if drop else 1e6):
            response = await exchange(transport, extensions={"repeatable": True})
            assert response.content == b"hello"
            answered += 1

    async def main() -> None:
        async with (
            unix_server(path, server),
            TrioTransport(uds=path, max_connections=limit) as transport,
        ):
            async with trio.open_nursery() as nursery:
                for start, patience, drop in plan:
                    nursery.start_soon(ask, transport, start, patience, drop)
            statistics = transport.statistics()
            assert statistics["waiting"] == 0
            assert statistics["open"] == statistics["idle"] <= limit

    run_simulated(main, seed=seed)
    assert answered >= sum(not drop for _, _, drop in plan)


async def test_cancelling_closes_the_connection(path: str) -> None:
    server = Server(silent)
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange, transport)
                await trio.testing.wait_all_tasks_blocked()
                assert transport.statistics()["open"] == 1
                scope.cancel()
        assert transport.statistics()["open"] == 0
        await server.hung_up.wait()  # the server saw the end: it can stop generating


async def test_a_response_left_half_read_closes_its_connection(path: str) -> None:
    server = Server([b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", OK], [OK])
    async with unix_server(path, server), TrioTransport(uds=path) as transport:
        response = await transport.handle_async_request(httpx.Request("GET", URL))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for part in response.stream:
            assert part == b"half"
            break
        await response.aclose()
        await response.aclose()  # once more is harmless
        assert transport.statistics()["open"] == 0
        assert (await exchange(transport)).content == b"hello"


async def test_closing_the_transport_does_not_cut_a_running_request(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await trio.sleep(1.0)
        await stream.send_all(OK)

    transport = TrioTransport(uds=path)
    async with unix_server(path, Server(slow)), trio.open_nursery() as nursery:
        nursery.start_soon(exchange, transport)
        await trio.testing.wait_all_tasks_blocked()
        await transport.aclose()
        assert transport.statistics()["open"] == 1
        await trio.sleep(1.5)
        assert transport.statistics()["open"] == 0


# -- TLS and proxies ----------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for `server`, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    crt, key = folder / "server.crt", folder / "server.key"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=server", "-addext", "subjectAltName=DNS:server"]
    subprocess.run([*command, "-keyout", key, "-out", crt], check=True, capture_output=True)
    return crt, key


async def test_https_verifies_the_name_and_keeps_the_connection(
    path: str, certificate: tuple[Path, Path]
) -> None:
    crt, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    connections = 0

    async def secure(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            while await read_request(tls):  # type: ignore[arg-type]
                await tls.send_all(OK)
        except trio.BrokenResourceError:
            pass  # refused our certificate, or hung up
        finally:
            await trio.aclose_forcefully(tls)

    trusting = ssl.create_default_context(cafile=str(crt))
    async with unix_server(path, secure):
        async with TrioTransport(uds=path, verify=trusting) as transport:
            for _ in range(2):
                response = await exchange(transport, url="https://server/")
                assert response.content == b"hello"
            assert connections == 1
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await exchange(transport, url="https://other/")
            response = await exchange(
                transport, url="https://other/", extensions={"sni_hostname": "server"}
            )
            assert response.status_code == 200
        async with TrioTransport(uds=path) as strict:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await exchange(strict, url="https://server/")
            assert strict.statistics()["open"] == 0


async def test_the_connect_timeout_covers_the_tls_handshake(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        unix_server(path, Server(silent)),
        TrioTransport(uds=path, verify=False) as transport,
    ):
        with pytest.raises(httpx.ConnectTimeout):
            await exchange(transport, url="https://server/", extensions=timeouts(connect=2.0))
        assert transport.statistics()["open"] == 0


def test_where_a_proxy_is_set_httpx_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    url = httpx.URL("http://server:8000/v1")
    assert isinstance(transport_for(url), TrioTransport)
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    assert isinstance(transport_for(url, max_connections=5), httpx.AsyncHTTPTransport)
    assert isinstance(transport_for(httpx.URL("https://server/")), TrioTransport)
    monkeypatch.setenv("no_proxy", "server")
    assert isinstance(transport_for(url), TrioTransport)

"""The HTTP transport with servers that do not behave, and with callers that lose patience."""

from __future__ import annotations

import socket
import struct
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rollwave.engine.http_transport import TrioTransport
from rollwave.engine.testing import run_simulated

URL = "http://server/path?q=1"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
)

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
    http: Any, path: str, answer: bytes, error: type[Exception]
) -> None:
    server = http.Server([answer])
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        with pytest.raises(error):
            await http.exchange(transport)
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_a_reset_in_the_middle_of_a_body(http: Any, path: str) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await http.read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhal")
        # Without lingering, closing sends a reset in place of an end.
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with http.tcp_server(http.Server(reset)) as url, TrioTransport() as transport:
        with pytest.raises(httpx.ReadError, match="connection lost while reading"):
            await http.exchange(transport, url=url)
        assert transport.statistics()["open"] == 0


async def test_an_early_refusal_is_read_although_the_sending_failed(http: Any, path: str) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(
            b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"
        )

    async with http.unix_server(path, http.Server(refuse)), TrioTransport(uds=path) as transport:
        response = await http.exchange(transport, content=b"x" * 8_000_000)
        assert (response.status_code, response.content) == (413, b"no")
        assert transport.statistics()["open"] == 0


async def test_a_failed_sending_without_any_answer_is_a_write_error(http: Any, path: str) -> None:
    async def vanish(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)

    async with http.unix_server(path, http.Server(vanish)), TrioTransport(uds=path) as transport:
        with pytest.raises((httpx.WriteError, httpx.ReadError)):
            await http.exchange(transport, content=b"x" * 8_000_000)


async def test_nobody_listens(http: Any, unused_port: int, path: str) -> None:
    async with TrioTransport() as transport:
        with pytest.raises(httpx.ConnectError, match=rf"127\.0\.0\.1:{unused_port}"):
            await http.exchange(transport, url=f"http://127.0.0.1:{unused_port}/")
        with pytest.raises(httpx.UnsupportedProtocol, match="ftp"):
            await http.exchange(transport, url="ftp://127.0.0.1/")
        assert transport.statistics()["open"] == 0
    with pytest.raises(RuntimeError, match="closed"):
        await http.exchange(transport)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- timeouts, limits, cancellation -------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "seconds", "error"),
    [
        ("silent", {"read": 3.0}, httpx.ReadTimeout),
        ("deaf", {"write": 3.0}, httpx.WriteTimeout),
    ],
)
async def test_a_timeout_ends_the_wait_and_the_connection(
    http: Any,
    path: str,
    autojump_clock: trio.testing.MockClock,
    handler: str,
    seconds: dict[str, float],
    error: type[Exception],
) -> None:
    async with (
        http.unix_server(path, http.Server(getattr(http, handler))),
        TrioTransport(uds=path) as transport,
    ):
        with pytest.raises(error, match="nothing happened for 3 s"):
            await http.exchange(
                transport, content=b"x" * 8_000_000, extensions=http.timeouts(**seconds)
            )
        assert trio.current_time() == pytest.approx(3.0)
        assert transport.statistics()["open"] == 0


async def test_the_read_timeout_counts_from_the_last_progress(
    http: Any, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await http.read_request(stream)
        for byte in OK:
            await trio.sleep(2.0)
            await stream.send_all(bytes([byte]))

    async with http.unix_server(path, http.Server(slow)), TrioTransport(uds=path) as transport:
        assert (
            await http.exchange(transport, extensions=http.timeouts(read=3.0))
        ).content == b"hello"
        assert trio.current_time() == pytest.approx(2.0 * len(OK))


async def test_a_full_pool_makes_wait_in_order_or_time_out(
    http: Any, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        while await http.read_request(stream):
            await trio.sleep(2.0)
            await stream.send_all(OK)

    server = http.Server(slow)
    order: list[int] = []
    async with (
        http.unix_server(path, server),
        TrioTransport(uds=path, max_connections=1) as transport,
    ):

        async def ask(k: int) -> None:
            await http.exchange(transport)
            order.append(k)

        async with trio.open_nursery() as nursery:
            for k in range(3):
                nursery.start_soon(ask, k)
                await trio.testing.wait_all_tasks_blocked()
            assert transport.statistics() == {"open": 1, "idle": 0, "waiting": 2}
            with pytest.raises(httpx.PoolTimeout):
                await http.exchange(transport, extensions=http.timeouts(pool=1.0))
            assert transport.statistics()["waiting"] == 2
        assert order == [0, 1, 2]
        assert trio.current_time() == pytest.approx(6.0)
        assert (server.connections, server.most_live) == (1, 1)


HALVES = st.integers(0, 8).map(lambda k: k / 2)  # so that many things fall on one moment


@settings(max_examples=40, deadline=None)
@given(
    plan=st.lists(st.tuples(HALVES, HALVES, st.booleans()), min_size=1, max_size=14),
    limit=st.integers(1, 3),
    seed=st.integers(0, 3),
)
# The second is cancelled in the moment in which the first hands its place on.
@example(plan=[(0.0, 1.0, True), (0.0, 1.0, True), (0.5, 1.0, False)], limit=1, seed=0)
def test_the_limit_holds_and_nobody_is_lost_whoever_is_cancelled(
    http: Any,
    tmp_path_factory: pytest.TempPathFactory,
    plan: list[tuple[float, float, bool]],
    limit: int,
    seed: int,
) -> None:
    """Requests come and are cancelled at any moment; the server hangs up now and then."""
    path = str(tmp_path_factory.mktemp("u") / "s")

    async def moody(stream: trio.SocketStream) -> None:
        count = 0
        while await http.read_request(stream):
            await trio.sleep(1.0)
            await stream.send_all(OK)
            count += 1
            if count == 2:
                return

    server = http.Server(moody)
    answered = 0

    async def ask(transport: TrioTransport, start: float, patience: float, drop: bool) -> None:
        nonlocal answered
        await trio.sleep(start)
        with trio.move_on_after(patience if drop else 1e6):
            response = await http.exchange(transport, extensions={"repeatable": True})
            assert response.content == b"hello"
            answered += 1

    async def main() -> None:
        async with (
            http.unix_server(path, server),
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


async def test_cancelling_closes_the_connection(http: Any, path: str) -> None:
    server = http.Server(http.silent)
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(http.exchange, transport)
                await trio.testing.wait_all_tasks_blocked()
                assert transport.statistics()["open"] == 1
                scope.cancel()
        assert transport.statistics()["open"] == 0
        await server.hung_up.wait()  # the server saw the end: it can stop generating


async def test_a_response_left_half_read_closes_its_connection(http: Any, path: str) -> None:
    server = http.Server([b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", OK], [OK])
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        response = await transport.handle_async_request(httpx.Request("GET", URL))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for part in response.stream:
            assert part == b"half"
            break
        await response.aclose()
        await response.aclose()  # once more is harmless
        assert transport.statistics()["open"] == 0
        assert (await http.exchange(transport)).content == b"hello"


async def test_closing_the_transport_does_not_cut_a_running_request(
    http: Any, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await http.read_request(stream)
        await trio.sleep(1.0)
        await stream.send_all(OK)

    transport = TrioTransport(uds=path)
    async with http.unix_server(path, http.Server(slow)), trio.open_nursery() as nursery:
        nursery.start_soon(http.exchange, transport)
        await trio.testing.wait_all_tasks_blocked()
        await transport.aclose()
        assert transport.statistics()["open"] == 1
        await trio.sleep(1.5)
        assert transport.statistics()["open"] == 0

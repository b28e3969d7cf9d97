"""Connections: whatever arrives on one, it is answered or closed, in time and in order."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError
from rollwave.engine.testing import run_simulated
from rollwave.envs.agentgym.listener import Listener, Patience, loopback, open_listeners
from rollwave.envs.agentgym.server import MAX_BODY, Request, WireServer
from rollwave.envs.registry import resolve

MAZE = resolve("maze-v1")

Pair = tuple[trio.StapledStream, trio.StapledStream]


def request(path: str = "/", body: bytes = b"", method: str = "POST", head: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode()
        + body
    )


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def exchange(
    *pieces: bytes, patience: Patience | None = None, wire: WireServer | None = None
) -> bytes:
    """Send the pieces, end, and give all that came back."""

    async def main() -> bytes:
        listener = Listener(wire or WireServer([MAZE]), patience)
        client, server = trio.testing.memory_stream_pair()
        answers: list[bytes] = []

        async def receive() -> None:
            answers.append(await everything(client))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.handle, server)
            nursery.start_soon(receive)
            for piece in pieces:
                try:
                    await client.send_all(piece)
                except trio.BrokenResourceError:
                    break
                await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await client.send_eof()
        assert len(listener) == 0
        return answers[0]

    return run_simulated(main)


def test_requests_that_come_at_once_are_answered_in_order() -> None:
    create = request("/create")
    reset = request("/reset", b'{"id": 0, "game": 3}')
    step = request("/step", b'{"id": 0, "action": "move up"}')
    answer = exchange(create + reset + step + request("/nowhere") + create)
    assert statuses(answer) == [200, 200, 200, 404, 200]
    assert answer.index(b'{"id":0}') < answer.index(b"The goal") < answer.index(b'{"id":1}')


def test_a_request_may_come_byte_by_byte_and_in_chunks() -> None:
    whole = request("/create", b"{}")
    assert statuses(exchange(*(whole[i : i + 1] for i in range(len(whole))))) == [200]
    chunked = (
        b"POST /create HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        b"1\r\n{\r\n1\r\n}\r\n0\r\ntrailer: x\r\n\r\n"
    )
    assert statuses(exchange(chunked + request("/create"))) == [200, 200]


def test_a_connection_is_kept_unless_the_client_wants_otherwise() -> None:
    one = request("/create", head="connection: close\r\n")
    assert statuses(exchange(one + request("/create"))) == [200]
    assert b"connection: close" in exchange(one)
    assert statuses(exchange(b"POST /create HTTP/1.0\r\n\r\n" + request("/create"))) == [200]


def test_head_has_no_body_but_its_length() -> None:
    answer = exchange(request("/health", method="HEAD"))
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 15" in answer


def test_a_client_that_waits_for_a_word_before_its_body_gets_it() -> None:
    head = request("/create", b"{}", head="expect: 100-continue\r\n")[:-2]
    assert statuses(exchange(head, b"{}")) == [100, 200]


@pytest.mark.parametrize(
    ("what", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"POST /create HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20_000, 431),
        (request("/step", b" " * (MAX_BODY + 1)), 413),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
            b"f0000\r\n" + b"x" * 0xF0000 + b"\r\n" + b"f0000\r\n" + b"x" * 0xF0000 + b"\r\n",
            413,
        ),
    ],
    ids=range(10),
)
def test_what_cannot_be_served_is_answered_once_and_ends_the_connection(
    what: bytes, status: int
) -> None:
    answer = exchange(request("/create") + what, request("/create"))
    assert statuses(answer) == [200, status]
    body = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert body.keys() >= {"error", "kind"}


def test_another_protocol_is_not_taken_up() -> None:
    offer = b"GET /health HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    assert statuses(exchange(offer + request("/create"))) == [200]


class Door(trio.abc.Listener[trio.abc.Stream]):
    """Lets in who knocks, in memory."""

    def __init__(self) -> None:
        self.knock, self._knocks = trio.open_memory_channel[trio.abc.Stream](10)

    async def accept(self) -> trio.abc.Stream:
        return await self._knocks.receive()

    async def aclose(self) -> None:
        self._knocks.close()


def connected(
    test: Callable[[Listener, trio.abc.Stream], Awaitable[None]],
    patience: Patience | None = None,
    pair: Callable[[], Pair] = trio.testing.memory_stream_pair,
) -> None:
    """Run a test against one connection of a listener that sweeps."""

    async def main() -> None:
        listener = Listener(WireServer([MAZE]), patience)
        client, server = pair()
        async with trio.open_nursery() as nursery:
            door = Door()
            nursery.start_soon(listener.run, [door])
            await door.knock.send(server)
            await trio.testing.wait_all_tasks_blocked()
            await test(listener, client)
            nursery.cancel_scope.cancel()

    run_simulated(main)


def test_a_request_that_does_not_end_is_given_up() -> None:
    async def test(listener: Listener, client: trio.abc.Stream) -> None:
        for byte in request("/create", b"{}")[:20]:
            await trio.sleep(0.5)  # always something new, and never done
            await client.send_all(bytes([byte]))
        assert len(listener) == 1
        await trio.sleep(12)
        assert len(listener) == 0
        assert await client.receive_some() == b""

    connected(test, Patience(request_seconds=20))


def test_an_idle_connection_is_closed_and_a_used_one_kept() -> None:
    async def test(listener: Listener, client: trio.abc.Stream) -> None:
        for _ in range(3):
            await trio.sleep(50)
            await client.send_all(request("/health", method="GET"))
            assert await client.receive_some()
        await trio.sleep(70)
        assert len(listener) == 1
        await trio.sleep(10)
        assert len(listener) == 0

    connected(test)


def test_a_client_that_does_not_take_its_answer_is_given_up() -> None:
    async def test(listener: Listener, client: trio.abc.Stream) -> None:
        await client.send_all(request("/health", method="GET"))
        await trio.sleep(30)
        assert len(listener) == 0

    connected(test, pair=trio.testing.lockstep_stream_pair)


def test_more_connections_than_allowed_are_told_so() -> None:
    async def main() -> None:
        listener = Listener(WireServer([MAZE]), Patience(connections=2))
        async with trio.open_nursery() as nursery:
            clients = []
            for _ in range(3):
                client, server = trio.testing.memory_stream_pair()
                nursery.start_soon(listener.handle, server)
                await trio.testing.wait_all_tasks_blocked()
                clients.append(client)
            assert statuses(await everything(clients[2])) == [503]
            await clients[0].aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert len(listener) == 1
            nursery.cancel_scope.cancel()

    run_simulated(main)


def test_at_the_end_what_is_in_progress_is_answered_and_everything_closed() -> None:
    class Slow(WireServer):
        async def answer(self, request: Request):  # type: ignore[no-untyped-def]
            reply = await super().answer(request)
            if request.path == b"/create":
                await trio.sleep(3)
            return reply

    async def main() -> None:
        wire = Slow([MAZE])
        listener = Listener(wire)
        busy, idle = trio.testing.memory_stream_pair(), trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            door = Door()
            nursery.start_soon(listener.run, [door])
            for _, server in (busy, idle):
                await door.knock.send(server)
            await trio.testing.wait_all_tasks_blocked()
            await busy[0].send_all(request("/create"))
            await trio.testing.wait_all_tasks_blocked()
            assert len(wire.sessions) == 1
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                assert await everything(idle[0]) == b""
                answer = await everything(busy[0])
        assert statuses(answer) == [200]
        assert b"connection: close" in answer
        assert trio.current_time() == 3
        assert len(wire.sessions) == 0
        assert len(listener) == 0

    run_simulated(main)


async def test_others_are_let_in_only_past_a_token() -> None:
    for host in ("0.0.0.0", "::", "", "example.org"):
        with pytest.raises(ConfigError, match="set a token"):
            await open_listeners(host, 0)
    listeners = await open_listeners("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(ConfigError, match="cannot listen"):
        await open_listeners("127.0.0.1", port)
    for listener in (*listeners, *await open_listeners("0.0.0.0", 0, guarded=True)):
        await listener.aclose()
    assert [loopback(host) for host in ("127.9.9.9", "::1", "localhost", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
    ]


LINES = st.sampled_from(
    [
        b"POST /step HTTP/1.1\r\n",
        b"GET /observation?id=0 HTTP/1.1\r\n",
        b"POST /rollwave/v1/step HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"content-length: 5\r\n",
        b"content-length: 0\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: close\r\n",
        b"expect: 100-continue\r\n",
        b"host: \xff\r\n",
        b"\r\n",
        b'{"id": 0, "action": "x"}',
        b"5\r\nhello\r\n0\r\n\r\n",
    ]
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(LINES, st.binary(max_size=40)), max_size=12))
def test_any_bytes_are_answered_without_a_defect(pieces: list[bytes]) -> None:
    answer = exchange(*pieces)
    assert not [status for status in statuses(answer) if status >= 500]
    if answer:
        assert answer.startswith(b"HTTP/1.1 ")

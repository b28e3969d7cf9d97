"""Refs over sockets behave as local ones; broken peers harm nobody but themselves."""

from __future__ import annotations

import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
import trio
import trio.testing
from rollwave.engine.actor import Actor
from rollwave.engine.child import ChildSpec
from rollwave.engine.codec import Message, encode
from rollwave.engine.envelope import Reply
from rollwave.engine.errors import (
    ActorDead,
    ActorRestarted,
    AskFailed,
    ConfigError,
    DeadlineExceeded,
    MailboxFull,
    MessageError,
    MessageTooLarge,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.restart import Restart
from rollwave.engine.system import ActorSystem
from rollwave.engine.transport import Remote, address_of, connect, listen, serve
from rollwave.engine.wire import PROTOCOL, Asked, Hello


class Ping(Message, frozen=True):
    text: str


class Pong(Message, frozen=True):
    text: str


class Wait(Message, frozen=True):
    """Never answered."""


class Crash(Message, frozen=True):
    pass


class Refuse(Message, frozen=True):
    kind: str


class Strange(Message, frozen=True):
    """Not among what the actor receives."""


class Echo(Actor):
    receives = (Ping, Wait, Crash, Refuse)
    mailbox_capacity = 2

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.abandoned: list[str] = []
        self.held: list[Reply] = []
        self.gate = trio.Event()
        self.gate.set()

    async def receive(self, message: Message) -> Message | None:
        match message:
            case Ping(text=text):
                await self.gate.wait()
                self.heard.append(text)
                return Pong(text.upper())
            case Wait():
                reply = self.defer()
                reply.on_abandon(lambda: self.abandoned.append("gone"))
                self.held.append(reply)
            case Refuse(kind=kind):
                raise AskFailed(kind, "not today")
            case Crash():
                raise RuntimeError("crashed")
        return None


class House:
    """A served actor, and what is needed to reach it."""

    def __init__(self, address: str, actors: dict[str, ActorRef], made: list[Echo]) -> None:
        self.address = address
        self.actors = actors
        self.made = made

    @property
    def echo(self) -> Echo:
        return self.made[-1]


@asynccontextmanager
async def house(
    address: str, *, limit: int = 1 << 20, restart: Restart = Restart.PERMANENT
) -> AsyncIterator[House]:
    made: list[Echo] = []

    def make() -> Echo:
        made.append(Echo())
        return made[-1]

    async with ActorSystem() as system, trio.open_nursery() as nursery:
        ref = await system.start(ChildSpec("echo", make, restart))
        actors = {"echo": ref}
        listener = await listen(address)
        await nursery.start(lambda **k: serve(actors, listener, limit=limit, **k))
        yield House(address_of(listener), actors, made)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked(address: str, **options: int) -> AsyncIterator[Remote]:
    remote = await connect(address, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.run)
        yield remote
        await remote.close()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/s" if request.param == "unix" else "tcp:127.0.0.1:0"


@pytest.fixture
def unix(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/s"


async def until(condition: Callable[[], object]) -> None:
    """Let the sockets and their tasks run until it holds."""
    with trio.fail_after(30):
        while not condition():
            await trio.lowlevel.checkpoint()


# ---- as a local ref ------------------------------------------------------------------


async def test_ask_and_tell_reach_the_actor(address: str) -> None:
    async with house(address) as served, linked(served.address) as remote:
        ref = remote.ref("echo")
        assert await ref.ask(Ping("hello"), Pong) == Pong("HELLO")
        await ref.tell(Ping("one"))
        ref.tell_nowait(Ping("two"))
        await until(lambda: len(served.echo.heard) == 3)
        assert served.echo.heard == ["hello", "one", "two"]
        assert ref.alive
        assert repr(ref) == f"<RemoteRef echo at {served.address}>"


async def test_many_asks_at_once_get_each_its_own_answer(address: str) -> None:
    answers: dict[int, str] = {}

    async def ask(remote: Remote, index: int) -> None:
        answers[index] = (await remote.ref("echo").ask(Ping(f"a{index}"), Pong)).text

    async with (
        house(address) as served,
        linked(served.address) as remote,
        trio.open_nursery() as nursery,
    ):
        for index in range(300):
            nursery.start_soon(ask, remote, index)
    assert answers == {index: f"A{index}" for index in range(300)}


async def test_a_payload_of_many_chunks_passes_whole(address: str) -> None:
    text = "x" * 900_000
    async with house(address) as served, linked(served.address) as remote:
        assert await remote.ref("echo").ask(Ping(text), Pong) == Pong(text.upper())


async def test_every_failure_keeps_its_class_and_text(unix: str) -> None:
    async with house(unix) as served, linked(served.address) as remote:
        ref = remote.ref("echo")
        with pytest.raises(AskFailed, match="environment: not today") as caught:
            await ref.ask(Refuse("environment"), Pong)
        assert (caught.value.kind, caught.value.text) == ("environment", "not today")
        with pytest.raises(MessageError, match="echo does not receive this"):
            await ref.ask(Strange(), Pong)
        with pytest.raises(MessageError, match=r"\[Wait\]"):
            await ref.ask(Ping("x"), Wait)
        with pytest.raises(ActorRestarted, match="ask again"):
            await ref.ask(Crash(), Pong)
        assert await ref.ask(Ping("again"), Pong) == Pong("AGAIN")
        with pytest.raises(ActorDead, match=r"no actor named 'nobody' .*there is echo"):
            await remote.ref("nobody").ask(Ping("x"), Pong)
        with pytest.raises(ActorDead, match="no actor named"):
            await remote.ref("nobody").tell(Ping("x"))


async def test_an_actor_that_stops_fails_what_it_had_and_what_comes(unix: str) -> None:
    async with house(unix, restart=Restart.TEMPORARY) as served, linked(unix) as remote:
        ref = remote.ref("echo")
        failures: list[ActorDead] = []

        async def wait() -> None:
            with pytest.raises(ActorDead) as caught:
                await ref.ask(Wait(), Pong)
            failures.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(lambda: served.echo.held)
            served.actors["echo"].stop()
        assert len(failures) == 1
        for send in (ref.tell(Ping("x")), ref.ask(Ping("x"), Pong)):
            with pytest.raises(ActorDead, match="echo has stopped"):
                await send


async def test_a_cancelled_ask_is_abandoned_on_the_other_side(unix: str) -> None:
    async with house(unix) as served, linked(unix) as remote:
        ref = remote.ref("echo")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.ask, Wait(), Pong)
            await until(lambda: served.echo.held)
            assert served.echo.abandoned == []
            nursery.cancel_scope.cancel()
        await until(lambda: served.echo.abandoned)
        assert await ref.ask(Ping("fine"), Pong) == Pong("FINE")


async def test_a_timeout_names_the_actor_and_abandons_the_ask(unix: str) -> None:
    async with house(unix) as served, linked(unix) as remote:
        with pytest.raises(DeadlineExceeded, match=rf"ask echo at {unix} took longer than 0\.01 s"):
            await remote.ref("echo").ask(Wait(), Pong, timeout=0.01)
        await until(lambda: served.echo.abandoned)


async def test_an_answer_that_comes_too_late_is_dropped(unix: str) -> None:
    async with house(unix) as served, linked(unix) as remote:
        ref = remote.ref("echo")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.ask, Wait(), Pong)
            await until(lambda: served.echo.held)
            served.echo.held[0].answer(Pong("late"))  # on its way when the asker leaves
            nursery.cancel_scope.cancel()
        assert await ref.ask(Ping("next"), Pong) == Pong("NEXT")


async def test_a_full_mailbox_holds_the_teller_up(unix: str) -> None:
    async with house(unix) as served, linked(unix) as remote:
        served.echo.gate = trio.Event()
        told: list[int] = []

        async def tell_all() -> None:
            for index in range(6):
                await remote.ref("echo").tell(Ping(str(index)))
                told.append(index)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_all)
            await until(lambda: served.actors["echo"].statistics().mailbox.waiting)
            assert told == [0, 1, 2]  # one in hand, two in the mailbox
            served.echo.gate.set()
        await until(lambda: len(served.echo.heard) == 6)
        assert served.echo.heard == [str(index) for index in range(6)]


# ---- connections ---------------------------------------------------------------------


async def test_a_lost_connection_fails_every_ask_and_every_later_one(unix: str) -> None:
    failures: list[str] = []

    async def wait(remote: Remote) -> None:
        with pytest.raises(ActorDead) as caught:
            await remote.ref("echo").ask(Wait(), Pong)
        failures.append(str(caught.value))

    remote: Remote | None = None
    async with trio.open_nursery() as nursery:
        async with house(unix) as served:
            remote = await connect(unix)
            nursery.start_soon(remote.run)
            for _ in range(5):
                nursery.start_soon(wait, remote)
            await until(lambda: len(served.echo.held) == 5)
        await until(lambda: len(failures) == 5)
    assert all(f"the connection to {unix} is lost" in text for text in failures)
    assert not remote.alive
    ref = remote.ref("echo")
    assert "(lost)" in repr(ref)
    with pytest.raises(ActorDead, match="is lost"):
        await ref.ask(Ping("x"), Pong)
    with pytest.raises(ActorDead, match="is lost"):
        ref.tell_nowait(Ping("x"))


async def test_a_peer_that_vanishes_abandons_all_it_asked_for(unix: str) -> None:
    async with house(unix) as served, linked(unix) as other:
        async with trio.open_nursery() as nursery:
            remote = await connect(unix)
            nursery.start_soon(remote.run)
            for _ in range(3):
                nursery.start_soon(remote.ref("echo").ask, Wait(), Pong)
            await until(lambda: len(served.echo.held) == 3)
            nursery.cancel_scope.cancel()
        await until(lambda: len(served.echo.abandoned) == 3)
        assert await other.ref("echo").ask(Ping("ok"), Pong) == Pong("OK")


async def test_a_closed_connection_says_that_it_was_closed_here(unix: str) -> None:
    async with house(unix), linked(unix) as remote:
        await remote.close()
        await remote.close()
        with pytest.raises(ActorDead, match="closed on this side"):
            await remote.ref("echo").ask(Ping("x"), Pong)


async def test_nobody_there_is_a_dead_actor(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for address in (f"unix:{tmp_path}/none", f"tcp:127.0.0.1:{unused.getsockname()[1]}"):
            with pytest.raises(ActorDead, match=f"nobody listens at {address}"):
                await connect(address)


@pytest.mark.parametrize(
    "address", ["", "unix:", "tcp:host", "tcp::80", "tcp:host:port", "tcp:host:70000", "http://x"]
)
async def test_a_malformed_address_says_how_to_write_one(address: str) -> None:
    for function in (listen, connect):
        with pytest.raises(ConfigError, match="write unix:/path or tcp:host:port"):
            await function(address)


async def test_a_unix_socket_is_its_owners_alone_and_is_never_stolen(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = await listen(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match=r"cannot listen on unix:.*in use"):
        await listen(f"unix:{path}")
    await first.aclose()  # the file stays, as after a crash
    assert path.exists()
    second = await listen(f"unix:{path}")
    await second.aclose()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="cannot listen"):
        await listen(f"unix:{path}")
    assert path.read_text() == "precious"


# ---- limits and malformed bytes ------------------------------------------------------


async def test_a_payload_above_the_limit_fails_alone_before_it_is_sent(unix: str) -> None:
    async with house(unix, limit=1000) as served, linked(unix) as remote:
        ref = remote.ref("echo")
        for send in (ref.ask(Ping("x" * 1000), Pong), ref.tell(Ping("x" * 1000))):
            with pytest.raises(MessageTooLarge, match="the other side accepts 1000"):
                await send
        with pytest.raises(MessageTooLarge):
            ref.tell_nowait(Ping("x" * 1000))
        longest = "x" * (1000 - len(encode(Ping(""))) - 2)
        assert len(encode(Ping(longest))) == 1000
        assert (await ref.ask(Ping(longest), Pong)).text == longest.upper()
        assert served.echo.heard == [longest]


async def test_an_answer_above_the_askers_limit_fails_alone(unix: str) -> None:
    async with house(unix), linked(unix, limit=100) as remote:
        ref = remote.ref("echo")
        with pytest.raises(MessageTooLarge, match="accepts 100"):
            await ref.ask(Ping("x" * 200), Pong)
        assert await ref.ask(Ping("x"), Pong) == Pong("X")


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"", ActorDead, "without a greeting"),
        (b"HTTP/1.1 400 Bad Request\r\n", MessageError, "no frame of protocol"),
        (encode(Hello(99, 1)), MessageError, "protocol 99, ours is 1"),
        (msgpack.packb(["Refused", "a busy house"]), MessageError, "a busy house"),
    ],
)
async def test_a_server_that_is_not_ours_is_named(
    unix: str, data: bytes, error: type[Exception], text: str
) -> None:
    async def pose(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listener = await listen(unix)
        nursery.start_soon(trio.serve_listeners, pose, [listener])
        with pytest.raises(error, match=text):
            await connect(unix)
        nursery.cancel_scope.cancel()


async def test_a_server_that_stays_silent_is_a_deadline(unix: str) -> None:
    listener = await listen(unix)
    with pytest.raises(DeadlineExceeded, match=r"connecting to unix:.* took longer"):
        await connect(unix, seconds=0.01)
    await listener.aclose()


async def test_a_server_that_breaks_the_protocol_later_fails_what_waits(unix: str) -> None:
    async def pose(stream: trio.SocketStream) -> None:
        await stream.send_all(encode(Hello(PROTOCOL, 1000)))
        await stream.receive_some()
        await stream.send_all(encode(Asked(1, "you", b"")))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listener = await listen(unix)
        nursery.start_soon(trio.serve_listeners, pose, [listener])
        remote = await connect(unix)
        nursery.start_soon(remote.run)
        with pytest.raises(ActorDead, match="it sent a Asked frame, as if we served"):
            await remote.ref("echo").ask(Ping("x"), Pong)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_read_makes_the_sender_wait(unix: str) -> None:
    async def pose(stream: trio.SocketStream) -> None:
        await stream.send_all(encode(Hello(PROTOCOL, 1 << 30)))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listener = await listen(unix)
        nursery.start_soon(trio.serve_listeners, pose, [listener])
        remote = await connect(unix)
        nursery.start_soon(remote.run)
        ref = remote.ref("echo")
        for _ in range(11):  # nothing is sent before the loop runs: this fills the queue
            ref.tell_nowait(Ping("x" * 100_000))
        with pytest.raises(MailboxFull, match="use `tell`, which waits"):
            ref.tell_nowait(Ping("x"))
        waiting = trio.Event()

        async def tell() -> None:
            waiting.set()
            with pytest.raises(ActorDead, match="closed on this side"):
                await ref.tell(Ping("x"))

        async with trio.open_nursery() as inner:
            inner.start_soon(tell)
            await waiting.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            await remote.close()
        nursery.cancel_scope.cancel()

"""Bytes that are no frames end their own connection, with the reason; bad payloads fail alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
import trio
from rollwave.engine.actor import Actor
from rollwave.engine.child import ChildSpec
from rollwave.engine.codec import Message, encode
from rollwave.engine.remote import Remote
from rollwave.engine.system import ActorSystem
from rollwave.engine.transport import connect, listen, serve
from rollwave.engine.wire import PROTOCOL, Answered, Asked, Hello, Told


class Ping(Message, frozen=True):
    text: str


class Pong(Message, frozen=True):
    text: str


class Wait(Message, frozen=True):
    """Never answered."""


class Echo(Actor):
    receives = (Ping, Wait)

    async def receive(self, message: Message) -> Message | None:
        if isinstance(message, Ping):
            return Pong(message.text.upper())
        self.defer()
        return None


@asynccontextmanager
async def house(address: str) -> AsyncIterator[Remote]:
    """An actor served with a limit of 1,000 bytes, and a well-behaved connection to it."""
    async with ActorSystem() as system, trio.open_nursery() as nursery:
        actors = {"echo": await system.start(ChildSpec("echo", Echo))}
        listener = await listen(address)
        await nursery.start(lambda **k: serve(actors, listener, limit=1000, **k))
        remote = await connect(address)
        nursery.start_soon(remote.run)
        yield remote
        nursery.cancel_scope.cancel()


@pytest.fixture
def unix(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/s"


async def raw(address: str) -> trio.SocketStream:
    return await trio.open_unix_socket(address.removeprefix("unix:"))


async def answer_to(stream: trio.SocketStream, data: bytes) -> list[list[object]]:
    """Send bytes, then read frames until the other side closes."""
    frames: list[list[object]] = []
    unpacker = msgpack.Unpacker()
    with trio.fail_after(30):
        try:
            await stream.send_all(data)
            async for chunk in stream:
                unpacker.feed(chunk)
                frames.extend(unpacker)
        except trio.BrokenResourceError:
            pass  # it closed with some of our bytes unread
    await stream.aclose()
    return frames


HELLO = encode(Hello(PROTOCOL, 1000))
MALFORMED = {
    "not MessagePack": b"\xc1",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "no greeting": encode(Asked(1, "echo", b"")),
    "another protocol": encode(Hello(99, 1000)),
    "an unknown frame": HELLO + msgpack.packb(["Shout", 1]),
    "a frame only servers send": HELLO + encode(Answered(1, b"")),
    "a field of a wrong type": HELLO + msgpack.packb(["Asked", "one", "echo", b""]),
    "a number too small": HELLO + msgpack.packb(["Asked", 1, "echo"]),
    "an ask twice": HELLO + 2 * encode(Asked(1, "echo", encode(Wait()))),
    "an array that announces millions": HELLO + b"\xdd\x7f\xff\xff\xff",
    "a map": HELLO + b"\xdf\x7f\xff\xff\xff",
    "a deep nest": HELLO + b"\x91" * 5000,
    "a frame far above the limit": HELLO + b"\xc6\x7f\xff\xff\xff" + bytes(200_000),
    "bad text": HELLO + b"\x93\xa5Asked\x01\xa2\xff\xfe",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_bytes_that_make_no_sense_end_their_own_connection_with_the_reason(
    unix: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(unix) as other:
        frames = await answer_to(await raw(unix), MALFORMED[name])
        assert frames[0] == ["Hello", PROTOCOL, 1000]
        if name != "a frame far above the limit":  # there our unread bytes reset the connection
            assert frames[-1][0] == "Refused"
            assert "closed a connection" in caplog.text
        assert await other.ref("echo").ask(Ping("fine"), Pong) == Pong("FINE")


async def test_a_malformed_payload_fails_alone_on_a_connection_that_goes_on(unix: str) -> None:
    async with house(unix):
        stream = await raw(unix)
        await stream.send_all(
            HELLO
            + encode(Asked(1, "echo", b"\xc1"))
            + encode(Asked(2, "echo", bytes(1001)))
            + encode(Asked(3, "echo", encode(Ping("fine"))))
            + encode(Told(4, "echo", encode(Ping("told"))))
            + encode(Told(0, "nobody", b""))
        )
        unpacker = msgpack.Unpacker()
        frames: dict[object, list[object]] = {}
        with trio.fail_after(30):
            while len(frames) < 4:
                unpacker.feed(await stream.receive_some())
                frames |= {frame[1]: frame for frame in unpacker if frame[0] != "Hello"}
        await stream.aclose()
    assert frames[1][:3] == ["Failed", 1, "MessageError"]
    assert frames[2][:3] == ["Failed", 2, "MessageTooLarge"]
    assert frames[3] == ["Answered", 3, encode(Pong("FINE"))]
    assert frames[4] == ["Accepted", 4]

"""The serving side without a loop speaks as the other one does, to the usual asking side."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.codec import Message, decoder, encode
from rollwave.engine.errors import ActorDead, MessageError
from rollwave.engine.plain import PlainChannel
from rollwave.engine.remote import attach
from rollwave.engine.wire import (
    PROTOCOL,
    Accepted,
    Answered,
    Asked,
    Frame,
    FrameReader,
    Hello,
    Told,
)


class Ping(Message, frozen=True):
    text: str


class Pong(Message, frozen=True):
    text: str


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def serve(sock: socket.socket, told: list[str]) -> None:
    """Answer every ping in capitals until the peer closes."""
    with sock:
        channel = PlainChannel(sock)
        channel.greet()
        while (frame := channel.receive()) is not None:
            assert isinstance(frame, Asked | Told)
            text = decoder(Ping).decode(frame.payload).text
            if isinstance(frame, Asked):
                channel.put(Answered(frame.id, encode(Pong(text.upper()))))
            else:
                told.append(text)


async def test_asks_of_the_usual_side_are_answered() -> None:
    ours, theirs = socket.socketpair()
    told: list[str] = []
    thread = threading.Thread(target=serve, args=(theirs, told))
    thread.start()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    remote = await attach(stream, "the servant")
    answers: dict[int, str] = {}

    async def ask(index: int) -> None:
        answers[index] = (await remote.ref("x").ask(Ping(f"a{index}" * 999), Pong)).text

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.run)
        async with trio.open_nursery() as inner:
            for index in range(200):
                inner.start_soon(ask, index)
        remote.send("x", encode(Ping("urgent")), urgent=True)
        await remote.ref("x").ask(Ping("last"), Pong)
        await remote.close()
    thread.join()
    assert answers == {index: f"A{index}" * 999 for index in range(200)}
    assert told == ["urgent"]


async def test_a_peer_that_leaves_or_babbles_at_the_greeting() -> None:
    for greeting, error in ((b"", ActorDead), (b"\xc1", MessageError)):
        ours, theirs = socket.socketpair()
        theirs.sendall(greeting)
        theirs.shutdown(socket.SHUT_WR)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        with pytest.raises(error):
            await attach(stream, "the servant")
        theirs.close()


def test_what_came_together_is_answered_together() -> None:
    with pair() as (ours, theirs):
        theirs.sendall(b"".join(encode(Told(n, "x", b"")) for n in range(50)))
        channel = PlainChannel(ours)
        theirs.setblocking(False)
        for n in range(50):
            frame = channel.receive()
            assert isinstance(frame, Told)
            channel._since = float("inf")  # however slow this machine is
            channel.put(Accepted(frame.id))
            if n < 49:
                with pytest.raises(BlockingIOError):
                    theirs.recv(1)
        theirs.shutdown(socket.SHUT_WR)
        assert channel.receive() is None  # before it waits, it sends
        assert theirs.recv(1 << 16) == b"".join(encode(Accepted(n)) for n in range(50))


def test_an_answer_is_not_held_for_long() -> None:
    with pair() as (ours, theirs):
        theirs.sendall(encode(Told(1, "x", b"")) + encode(Told(2, "x", b"")))
        channel = PlainChannel(ours)
        channel.receive()
        channel.put(Accepted(1))
        channel._since -= 1.0  # what follows takes long
        channel.receive()
        assert theirs.recv(100) == encode(Accepted(1))


def test_greetings_are_checked() -> None:
    for data, error in (
        (b"", ConnectionResetError),
        (encode(Hello(PROTOCOL + 1, 9)), MessageError),
        (encode(Accepted(1)), MessageError),
        (b"\xc1", MessageError),
    ):
        with pair() as (ours, theirs):
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(error):
                PlainChannel(ours).greet()
    with pair() as (ours, theirs):
        theirs.sendall(encode(Hello(PROTOCOL, 77)))
        channel = PlainChannel(ours)
        channel.greet()
        assert channel.peer_limit == 77


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(1, 97), min_size=1, max_size=8),
)
def test_frames_are_found_in_any_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    frames: list[Frame] = [Asked(n, "x", payload) for n, payload in enumerate(payloads, 1)]
    data = b"".join(map(encode, frames))
    reader, found, position = FrameReader(), [], 0
    while position < len(data):
        size = cuts[position % len(cuts)]
        reader.feed(data[position : position + size])
        position += size
        while (frame := reader.next()) is not None:
            found.append(frame)
    assert found == frames

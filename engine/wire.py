"""Frames on a byte stream: what two processes say so that their actors can talk.

The stream is plain MessagePack, one array after another; `msgpack.Unpacker` finds
where one ends and bounds what is buffered, msgspec checks the types:

    Hello ⇄ Hello                    once: who speaks, and how large a message may be
    Told(id, to, payload) →          ← Accepted(id) | Failed(id, …)
    Asked(id, to, payload) →         ← Answered(id, payload) | Failed(id, …)
    Abandoned(id) →                  nobody waits for that answer any more
    Refused(text)                    the last frame: the stream itself made no sense

Payloads are encoded messages; nobody but the two actors looks into them.

Invariant: a channel buffers at most `HIGH_WATER` bytes beyond one message in
either direction before its users have to wait, whatever the peer sends or does
not read.

Not here: which actors there are and what becomes of asks (`transport`), and the same
frames without an event loop (`plain`).
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgpack
import msgspec
import trio

from .codec import MAX_MESSAGE_BYTES, Message, encode
from .errors import (
    ActorDead,
    ActorError,
    ActorRestarted,
    AskFailed,
    MessageError,
    MessageTooLarge,
)

PROTOCOL: Final = 1
HIGH_WATER: Final = 1 << 20
CONNECT_SECONDS: Final = 10.0
"""For connecting and the greeting, on either side."""
LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
"""How a stream says that the peer is gone."""

CHUNK: Final = 1 << 16
"""Bytes read at once."""
_TEXT: Final = 4096  # longest name or error text; the rest is cut


class Hello(Message, frozen=True):
    """First frame of both sides."""

    protocol: int
    limit: int
    """Largest payload that this side accepts, in bytes."""


class Told(Message, frozen=True):
    """A `tell`. Accepted(id) says that it lies in the mailbox; with id 0 nobody wants to know."""

    id: int
    to: str
    payload: bytes


class Asked(Message, frozen=True):
    """An `ask`."""

    id: int
    to: str
    payload: bytes


class Abandoned(Message, frozen=True):
    """The asker is gone: cancelled or out of time."""

    id: int


class Accepted(Message, frozen=True):
    """The mailbox took what was told."""

    id: int


class Answered(Message, frozen=True):
    """The answer to an ask."""

    id: int
    payload: bytes


class Failed(Message, frozen=True):
    """The error in place of an answer, by class name."""

    id: int
    error: str
    kind: str
    text: str


class Refused(Message, frozen=True):
    """Why the connection is closed."""

    text: str


Frame: TypeAlias = Hello | Told | Asked | Abandoned | Accepted | Answered | Failed | Refused

_ERRORS: Final[dict[str, type[ActorError | MessageError]]] = {
    error.__name__: error
    for error in (ActorDead, ActorError, ActorRestarted, MessageError, MessageTooLarge)
}


def failed(number: int, error: ActorError | MessageError) -> Failed:
    """Put an error into a frame."""
    if isinstance(error, AskFailed):
        return Failed(number, "AskFailed", error.kind, error.text[:_TEXT])
    return Failed(number, type(error).__name__, "", str(error)[:_TEXT])


def raised(frame: Failed) -> ActorError | MessageError:
    """Take the error out again; a class we do not know becomes an `ActorError`."""
    if frame.error == "AskFailed":
        return AskFailed(frame.kind, frame.text)
    return _ERRORS.get(frame.error, ActorError)(frame.text)


def greeting(frame: Frame) -> Hello:
    """Check the peer's first frame."""
    if isinstance(frame, Refused):
        raise MessageError(frame.text)
    if not isinstance(frame, Hello):
        raise MessageError(f"a {type(frame).__name__} frame before the greeting")
    if frame.protocol != PROTOCOL:
        raise MessageError(
            f"protocol {frame.protocol}, ours is {PROTOCOL}: run the same version of Rollwave on "
            "both sides"
        )
    return frame


def too_large(payload: bytes, limit: int) -> MessageTooLarge:
    """Say both sizes."""
    return MessageTooLarge(f"message of {len(payload)} bytes; the other side accepts {limit}")


class FrameReader:
    """Finds the frames in what comes over a stream, whatever pieces it comes in."""

    def __init__(self, limit: int = MAX_MESSAGE_BYTES) -> None:
        self._limit = limit
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=limit + CHUNK + _TEXT,
            # Frames are short flat arrays: a header that announces more is not
            # ours, and must not make us allocate what it announces.
            max_array_len=8,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=4 * _TEXT,
            use_list=False,
        )

    def feed(self, data: bytes | bytearray) -> None:
        """Take what was read, at most `CHUNK` bytes.

        Raises:
            MessageTooLarge: a frame is far above the limit.
        """
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            raise MessageTooLarge(f"a frame above the limit of {self._limit} bytes") from None

    def next(self) -> Frame | None:
        """The next whole frame; None where more has to be read first.

        Raises:
            MessageError: the bytes are no frames of ours. There is no way to go on.
        """
        try:
            record = next(self._unpacker, None)
            if record is None:
                return None
            frame: Frame = msgspec.convert(record, Frame)
        except (msgpack.UnpackException, msgspec.ValidationError, ValueError, TypeError) as bad:
            raise MessageError(f"what is no frame of protocol {PROTOCOL}: {bad}") from None
        return frame


class Channel:
    """Frames over one trio stream. One task runs `write`, one calls `receive`."""

    def __init__(self, stream: trio.abc.Stream, limit: int = MAX_MESSAGE_BYTES) -> None:
        self.limit: Final = limit
        """Largest payload accepted from the peer."""
        self._stream = stream
        self._out: list[bytes] = []
        self._size = 0
        self._wanted = trio.Event()
        self._room = trio.Event()
        self._ended = False
        self._reader = FrameReader(limit)

    def put(self, frame: Frame) -> None:
        """Queue a frame, whatever the queue holds."""
        data = encode(frame)
        self._out.append(data)
        self._size += len(data)
        self._wanted.set()

    @property
    def full(self) -> bool:
        """Whether the peer reads slower than we write: wait with `room`."""
        return self._size >= HIGH_WATER

    async def room(self) -> None:
        """Wait until the queue is below its mark, or nothing will be sent any more."""
        while self.full and not self._ended:
            await self._room.wait()

    async def drained(self) -> None:
        """Wait until all that was queued is sent."""
        while self._size:
            await self._room.wait()

    async def write(self) -> None:
        """Send what is queued, until cancelled.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the peer is gone.
        """
        while True:
            await self._wanted.wait()
            await self.flush()

    async def flush(self) -> None:
        """Send what is queued now."""
        out, self._out = self._out, []
        self._wanted = trio.Event()
        await self._stream.send_all(b"".join(out))
        self._size -= sum(map(len, out))
        if not self.full:
            self._room.set()
            self._room = trio.Event()

    async def receive(self) -> Frame | None:
        """Wait for the peer's next frame; None when it has closed the stream.

        Raises:
            MessageError: the bytes are no frames of ours. There is no way to go on.
            MessageTooLarge: a frame is far above the limit.
            trio.BrokenResourceError, trio.ClosedResourceError: the connection broke.
        """
        while (frame := self._reader.next()) is None:
            data = await self._stream.receive_some(CHUNK)
            if not data:
                return None
            self._reader.feed(data)
        return frame

    async def close(self) -> None:
        """Close the stream at once, without waiting for the peer."""
        self._ended = True
        self._room.set()
        await trio.aclose_forcefully(self._stream)

"""The serving side of a connection without an event loop: for a process that only answers.

    channel = PlainChannel(sock)
    channel.greet()
    while (frame := channel.receive()) is not None:
        channel.put(answer(frame))

What runs between two frames may block, and may run event loops of its own. Answers are
held while more frames lie ready, so that what came together is answered together.

Invariant: no answer is held while this side waits for the peer, nor beyond the first
frame that is taken `HOLD_SECONDS` after it.

Not here: the frames (`wire`), and the asking side, which is the usual one (`remote`).
"""

from __future__ import annotations

import socket
import time
from typing import Final

from .codec import MAX_MESSAGE_BYTES, encode
from .wire import CHUNK, PROTOCOL, Frame, FrameReader, Hello, greeting

HOLD_SECONDS: Final = 0.001
"""Longest time that an answer waits for others to go with it."""


class PlainChannel:
    """Frames over one blocking socket, for one thread."""

    def __init__(self, sock: socket.socket, limit: int = MAX_MESSAGE_BYTES) -> None:
        self.limit: Final = limit
        """Largest payload accepted from the peer."""
        self.peer_limit = 0
        """Largest payload that the peer accepts; known after the greeting."""
        self._socket = sock
        self._reader = FrameReader(limit)
        self._out: list[bytes] = []
        self._since = 0.0

    def greet(self) -> None:
        """Exchange greetings.

        Raises:
            MessageError: the peer does not speak our protocol.
            OSError: it is gone.
        """
        self.put(Hello(PROTOCOL, self.limit))
        frame = self.receive()
        if frame is None:
            raise ConnectionResetError("the peer closed the connection without a greeting")
        self.peer_limit = greeting(frame).limit

    def put(self, frame: Frame) -> None:
        """Queue a frame; it is sent with those that follow it soon."""
        if not self._out:
            self._since = time.monotonic()
        self._out.append(encode(frame))

    def flush(self) -> None:
        """Send what is queued. Waits until the peer has taken it."""
        if self._out:
            out, self._out = self._out, []
            self._socket.sendall(b"".join(out))

    def receive(self) -> Frame | None:
        """Wait for the peer's next frame; None when it has closed the connection.

        Raises:
            MessageError: the bytes are no frames of ours.
            OSError: the connection broke.
        """
        while (frame := self._reader.next()) is None:
            self.flush()
            data = self._socket.recv(CHUNK)
            if not data:
                return None
            self._reader.feed(data)
        if self._out and time.monotonic() - self._since > HOLD_SECONDS:
            self.flush()
        return frame

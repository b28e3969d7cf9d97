"""A worker process: `python -m rollwave.envs.worker.main SOCKET PAGE PARENT NICENESS MIB`.

Started by `process`, with two inherited file descriptors: the connection to the
engine, and the page that says what it is doing. It does nothing but answer, in its main
thread, one call after another; a world may do there what it likes.

Invariants: it ends with its engine, however that ends; what a world prints goes to the
engine's log; a process that a world forks never answers in its place. Neither torch nor a
model is loaded here.

Not here: the sessions themselves (`sessions`).
"""

from __future__ import annotations

import faulthandler
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import cast

from ...engine.codec import Message, decoder, encode
from ...engine.errors import ActorDead, MessageError
from ...engine.lifeline import die_with
from ...engine.plain import PlainChannel
from ...engine.wire import Answered, Asked, Failed, Told, failed, too_large
from ..importable import unpack
from .page import Page
from .protocol import NAME, Load, Loaded, Request, raised
from .sessions import SESSION_REQUESTS, Sessions


def main(arguments: list[str]) -> None:
    """Serve until the engine closes the connection."""
    connection, page_fd, parent, niceness, mebibytes = map(int, arguments)
    die_with(parent)
    _limit(niceness, mebibytes)
    faulthandler.enable()
    sys.stdout = sys.stderr  # as their descriptors are, but with nothing held back
    sock = socket.socket(fileno=connection)
    page = Page(page_fd)
    os.close(page_fd)
    worker = Worker(sock, page)
    with suppress(OSError):  # the engine is gone
        worker.serve()
    worker.close()


class Worker:
    """Answers the engine's frames."""

    def __init__(self, sock: socket.socket, page: Page) -> None:
        self._sock = sock
        self._page = page
        self._channel = PlainChannel(sock)
        self._sessions: Sessions | None = None
        self._process = os.getpid()
        os.register_at_fork(after_in_child=sock.close)
        os.register_at_fork(after_in_child=page.detach)

    def serve(self) -> None:
        """Until the peer closes.

        Raises:
            OSError: the connection broke.
            MessageError: what came is none of ours.
        """
        channel = self._channel
        channel.greet()
        while (frame := channel.receive()) is not None:
            if isinstance(frame, Asked | Told):
                answer = self._answer(frame)
                if os.getpid() != self._process:
                    os._exit(0)  # a process that the world forked, and that came back here
                if isinstance(frame, Asked):
                    channel.put(answer)

    def close(self) -> None:
        """Close what is open."""
        if self._sessions is not None:
            self._sessions.close()

    def _answer(self, frame: Asked | Told) -> Answered | Failed:
        if frame.to != NAME:
            return failed(frame.id, ActorDead(f"no {frame.to!r} here; there is {NAME}"))
        try:
            payload = encode(self._do(frame.payload))
            if len(payload) > self._channel.peer_limit:
                raise too_large(payload, self._channel.peer_limit)
        except MessageError as error:
            return failed(frame.id, error)
        return Answered(frame.id, payload)

    def _do(self, payload: bytes) -> Message:
        if self._sessions is not None:
            request = cast(Request, decoder(*SESSION_REQUESTS).decode(payload))
            return self._sessions.answer(request)
        load = decoder(Load).decode(payload)
        sys.path[:] = load.paths
        try:
            make = unpack(load.make)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (told to the engine)
            return raised(error)
        self._sessions = Sessions(make, self._page)
        return Loaded()


def _limit(niceness: int, mebibytes: int) -> None:
    os.nice(niceness)
    limit = mebibytes << 20
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    with suppress(OSError, ValueError):  # not everywhere; the engine watches as well
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


if __name__ == "__main__":
    main(sys.argv[1:])

"""One page of memory that a worker process and the engine share.

    session in call · began (ns, monotonic) · calls answered · steps answered · sessions open

A process that hangs or dies says nothing any more; here stands which session's call it
was in, and since when.

Invariant: the worker alone writes, the engine alone reads; each number is one aligned
store of eight bytes, and "began" is written before the session it belongs to.

Not here: what is done about it (`actor`).
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from dataclasses import dataclass
from typing import Final

_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker is doing."""

    session: int
    """In whose call it is; 0 if in none."""
    seconds: float
    """How long it has been in that call."""
    calls: int
    """Answered since the start."""
    steps: int
    """Steps among them."""
    sessions: int
    """Open now."""


class Page:
    """The shared page, on either side."""

    def __init__(self, fd: int) -> None:
        """Map the page behind a file descriptor, which stays the caller's."""
        self._map = mmap.mmap(fd, _BYTES)
        self._cells = memoryview(self._map).cast("q")

    @classmethod
    def create(cls) -> tuple[Page, int]:
        """A new page, and the file descriptor to hand to the worker and close then."""
        with tempfile.TemporaryFile() as file:
            file.truncate(_BYTES)
            fd = os.dup(file.fileno())
        try:
            return cls(fd), fd
        except BaseException:
            os.close(fd)
            raise

    # -- the worker -----------------------------------------------------------

    def begin(self, session: int) -> None:
        """A call of that session begins."""
        self._cells[1] = time.monotonic_ns()
        self._cells[0] = session

    def end(self, *, step: bool) -> None:
        """The call has been answered."""
        self._cells[0] = 0
        self._cells[2] += 1
        if step:
            self._cells[3] += 1

    def count(self, sessions: int) -> None:
        """So many sessions are open."""
        self._cells[4] = sessions

    def detach(self) -> None:
        """Write to memory of one's own from now on: a process that the worker forked."""
        self._cells = memoryview(bytearray(_BYTES)).cast("q")

    # -- the engine -----------------------------------------------------------

    def read(self) -> Progress:
        """What the worker is doing now."""
        cells = self._cells
        while True:
            session, began = cells[0], cells[1]
            if cells[0] == session and cells[1] == began:
                break
        # The real clock: a process hangs in real time, and there is none in a simulation.
        seconds = (time.monotonic_ns() - began) / 1e9 if session else 0.0
        return Progress(session, seconds, cells[2], cells[3], cells[4])

    def close(self) -> None:
        """Unmap it."""
        self._cells.release()
        self._map.close()

"""Counting permits with a queue: who may start now, and who waits.

The collector hands permits out and takes them back; the dispatcher holds one for
each live episode. Resizing while permits are held is how backpressure is
applied: at size 0 nothing new starts and nothing that runs is dropped.

Invariants: waiters are served in order; a permit is held by exactly one taker
from the moment it is granted, so a waiter cancelled before that leaves no trace;
`held` exceeds `size` only after shrinking, and then only falls.

Not here: rates (permits per second) and priorities.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import trio


@dataclass(frozen=True, slots=True)
class PermitStatistics:
    """What permits were used for so far."""

    size: int
    """Permits that may be held at once."""
    held: int
    """Held now."""
    waiting: int
    """Tasks waiting now."""
    peak_held: int
    peak_waiting: int
    granted: int
    """Granted since the start."""


class Permits:
    """A number of permits; `async with permits:` holds one.

    Args:
        size: how many may be held at once, 0 or more.
    """

    __slots__ = ("_granted", "_held", "_peak_held", "_peak_waiting", "_queue", "_size")

    def __init__(self, size: int) -> None:
        self._size = _checked(size)
        self._held = 0
        self._granted = 0
        self._peak_held = 0
        self._peak_waiting = 0
        self._queue = trio.lowlevel.ParkingLot()

    @property
    def size(self) -> int:
        """How many may be held at once."""
        return self._size

    @property
    def held(self) -> int:
        """How many are held now."""
        return self._held

    def acquire_nowait(self) -> None:
        """Take a permit now.

        Raises:
            trio.WouldBlock: none is free, or others were first.
        """
        if self._held >= self._size or self._queue:
            raise trio.WouldBlock
        self._grant()

    async def acquire(self) -> None:
        """Take a permit, waiting in line for it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.acquire_nowait()
        except trio.WouldBlock:
            self._peak_waiting = max(self._peak_waiting, len(self._queue) + 1)
            # Whoever unparks us has granted the permit already: a cancellation
            # that arrives after that is delivered at our next checkpoint, with
            # the permit in our hands.
            await self._queue.park()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def release(self) -> None:
        """Give one permit back; the first in line gets it.

        Raises:
            RuntimeError: none is held: a defect of the caller.
        """
        if not self._held:
            raise RuntimeError("a permit was released that nobody holds")
        self._held -= 1
        self._serve()

    def resize(self, size: int) -> None:
        """Change how many may be held. Growing serves waiters at once; shrinking takes
        nothing away from those who hold a permit."""
        self._size = _checked(size)
        self._serve()

    def statistics(self) -> PermitStatistics:
        """Give the counts and peaks so far."""
        return PermitStatistics(
            size=self._size,
            held=self._held,
            waiting=len(self._queue),
            peak_held=self._peak_held,
            peak_waiting=self._peak_waiting,
            granted=self._granted,
        )

    def _grant(self) -> None:
        self._held += 1
        self._granted += 1
        self._peak_held = max(self._peak_held, self._held)

    def _serve(self) -> None:
        while self._queue and self._held < self._size:
            self._grant()
            self._queue.unpark()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _checked(size: int) -> int:
    if size < 0:
        raise ValueError(f"the number of permits is 0 or more, not {size}")
    return size

"""Waves explored ahead of the learner: the other half of asynchronous evolution.

    explorer   wave 1 │ wave 2   │ wave 3     │ …        begins with whatever policy serves
    learner           │ π1 ─ swap│ π2 ── swap │ …        episodes that run go on with the new one

With `max_staleness` S, wave m may begin once π_{m-1-S} serves: the learner, which trains
wave m from π_{m-1}, then meets no token older than S policies.

Invariants: one wave is explored at a time, and each is handed over once, in order; an error
of the exploration reaches the learner's side where it asks for that wave, so that a step
that has begun is not lost; whoever leaves stops the exploration, and what had ended of it is
in the journal.

Not here: what a wave is (`explorer`), and what the learner does with it (`evolution`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from ..engine.errors import RollwaveError
from ..engine.incarnation import sole
from .arena import Arena
from .explorer import Explored, Explorer


class Ahead:
    """What was explored and not taken yet."""

    def __init__(self, explorer: Explorer, arena: Arena, max_staleness: int) -> None:
        self._explorer = explorer
        self._arena = arena
        self._max_staleness = max_staleness
        self._send, self._receive = trio.open_memory_channel[Explored | RollwaveError](
            max_staleness + 1
        )

    async def explore(self, waves: Iterable[int]) -> None:
        """Explore these waves, as far ahead as is allowed."""
        for wave in waves:
            await self._arena.reached(wave - 1 - self._max_staleness)
            try:
                found: Explored | RollwaveError = await self._explorer.explore(wave)
            except RollwaveError as error:
                found = error
            await self._send.send(found)
            if isinstance(found, RollwaveError):
                return

    async def take(self) -> Explored:
        """Wait for the next wave.

        Raises:
            RollwaveError: what its exploration failed with.
        """
        found = await self._receive.receive()
        if isinstance(found, RollwaveError):
            raise found
        return found


@asynccontextmanager
async def exploring_ahead(
    explorer: Explorer, arena: Arena, waves: Iterable[int], max_staleness: int
) -> AsyncIterator[Ahead]:
    """Explore beside the block. The arena's engine is open: it must outlive this."""
    ahead = Ahead(explorer, arena, max_staleness)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ahead.explore, waves)
            yield ahead
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None  # the block's own, as it was raised

"""Takes the record of every ended episode, makes it durable, and hands it on.

Records are journalled and then delivered to the rollout's stream in the order
they arrived. One write and one fsync serve all records that came in meanwhile
(group commit), so durability costs an episode microseconds.

Invariants: each episode is delivered once; nothing is delivered before the
journal holds it; a slow consumer fills the stream, then this mailbox, then holds
the sessions' permits, and nothing is dropped.

A journal that fails ends its rollout with that one error; other rollouts go on.

Not here: sealing waves (`engine.store`) and grouping for a learner (`learners`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from ..engine.actor import Actor
from ..engine.errors import StoreError
from ..engine.trajectory import Trajectory
from .ledger import Ledger, RolloutBook
from .protocol import EpisodeEnded

_UNDELIVERED: Final = 1024
"""Records between mailbox and stream: one group commit at most takes this many."""


class Collector(Actor):
    """The one receiver of trajectories."""

    receives = (EpisodeEnded,)
    has_tasks = True
    mailbox_capacity = 4096

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._undelivered = ledger.undelivered
        self._arrived = trio.Event()
        self._room = trio.Event()

    async def on_start(self) -> None:
        """Start the delivery task; it begins with what a predecessor left."""
        if self._undelivered:
            self._arrived.set()
        self.background(self._deliver)

    async def receive(self, message: EpisodeEnded) -> None:  # type: ignore[override]
        """Strike the episode out and queue its record; refuse what is not open."""
        trajectory = message.trajectory
        book = self._ledger.books.get(message.rollout)
        if book is None or trajectory.id not in book.open:
            return
        trajectory.check()
        if book.journal is not None:
            book.journal.append(trajectory)
        book.end(trajectory)
        self._undelivered.append((book, trajectory))
        self._arrived.set()
        while len(self._undelivered) >= _UNDELIVERED:
            self._room = trio.Event()
            await self._room.wait()

    async def _deliver(self) -> None:
        """Commit, then hand on, as many records at a time as have arrived."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            batch = len(self._undelivered)
            for book in {id(book): book for book, _ in self._undelivered}.values():
                await self._commit(book)
            for _ in range(batch):
                await self._hand_on(*self._undelivered[0])
                self._undelivered.popleft()
                self._room.set()
            if self._undelivered:
                self._arrived.set()

    async def _commit(self, book: RolloutBook) -> None:
        if book.journal is None or book.error is not None:
            return
        try:
            await book.journal.sync()
        except StoreError as error:
            book.fail(error)

    async def _hand_on(self, book: RolloutBook, trajectory: Trajectory) -> None:
        # Nobody listens any more (the journal has it), or the book failed.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await book.stream.send(trajectory)
        book.delivered += 1
        if book.complete and book.delivered == book.ended:
            book.stream.close()

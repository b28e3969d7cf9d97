"""Takes the record of every ended episode, makes it durable, and hands it on.

Records are journalled and then delivered to the rollout's stream in the order
they arrived. One write and one fsync serve all records that came in meanwhile
(group commit), so durability costs an episode microseconds.

Turns of live episodes are in the journal too (`turnlog`); somebody has to commit them
when no episode ends for a while, and that is done here, about once a second.

Invariants: each episode is delivered once; nothing is delivered before the
journal holds it; a record is accepted (the answer to its session) only when the
ledger has it, and no consumer makes the collector wait: a slow one holds back the
admission of its own rollout (`ledger`).

A journal that fails ends its rollout with that one error; other rollouts go on.

Not here: sealing waves (`engine.store`) and grouping for a learner (`learners`).
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from ..engine.actor import Actor
from ..engine.errors import BadSample, MessageTooLarge, StoreError, classify
from ..engine.trajectory import Fault, Trajectory
from .ledger import Ledger, RolloutBook
from .protocol import Accepted, EpisodeEnded

_TURNS_SECONDS: Final = 0.5
"""A turn may be on its way to the disk for so long, if no record takes it along."""

_log: Final = logging.getLogger("rollwave.actors")


class Collector(Actor):
    """The one receiver of trajectories."""

    receives = (EpisodeEnded,)
    has_tasks = True
    mailbox_capacity = 4096

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._undelivered = ledger.undelivered
        self._arrived = trio.Event()

    async def on_start(self) -> None:
        """Start the delivery task; it begins with what a predecessor left."""
        if self._undelivered:
            self._arrived.set()
        self.background(self._deliver)
        self.background(self._commit_turns)

    async def receive(self, message: EpisodeEnded) -> Accepted:  # type: ignore[override]
        """Strike the episode out and queue its record; what is not open is not looked at."""
        book = self._ledger.books.get(message.rollout)
        if book is not None and message.trajectory.id in book.open:
            self._enter(book, message.trajectory)
            book.resumed += message.resumed > 0
            if message.restarted:
                level = logging.INFO if book.restarted else logging.WARNING  # the first tells
                _log.log(level, "%s began anew: %s", message.trajectory.id, message.restarted)
                book.restarted += 1
        return Accepted()

    def _enter(self, book: RolloutBook, trajectory: Trajectory) -> None:
        try:
            trajectory = _sound(book, trajectory)
        except StoreError as error:  # the journal was closed under the rollout
            book.fail(error)
        book.end(trajectory)
        self._undelivered.append((book, trajectory))
        self._arrived.set()

    async def _deliver(self) -> None:
        """Commit, then hand on, as many records at a time as have arrived."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            batch = len(self._undelivered)
            for book in {id(book): book for book, _ in self._undelivered}.values():
                await self._commit(book)
            for _ in range(batch):
                book, trajectory = self._undelivered.popleft()
                book.deliver(trajectory)
            if self._undelivered:
                self._arrived.set()

    async def _commit_turns(self) -> None:
        """Bring logged turns to the disk where no record does."""
        while True:
            await self._ledger.stirred.wait()
            await trio.sleep(_TURNS_SECONDS)
            self._ledger.stirred = trio.Event()
            for book in list(self._ledger.books.values()):
                await self._commit(book)

    async def _commit(self, book: RolloutBook) -> None:
        if book.journal is None or book.error is not None or not book.journal.pending:
            return
        try:
            await book.journal.sync()
        except StoreError as error:
            book.fail(error)


def _sound(book: RolloutBook, trajectory: Trajectory) -> Trajectory:
    """Append the record to the journal; a fault stands in for one that cannot be kept."""
    try:
        trajectory.check()
        if book.journal is not None:
            book.journal.append(trajectory)
    except (BadSample, MessageTooLarge) as error:
        fault = Fault(*classify(error), len(trajectory.turns))
        trajectory = book.stand_in(book.open[trajectory.id], fault)
        if book.journal is not None:
            book.journal.append(trajectory)
    return trajectory

"""What was admitted and what has ended: the book behind "exactly one outcome".

The dispatcher enters every episode before its session exists; the collector
strikes it out when its record arrives. The first record wins, any later one is
refused, and a rollout is complete when nothing is open.

Invariant: for every admitted id, exactly one trajectory is handed to the stream.

Records wait here between the collector's mailbox and their stream, so that a
collector that dies takes none with it. The engine owns the ledger, outside every
actor: a restarted dispatcher or collector finds it as its predecessor left it.

Not here: delivery (`collector`) and admission (`dispatcher`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from ..engine.errors import StoreError
from ..engine.journal import Journal
from ..engine.trajectory import Outcome, Trajectory
from .protocol import RunEpisode
from .session import SessionSettings


@dataclass
class RolloutBook:
    """One rollout: its settings, what is open, what has ended, and where records go."""

    settings: Mapping[str, SessionSettings]
    """By environment id."""
    planned: int
    """Episodes to be admitted in all."""
    stream: trio.MemorySendChannel[Trajectory]
    journal: Journal | None = None
    open: dict[str, RunEpisode] = field(default_factory=dict)
    admitted: int = 0
    ended: int = 0
    delivered: int = 0
    turns: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    cancelled: bool = False
    error: StoreError | None = None
    """Why the rollout cannot go on: its journal failed. Raised to whoever iterates."""

    @property
    def complete(self) -> bool:
        """Whether every episode that ever will be admitted has ended."""
        everything_admitted = self.cancelled or self.admitted == self.planned
        return everything_admitted and not self.open

    def admit(self, order: RunEpisode) -> None:
        """Enter an episode."""
        self.open[order.id] = order
        self.admitted += 1

    def end(self, trajectory: Trajectory) -> bool:
        """Strike an episode out; False if it had ended before or was never admitted."""
        if self.open.pop(trajectory.id, None) is None:
            return False
        self.ended += 1
        self.turns += len(trajectory.turns)
        self.outcomes[trajectory.outcome] += 1
        return True

    def fail(self, error: StoreError) -> None:
        """End the rollout early with an error; what was delivered stays delivered."""
        self.error = self.error or error
        self.cancelled = True
        self.stream.close()


class Ledger:
    """The books of all rollouts of one engine, by rollout number."""

    def __init__(self) -> None:
        self.books: dict[int, RolloutBook] = {}
        self.undelivered: deque[tuple[RolloutBook, Trajectory]] = deque()
        self._last = 0

    def open_book(self, book: RolloutBook) -> int:
        """Enter a new rollout and give it its number."""
        self._last += 1
        self.books[self._last] = book
        return self._last

    def close_book(self, rollout: int) -> None:
        """Forget a rollout; records that still arrive for it are refused."""
        self.books.pop(rollout, None)

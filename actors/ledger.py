"""What was admitted and what has ended: the book behind "exactly one outcome".

The dispatcher enters every episode before its session runs; the collector
strikes it out when its record arrives. The first record wins, any later one is
refused, and a rollout is complete when nothing is open.

Invariants:

* for every admitted id, exactly one trajectory is handed to the stream;
* a rollout runs at most `lead` episodes ahead of its consumer, so that a slow one
  holds its own rollout back and nobody else's.

Records wait here between the collector's mailbox and their stream, so that a
collector that dies takes none with it. The engine owns the ledger, outside every
actor: a restarted dispatcher or collector finds it as its predecessor left it.

Not here: delivery (`collector`) and admission (`dispatcher`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from ..engine.clock import rolling_deadline
from ..engine.errors import FaultKind, RollwaveError
from ..engine.journal import Journal
from ..engine.trajectory import Fault, Outcome, Trajectory
from .episode import SessionSettings
from .protocol import Opening, RunEpisode, RunRollout, TurnTaken


@dataclass
class RolloutBook:
    """One rollout: its settings, what is open, what has ended, and where records go."""

    settings: Mapping[str, SessionSettings]
    """By environment id."""
    planned: int
    """Episodes to be admitted in all."""
    stream: trio.MemorySendChannel[Trajectory]
    """Unbounded: `room` is what bounds it."""
    journal: Journal | None = None
    begun: dict[str, Sequence[TurnTaken]] = field(default_factory=dict)
    """Turns of episodes that were live in a crash, by id; given to their sessions, once."""
    openings: Mapping[str, Opening] = field(default_factory=dict)
    """How episodes begin that go on behind another's turns, by id."""
    live: dict[str, rolling_deadline] = field(default_factory=dict)
    """Deadlines of the live episodes that have begun to play."""
    order: RunRollout | None = None
    """Set when the dispatcher has accepted it: what its next incarnation goes on with."""
    open: dict[str, RunEpisode] = field(default_factory=dict)
    admitted: int = 0
    ended: int = 0
    delivered: int = 0
    taken: int = 0
    """Records that the consumer has."""
    turns: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    faults: Counter[FaultKind] = field(default_factory=Counter)
    resumed: int = 0
    """Episodes that went on in the middle, behind turns of before a crash."""
    restarted: int = 0
    """Episodes that began anew, because those turns could not be rebuilt."""
    cancelled: bool = False
    error: RollwaveError | None = None
    """Why the rollout cannot go on (its journal failed, the engine closed). Raised to
    whoever iterates."""
    _moved: trio.Event = field(default_factory=trio.Event)

    @property
    def complete(self) -> bool:
        """Whether every episode that ever will be admitted has ended."""
        everything_admitted = self.cancelled or self.admitted == self.planned
        return everything_admitted and not self.open

    async def room(self, lead: int) -> None:
        """Wait until fewer than `lead` admitted episodes are missing at the consumer."""
        while self.admitted - self.taken >= lead and not self.cancelled:
            self._moved = trio.Event()
            await self._moved.wait()

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
        if trajectory.fault is not None:
            self.faults[trajectory.fault.kind] += 1
        return True

    def deliver(self, trajectory: Trajectory) -> None:
        """Hand an ended episode to the consumer; to nobody, if nobody listens any more."""
        self.delivered += 1
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self.stream.send_nowait(trajectory)
        self.settle()

    def take(self, records: int = 1) -> None:
        """Note that the consumer has taken so many records."""
        self.taken += records
        self._moved.set()

    def cancel(self) -> None:
        """Admit nothing more."""
        self.cancelled = True
        self._moved.set()

    def fail(self, error: RollwaveError) -> None:
        """End the rollout early with an error; what was delivered stays delivered."""
        self.error = self.error or error
        self.cancel()
        self.stream.close()

    def settle(self) -> None:
        """End the stream if nothing more will come."""
        if self.complete and self.delivered == self.ended:
            self.stream.close()

    def slowest(self, now: float) -> tuple[str, float] | None:
        """The stage that has lasted longest among the live episodes, and its seconds.

        Looks at each of them: ask about once a second, not for each record.
        """
        stages = (limit.current() for limit in self.live.values())
        stage, began = min(stages, key=lambda found: found[1], default=("", now))
        return (stage, now - began) if stage else None

    def stand_in(self, order: RunEpisode, fault: Fault | None = None) -> Trajectory:
        """The record of an episode that has none of its own: a fault, or cancelled."""
        return Trajectory(
            id=order.id,
            env=order.task.env,
            task_id=order.task.id,
            split=order.task.split,
            wave=order.wave,
            attempt=order.attempt,
            seed=order.seed,
            environment_seed=order.environment_seed,
            outcome=Outcome.FAULT if fault else Outcome.CANCELLED,
            reward=None,
            fault=fault,
            policy=self.settings[order.task.env].policy_name,
        )


class Ledger:
    """The books of all rollouts of one engine, by rollout number."""

    def __init__(self) -> None:
        self.books: dict[int, RolloutBook] = {}
        self.undelivered: deque[tuple[RolloutBook, Trajectory]] = deque()
        self.stirred = trio.Event()
        """Set when a journal has turns that no commit covers yet; made anew by who sees to it."""
        self._last = 0

    def open_book(self, book: RolloutBook) -> int:
        """Enter a new rollout and give it its number."""
        self._last += 1
        self.books[self._last] = book
        return self._last

    def stir(self) -> None:
        """Note that turns were logged."""
        self.stirred.set()

    def close_book(self, rollout: int) -> None:
        """Forget a rollout; records that still arrive for it are refused."""
        self.books.pop(rollout, None)

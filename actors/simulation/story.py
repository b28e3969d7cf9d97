"""What happened while a fault plan was played: the evidence that the invariants are held to.

Invariant: a story holds values only; whatever was live in it has ended.

Not here: who plays it (`drill`), and what must hold (`invariants`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...engine.testing import event_digest
from ...engine.trajectory import Trajectory, Wave
from .fault_plan import FaultPlan

Ending = Literal["done", "killed", "cancelled", "failed", "stuck"]


@dataclass(frozen=True, slots=True)
class RolloutStory:
    """One rollout, as the ledger had it when its process ended."""

    planned: int
    admitted: int
    ended: int
    delivered: int
    open: tuple[str, ...]
    failed: bool
    """It ended with an error: its journal's, or that the engine closed."""
    cancelled: bool


@dataclass(slots=True)
class ProcessStory:
    """One run of the command."""

    number: int
    ended: Ending = "stuck"
    error: BaseException | None = None
    directory: str = ""
    """Where it ran: error texts name it, and it is no part of the story."""
    yielded: list[Trajectory] = field(default_factory=list)
    """What the rollouts gave to who iterated, in order, before any crash."""
    rollouts: list[RolloutStory] = field(default_factory=list)
    permits_held: int = 0
    confirmed: list[tuple[float, int]] = field(default_factory=list)
    """When each policy version was confirmed by inference."""
    struck: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    steps: int = 0
    """Steps of all tasks."""
    seconds: float = 0.0
    """Virtual."""
    journalled: Mapping[str, Trajectory] = field(default_factory=dict)
    """Ended episodes that the journal held when it was over."""
    sealed: Mapping[int, bytes] = field(default_factory=dict)
    """The files of the sealed waves when it was over, by number."""
    damage: str = ""
    """What could not be read of them."""


@dataclass(slots=True)
class Story:
    """All runs of the command, up to its end and once more."""

    plan: FaultPlan
    processes: list[ProcessStory] = field(default_factory=list)
    waves: dict[int, Wave] = field(default_factory=dict)
    """As they were sealed in the end."""
    weights: dict[int, int] = field(default_factory=dict)
    """Of each policy version."""

    @property
    def struck(self) -> Counter[str]:
        """Strikes of all processes, by boundary and kind."""
        return sum((process.struck for process in self.processes), Counter())

    @property
    def digest(self) -> str:
        """One hash of everything that happened, in order, with its virtual times."""
        events: list[object] = []
        for process in self.processes:
            error = repr(process.error).replace(process.directory, "RUN")
            events.append((process.number, process.ended, error, process.seconds))
            events += process.yielded
            events += process.confirmed
            events.append((process.steps, sorted(process.struck.items())))
            events += sorted(process.sealed.items())
        return event_digest(events)

"""What a learner is: waves in, a new policy and a report out.

Invariants: a learner never sees a faulted trajectory (`filters` drops and counts
them first); the same waves, start and seed give the same weights on a CPU; what
was dropped is in the report, by reason.

Not here: when a learner runs (`actors.campaign`), or on which thread (`actors.learner`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..engine.errors import ConfigError
from ..engine.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """One trajectory as a learner takes it, or one turn of it (`model.turns`): tokens, where the
    loss is, and how much it counts."""

    id: str
    token_ids: Sequence[int]  # [n]
    loss_mask: Sequence[int]  # [n], 1 where the agent wrote
    logprobs: Sequence[float] = ()  # [n] behaviour log-probs, or empty for experts
    weight: float = 1.0
    episode: str = ""
    """Of one turn alone: the trajectory that it is of, which lies in one optimiser step."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one evolution step did."""

    metrics: Mapping[str, float]
    """Last value of loss, grad_norm, …, and steps, tokens, seconds."""
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Trajectories left out, by reason."""


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each optimiser step with (step, steps, metrics).

A run that goes on after a crash calls it once before, with the step it resumes at; its
metrics then have `resumed`. What it raises ends the training; what is checkpointed stays.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a campaign has when an evolution step begins."""

    starts: Mapping[str, str]
    """Model directories by role: "pretrained" (before cloning), "base_bc" (cloned from the
    experts, or pretrained), "last" (the newest policy)."""
    experts: Sequence[Trajectory] = ()
    waves: Sequence[Sequence[Trajectory]] = ()
    """Sealed waves of this campaign, oldest first; as many as the algorithm's `history` asks."""
    number: int = 1
    """Of the newest wave, counted from 1."""
    evaluation: frozenset[tuple[str, str]] = frozenset()
    """(environment id, task id) of tasks that must never be learned from."""

    def start(self, role: str) -> str:
        """The model directory of a role.

        Raises:
            ConfigError: there is none.
        """
        if role not in self.starts:
            raise ConfigError(f"the evolution step needs a model directory to start from: {role!r}")
        return self.starts[role]


class Learner(ABC):
    """One algorithm with its settings."""

    @abstractmethod
    def update(
        self, trajectories: Sequence[Trajectory], *, out: str, progress: Progress | None = None
    ) -> Report:
        """Run one evolution step and save the new policy as a model directory at `out`.

        Blocks; the learner actor calls it from a thread.

        Raises:
            EmptyWave: nothing usable; the text counts what was dropped by reason.
        """

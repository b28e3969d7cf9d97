"""What a rollout looks like from outside, moment by moment.

Not here: how it is shown (`cli.progress`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimiser step, as the learner reports it."""

    name: str
    """Of the model directory in the making: "policy-0002"."""
    step: int
    steps: int
    metrics: Mapping[str, float]
    """`resumed` is the step at which a training went on; one that equals `step` only says so."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures of one moment, for progress views and services that watch a run."""

    stage: str = ""
    """What is being done, in a few words: "wave 2: rollout"."""
    sessions_live: int = 0
    episodes_done: int = 0
    episodes_total: int = 0
    """0 = not known yet."""
    turns: int = 0
    turns_per_second: float = 0.0
    """Over the last few seconds."""
    batch_fill: float = 0.0
    """Mean share of the inference batch in use, in [0, 1]; 0 where it is unbounded."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Finished episodes by outcome name."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """Faulted episodes by kind."""
    resumed: int = 0
    """Episodes that went on in the middle, behind turns of before a crash."""
    restarted: int = 0
    """Episodes that began anew after one, because those turns could not be rebuilt."""
    slowest: str = ""
    """The live episode that is longest in one stage: its stage and seconds, if it is long."""
    success_rate: float | None = None
    """Successes over scored episodes so far; None before the first."""
    training: TrainingStep | None = None
    """The optimiser step that this is told of, if it is of one."""


Watch = Callable[[Snapshot], None]
"""Somebody who is told how it goes; called often, also from threads: it must only take note."""

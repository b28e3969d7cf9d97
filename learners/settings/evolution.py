"""AgentEvol and rejection fine-tuning: which trajectories make the data of a wave.

Not here: how they are trained on (`training.loop`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from .base import require
from .learner import History, LearnerSettings

Merge = Literal["initial", "previous", "cumulative", "none"]
Start = Literal["base_bc", "pretrained", "last"]
Weight = Literal["binary", "reward", "exp"]
Choose = Literal["first", "shortest", "random"]
"""Which attempts at a task survive a cap: in attempt order, with the fewest turns, or drawn."""


class EvolSettings(LearnerSettings, frozen=True, tag="agent_evol"):
    """AgentEvol: which trajectories make the data of a wave, and where training starts."""

    merge: Merge = "initial"
    """With what the wave's own data D_m are merged: the experts D_s, the previous wave's
    data (D_0 = D_s), everything so far (D_s and all waves), or nothing."""
    start: Start = "base_bc"
    """Every wave is trained from the cloned base, from the pretrained model, or from the
    last wave's policy."""
    weight: Weight = "binary"
    """Weight of a trajectory in the loss: 1, its reward r, or exp(r / beta)."""
    beta: float = 1.0
    thresholds: dict[str, float] = msgspec.field(default_factory=dict)
    """Environment id (or "*") → reward that must be exceeded, strictly. Default 0.99."""
    per_task_cap: int = 1
    """Successes kept of each task and wave; 0: all."""
    choose: Choose = "first"
    """Which ones. "first" is the published rule; "shortest" is a deviation from it."""
    distinct: bool = True
    """Attempts that repeat the actions of another at the same task count once. Matters only
    where more than one is kept of a task; False for the exact reward-weighted estimate."""
    max_new_ratio: float | None = None
    """Largest number of new trajectories for each expert one; None: no limit."""
    seed: int = 0
    """Of random choices among trajectories."""

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "positive")
        require(self.per_task_cap >= 0, "per_task_cap", self.per_task_cap, "0 or more")
        ratio = self.max_new_ratio
        require(ratio is None or ratio > 0, "max_new_ratio", ratio, "positive")


class RejectionSettings(LearnerSettings, frozen=True, tag="rft"):
    """Rejection fine-tuning: the pretrained model is trained once on experts and successes."""

    history: ClassVar[History] = "last"

    start: Start = "pretrained"
    thresholds: dict[str, float] = msgspec.field(default_factory=dict)
    """Environment id (or "*") to the reward that must be exceeded, strictly. Default 0.99."""
    per_task_cap: int = 4
    """Successes with different actions that are kept of each task; 0: all."""

    def __post_init__(self) -> None:
        require(self.per_task_cap >= 0, "per_task_cap", self.per_task_cap, "0 or more")

"""Learning from pairs: DPO on success and failure, and ETO on experts and failures.

Not here: how pairs are made (`pairs`), and the losses (`preferences.losses`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from .base import require
from .evolution import Start
from .learner import Exploration, History, LearnerSettings, Scope
from .training import TrainingSettings

PreferenceLoss = Literal["sigmoid", "ipo"]
Pairing = Literal["self", "expert", "two_samples"]
Contrast = Literal["trajectory", "step", "mixture"]
Opening = Literal["none", "rejection"]


class PreferenceSettings(LearnerSettings, frozen=True):
    """What DPO and ETO share: the loss of a pair."""

    beta: float = 0.1
    """How far the policy may leave the reference: larger holds it closer."""
    loss: PreferenceLoss = "sigmoid"
    """-log sigma(beta h), or IPO's (h - 1 / (2 beta))^2."""
    label_smoothing: float = 0.0
    """Share of labels that are taken to be wrong."""
    length_normalised: bool = False
    """Divide the log-probability of each side by its action tokens. A deviation."""
    nll: float = 0.0
    """Weight of the chosen side's mean negative log-likelihood (RPO)."""
    dpop: float = 0.0
    """Weight of the penalty on a chosen side that falls below the reference (DPOP)."""
    reference: str = "start"
    """The policy that is compared with: the "start" of this evolution step, "base_bc",
    "pretrained", or a model directory."""
    pairs_per_task: int = 1
    """Pairs of whole trajectories kept of each task and wave, the widest in reward first;
    0: all."""
    min_pairs: int = 1
    """With fewer there is nothing to learn from, and the campaign ends."""

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "positive")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "label_smoothing", smoothing, "in [0, 0.5)")
        require(bool(self.reference), "reference", self.reference, "a role or a model directory")
        for key in ("nll", "dpop", "pairs_per_task"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        require(self.min_pairs > 0, "min_pairs", self.min_pairs, "positive")
        smooth = not (smoothing and self.loss == "ipo")
        require(smooth, "label_smoothing", smoothing, '0 with loss = "ipo"')
        lora = self.training.lora
        still = lora is None or lora.dropout == 0
        require(still, "training.lora.dropout", lora and lora.dropout, "0 where policies compare")


class DpoSettings(PreferenceSettings, frozen=True, tag="dpo"):
    """DPO on the policy's own success and failure."""

    history: ClassVar[History] = "last"

    pairing: Pairing = "self"
    """Best against worst of a task's attempts; the expert against its worst attempt; or, as
    AgentGym published it, the lower of the first half of the attempts against the lower of
    the second."""
    gap: float = 0.01
    """Least difference in reward between the sides."""
    threshold: float = 0.7
    """Least reward of the chosen side."""
    start: Start = "last"
    """Where every wave is trained from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gap >= 0, "gap", self.gap, "0 or more")

    @property
    def compares(self) -> bool:
        """With the experts as the chosen side."""
        return self.pairing == "expert"


class EtoSettings(PreferenceSettings, frozen=True, tag="eto"):
    """Exploration-based trajectory optimisation. It explores with
    temperature 0 and one attempt; self-play with 1.0 and two attempts or more."""

    scope: Scope = "expert_tasks"
    contrast: Contrast = "trajectory"
    """Whole trajectories, single turns behind the expert's own, or both."""
    max_extra_turns: int | None = 5
    """A rejected exploration is cut to the expert's turns and so many; None: it is not."""
    self_play: bool = False
    """No experts: the best own trajectory of each task takes their place."""
    opening: Opening = "none"
    """What the first wave is for: ETO at once, or rejection fine-tuning before it."""
    thresholds: dict[str, float] = msgspec.field(default_factory=dict)
    """Of the opening: environment id (or "*") to the reward that must be exceeded. 0.99."""
    per_task_cap: int = 4
    """Of the opening: successes kept of each task."""
    opening_training: TrainingSettings = TrainingSettings()
    """Of the opening: how it is trained. `training` is that of the iterations."""
    lrs: tuple[float, ...] = ()
    """Learning rate of each iteration, the last one repeated; empty: always `training.lr`."""
    betas: tuple[float, ...] = ()
    """Beta of each iteration, the last one repeated; empty: always `beta`."""
    min_pairs: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.per_task_cap >= 0, "per_task_cap", self.per_task_cap, "0 or more")
        extra = self.max_extra_turns
        require(extra is None or extra >= 0, "max_extra_turns", extra, "0 or more")
        for key in ("lrs", "betas"):
            values = getattr(self, key)
            require(all(value > 0 for value in values), key, values, "positive")
        played = not self.self_play or self.contrast == "trajectory"
        require(played, "contrast", self.contrast, '"trajectory" with self_play')

    @property
    def history(self) -> History:  # type: ignore[override]  # here the settings decide
        """The best own trajectory is sought in all waves; pairs with experts need the last."""
        return "all" if self.self_play else "last"

    @property
    def trainings(self) -> Mapping[str, TrainingSettings]:
        return {"training": self.training, "opening_training": self.opening_training}

    @property
    def rollout_defaults(self) -> Mapping[str, Any]:
        return {} if self.self_play else {"temperature": 0.0, "attempts": 1}

    @property
    def exploration(self) -> Exploration:
        """Single turns are contrasted behind the expert's own: from there it has to play."""
        explored: dict[Contrast, Exploration] = {
            "trajectory": "tasks",
            "step": "branches",
            "mixture": "both",
        }
        return explored[self.contrast]

    @property
    def compares(self) -> bool:
        """In self-play its own best episodes stand in for the experts'."""
        return not self.self_play

"""What the settings of every algorithm share: the tag that names it, its scope, its training.

Invariant: `algorithm = "…"` in a file chooses the type, and with it the keys it accepts.

Not here: the algorithms' own keys (the modules beside this one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from .base import Settings
from .training import TrainingSettings

Scope = Literal["expert_tasks", "all_tasks"]
History = Literal["all", "last"]
Exploration = Literal["tasks", "branches", "both"]
"""What is played in a wave: tasks from their start, or episodes that go on behind each turn of
an expert's trajectory."""


class LearnerSettings(Settings, frozen=True, tag_field="algorithm"):
    """Base of the algorithms' settings."""

    history: ClassVar[History] = "all"
    """Whether an evolution step reads all waves so far, or the last one alone."""

    scope: Scope = "all_tasks"
    """Explore only the experts' tasks, or all training tasks."""
    training: TrainingSettings = TrainingSettings()

    @property
    def exploration(self) -> Exploration:
        """What the algorithm needs to have played."""
        return "tasks"

    @property
    def trainings(self) -> Mapping[str, TrainingSettings]:
        """Every training that it may run, by the key of its settings."""
        return {"training": self.training}

    @property
    def rollout_defaults(self) -> Mapping[str, Any]:
        """What `[rollout]` is where a campaign says nothing of it, by key, if not the usual."""
        return {}

    @property
    def compares(self) -> bool:
        """Whether it holds what is explored against the experts' own episodes."""
        return False

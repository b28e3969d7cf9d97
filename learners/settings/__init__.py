"""The settings of the learners, typed and checked where they are made. Loads no torch.

Invariants: settings are values (frozen, comparable, encodable); an unknown key or an
impossible value is a `ConfigError` that names it.

Not here: where they are read from (`actors.config`).
"""

from __future__ import annotations

from .base import Settings
from .evolution import Choose, EvolSettings, Merge, Start, Weight
from .learner import History, LearnerSettings, Scope
from .training import LoraSettings, Schedule, TrainingSettings

AnyLearner = EvolSettings
"""The settings of any algorithm; `algorithm` tells them apart."""

__all__ = [
    "AnyLearner",
    "Choose",
    "EvolSettings",
    "History",
    "LearnerSettings",
    "LoraSettings",
    "Merge",
    "Schedule",
    "Scope",
    "Settings",
    "Start",
    "TrainingSettings",
    "Weight",
]

"""The settings of the learners, typed and checked where they are made. Loads no torch.

Invariants: settings are values (frozen, comparable, encodable); an unknown key or an
impossible value is a `ConfigError` that names it.

Not here: where they are read from (`actors.config`).
"""

from __future__ import annotations

from typing import Final, get_args

from .base import Settings
from .evolution import Choose, EvolSettings, Merge, RejectionSettings, Start, Weight
from .learner import Exploration, History, LearnerSettings, Scope
from .policy_gradient import GradientSettings, GrpoSettings, PpoSettings
from .preference import (
    Contrast,
    DpoSettings,
    EtoSettings,
    Opening,
    Pairing,
    PreferenceLoss,
    PreferenceSettings,
)
from .training import LoraSettings, Packing, Schedule, TrainingSettings

AnyLearner = (
    EvolSettings | RejectionSettings | DpoSettings | EtoSettings | GrpoSettings | PpoSettings
)
"""The settings of any algorithm; `algorithm` tells them apart."""

ALGORITHMS: Final = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyLearner))
"""The names that `algorithm` takes."""

__all__ = [
    "ALGORITHMS",
    "AnyLearner",
    "Choose",
    "Contrast",
    "DpoSettings",
    "EtoSettings",
    "EvolSettings",
    "Exploration",
    "GradientSettings",
    "GrpoSettings",
    "History",
    "LearnerSettings",
    "LoraSettings",
    "Merge",
    "Opening",
    "Packing",
    "Pairing",
    "PpoSettings",
    "PreferenceLoss",
    "PreferenceSettings",
    "RejectionSettings",
    "Schedule",
    "Scope",
    "Settings",
    "Start",
    "TrainingSettings",
    "Weight",
]

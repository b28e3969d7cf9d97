"""The directories that a configuration names must hold what they are named for.

They are read late: a reference once a wave was explored, adapters once the experts were cloned. A
wrong path is told before there is a run that it would be kept in.

Invariant: nothing is loaded; whether adapters are of this base is said where they are put on it
(`learners.model.adapters`).

Not here: the model itself (`policy_source`), and files of experts (`imported`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..engine.errors import ConfigError
from ..learners.settings.preference import PreferenceSettings
from .config import CampaignConfig

ROLES: Final = ("start", "base_bc", "pretrained", "last")
"""References that are no directories."""

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")


def require_named(config: CampaignConfig) -> None:
    """Refuse a reference or adapters that are not there.

    Raises:
        ConfigError: one is not; the text names its key.
    """
    learner = config.learner
    if isinstance(learner, PreferenceSettings) and learner.reference not in ROLES:
        path = Path(learner.reference)
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"learner.reference = {learner.reference!r} is no model directory (it has no "
                f"config.json): give one, or one of {', '.join(ROLES)}"
            )
    for key, training in config.trainings.items():
        adapter = training.lora.adapter if training.lora is not None else ""
        for name in ADAPTER_FILES if adapter else ():
            if not (Path(adapter) / name).is_file():
                raise ConfigError(
                    f"{key}.lora.adapter = {adapter!r} holds no adapters (it has no {name}): give "
                    "the `adapter` folder of a policy, or leave the key out for fresh ones"
                )

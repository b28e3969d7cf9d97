"""Which settings make a campaign what it is, and so have to be the same when it goes on.

Invariant: whatever changes what is learned is among them, the context and the backend that
samples too; where a campaign is, how fast it runs, how often it saves, when it gives up and who
is told of it is not. A backend of "auto" stays that word, whatever a machine makes of it.

Not here: what a store does with them (`engine.store`), and the settings (`sections`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from ..engine.errors import ConfigError
from ..engine.store import Store
from .config import CampaignConfig
from .waves import require_settings

_FREE: Final = frozenset(
    {
        "run.out",
        "run.concurrency",
        "run.workers",
        "run.threads",
        "run.learner_processes",
        "run.turn_seconds",
        "run.episode_seconds",
        "run.wave_seconds",
        "run.step_seconds",
        "run.swap_seconds",
        "run.shutdown_seconds",
        "run.max_fault_share",
        "inference.batch",
        "inference.kv_cache_gib",
        "cloning.shard",
        "cloning.checkpoint_every",
        "cloning.checkpoint_seconds",
        "learner.training.shard",
        "learner.training.checkpoint_every",
        "learner.training.checkpoint_seconds",
        "learner.opening_training.shard",
        "learner.opening_training.checkpoint_every",
        "learner.opening_training.checkpoint_seconds",
    }
)
"""Settings that may change when a campaign goes on."""

_ADDED: Final[Mapping[str, str]] = {
    "experts.path": "()",
    "experts.replay": "False",
    "cloning.split_turns": "auto",
    "learner.training.split_turns": "auto",
    "learner.opening_training.split_turns": "auto",
}
"""Settings that older runs do not have, with what they did."""


def lasting(config: CampaignConfig) -> dict[str, str]:
    """The settings that make a campaign what it is, as `section.key`."""
    flat: dict[str, str] = {}

    def put(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                put(f"{prefix}.{key}" if prefix else str(key), inner)
        elif prefix not in _FREE and not prefix.startswith("track."):
            flat[prefix] = str(value)

    put("", msgspec.to_builtins(config))
    return flat


def require_same(store: Store, settings: Mapping[str, str]) -> None:
    """Refuse to go on with anything but this campaign.

    Raises:
        ConfigError: it is no campaign, or a setting differs; the text names the first.
    """
    had = {key: value for key, value in store.settings.items() if key not in _FREE}
    if not had.keys() & settings.keys():
        raise ConfigError(
            f"{store.path} holds a run of another command, no campaign: choose another --out "
            "directory"
        )
    known = {k: v for k, v in settings.items() if k in had or _ADDED.get(k) != v}
    require_settings(store, known)
    for key in sorted(had.keys() - settings.keys()):
        raise ConfigError(
            f"{store.path} holds a run with {key} = {had[key]!r}, which is not set now: give the "
            "same settings to go on with it, or choose another --out directory"
        )

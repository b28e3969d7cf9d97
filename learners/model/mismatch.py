"""Whether the sampler and the trainer agree on a wave: its tokens under the policy that made them.

For algorithms that train from another start than the policy that explored: that policy is
loaded for it, asked about a few trajectories, and let go before training begins.

Invariant: it only reports; nothing that is trained depends on it.

Not here: the comparison itself (`importance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...engine.trajectory import Trajectory
from ..evidence.samples import samples_of
from ..settings import TrainingSettings

COMPARED: Final = 64
"""Trajectories that are compared."""


def wave_mismatch(
    model: str, trajectories: Sequence[Trajectory], settings: TrainingSettings
) -> dict[str, float]:
    """`importance.mismatch` of sampled trajectories; {} where none has tokens.

    Args:
        model: directory of the policy that sampled them.

    Raises:
        ConfigError: the directory holds no model.
    """
    from ..gradients.importance import mismatch
    from .policy import Policy

    sampled = [t for t in trajectories if t.token_ids][:COMPARED]
    if not sampled:
        return {}
    ready = samples_of(sampled, start=model, settings=settings)
    policy = Policy.load(
        model,
        dtype=settings.dtype,
        device=settings.device,
        packing=settings.packing,
        shard=settings.shard,
    )
    return mismatch(policy, ready.samples, temperature=sampled[0].temperature or 1.0)

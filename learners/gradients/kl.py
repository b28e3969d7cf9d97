"""How far a policy is from a reference, how that enters, and how its weight adapts.

With d = log π − log π_ref of a token sampled from π:

    k1 = d              unbiased, either sign; in a loss its expected gradient is 0
    k2 = d²/2           its gradient is that of KL(π ‖ ref)
    k3 = e^−d − 1 + d   unbiased, never negative; its gradient is that of KL(ref ‖ π)
    k3+                 the value of k3 with the gradient of k2

Invariants: all are 0 where π = π_ref; a penalty on rewards carries no gradient.

Sources: Schulman's note on KL estimators; "k3+" as verl has it; the controller is of arXiv
1909.08593. Not here: which of the two places is used (settings: never both).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor

from ...engine.errors import CheckpointCorrupt
from ..settings.policy_gradient import KlEstimator
from .importance import LIMIT

_STATE: Final = "training/kl.json"
_STEP: Final = 0.2
"""Largest relative error that the controller answers."""
_FALL: Final = 0.1
"""The smallest factor: however short the horizon, no coefficient becomes 0, which stays 0."""
_LEAST: Final = 1e-12
"""The smallest coefficient, from which it can still come back."""


class _State(msgspec.Struct, frozen=True):
    coefficient: float


def estimate(logprobs: Tensor, reference: Tensor, kind: KlEstimator) -> Tensor:
    """The KL of each token by one estimator, same shape. d is clamped to ±20."""
    d = (logprobs - reference).clamp(-LIMIT, LIMIT)
    if kind == "k1":
        return d
    k2 = d.square() / 2
    if kind == "k2":
        return k2
    k3 = torch.expm1(-d) + d
    return k3 if kind == "k3" else k3.detach() + k2 - k2.detach()


def penalised(
    rewards: Tensor, old: Tensor, reference: Tensor, mask: Tensor, coefficient: float
) -> Tensor:
    """r_t − β·k1 at every action token, with the log-probs from before the step: [B, T]."""
    k1 = torch.where(mask, estimate(old, reference, "k1"), 0.0)
    return (rewards - coefficient * k1).detach()


def adapted(coefficient: float, kl: float, *, target: float, horizon: float, count: int) -> float:
    """The next coefficient: it grows where the KL was above its target, and shrinks below.

    Args:
        kl: measured over `count` trajectories, which is the controller's time.
        horizon: trajectories in which the coefficient answers a full error.
    """
    error = min(max(kl / target - 1, -_STEP), _STEP)
    return max(coefficient * max(_FALL, 1 + error * count / horizon), _LEAST)


def carried_coefficient(start: str | Path, default: float) -> float:
    """What the evolution step that made `start` left for this one, or the default.

    Raises:
        CheckpointCorrupt: the file cannot be read.
    """
    path = Path(start) / _STATE
    if not path.exists():
        return default
    try:
        coefficient = msgspec.json.decode(path.read_bytes(), type=_State).coefficient
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointCorrupt(
            f"{path}: {error}. Without it the coefficient starts afresh"
        ) from error
    return coefficient if coefficient > 0 else default  # a 0 could never grow again


def leave_coefficient(model: Path, coefficient: float) -> None:
    """Leave a coefficient in a model directory, for the evolution step that follows."""
    path = model / _STATE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(_State(coefficient)))

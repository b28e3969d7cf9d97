"""Sampler against trainer: ratios, truncated weights, masks, and how far the two are apart.

    μ      what the tokens were sampled from (their recorded log-probs)
    π_old  the same weights as the trainer computes them
    ratio  π_old / μ = 1, but for arithmetic, older weights, and what else went wrong

Shapes: B sequences, T tokens. Invariants: weights carry no gradient; a log-ratio is
clamped to ±20 before it is raised; a mask only ever takes tokens away; what is not masked
in has a weight and a ratio of 0.

Sources: TIS as in verl and SkyRL, the geometric mask as in SkyRL, IcePop. Not renormalised.
Not here: the ratio π/π_old that is optimised (`losses`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from ..base import Sample
from ..model.scoring import score
from ..settings.policy_gradient import RatioMask

if TYPE_CHECKING:
    from ..model.policy import Policy

LIMIT: Final = 20.0
"""Of a log-ratio, either way."""

BOUNDS: Final[dict[RatioMask, tuple[float, float]]] = {
    "geometric": (0.99, 1.01),
    "product": (0.5, 2.0),
    "outlier": (1e-4, 100.0),
    "icepop": (0.5, 2.0),
}
"""The usual ones."""


def log_ratios(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """log new − log old where the mask is set, clamped to ±20, and 0 elsewhere: [B, T]."""
    return torch.where(mask, (new - old).clamp(-LIMIT, LIMIT), 0.0)


def token_weights(log_ratio: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(π_old/μ, cap) of every action token, without a gradient: [B, T]."""
    return torch.where(mask, log_ratio.detach().exp().clamp(max=cap), 0.0)


def sequence_weights(log_ratio: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(Π_t π_old/μ, cap) at every action token of a sequence, without a gradient: [B, T]."""
    total = torch.where(mask, log_ratio.detach(), 0.0).sum(1, keepdim=True).clamp(-LIMIT, LIMIT)
    return torch.where(mask, total.exp().clamp(max=cap), 0.0)


def ratio_mask(
    log_ratio: Tensor, mask: Tensor, kind: RatioMask, bounds: tuple[float, float] | None = None
) -> Tensor:
    """The mask less the tokens, or whole sequences, whose ratios are out of bounds: [B, T] bool.

    "geometric": sequences by the geometric mean of their ratios; "product": by their product;
    "outlier": by any one of them; "icepop": tokens by their own; "none": all stay.
    """
    if kind == "none":
        return mask
    low, high = (math.log(bound) for bound in bounds or BOUNDS[kind])
    values = torch.where(mask, log_ratio.detach(), 0.0).double()
    if kind in ("icepop", "outlier"):
        fine: Tensor = (values >= low) & (values <= high)
        return mask & (fine if kind == "icepop" else fine.all(dim=1, keepdim=True))
    total = values.sum(dim=1, keepdim=True)
    if kind == "geometric":
        total = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mask & (total >= low) & (total <= high)


def divergence(trainer: Tensor, sampler: Tensor, mask: Tensor) -> dict[str, float]:
    """How far trainer and sampler are apart on the masked tokens; {} where there are none.

    Returns:
        `logprob_mismatch`, the mean of |log π_old − log μ|, and `mismatch_k3`, the k3
        estimate of KL(μ ‖ π_old), which is not negative.
    """
    if not bool(mask.any()):
        return {}
    d = (trainer - sampler)[mask].double()
    clamped = d.clamp(-LIMIT, LIMIT)
    return {
        "logprob_mismatch": d.abs().mean().item(),
        "mismatch_k3": (torch.expm1(clamped) - clamped).mean().item(),
    }


def mismatch(
    policy: Policy, samples: Sequence[Sample], *, temperature: float = 1.0
) -> dict[str, float]:
    """`divergence` of a policy from what was recorded, over all action tokens of the samples.

    Samples without recorded log-probs (experts') are left out.

    Args:
        policy: with the weights that sampled: the start of an evolution step.
        temperature: that they were sampled at.
    """
    recorded = [s for s in samples if len(s.logprobs)]
    if not recorded:
        return {}
    scores = score(policy, recorded, temperatures=[temperature] * len(recorded))
    trainer = torch.cat(scores)
    sampler = torch.cat([torch.as_tensor(s.logprobs, dtype=torch.float32) for s in recorded])
    mask = torch.cat([action_mask(s) for s in recorded])
    return divergence(trainer, sampler, mask)


def action_mask(sample: Sample) -> Tensor:
    """Where a sample carries loss: [n] bool. The first token is never predicted."""
    mask = torch.as_tensor(list(sample.loss_mask), dtype=torch.bool)
    mask[:1] = False
    return mask

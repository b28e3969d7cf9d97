"""The surrogate losses of policy gradients, and how tokens are summed up: pure functions.

    ratio = π / π_old, log-ratio clamped to ±20
    clip: max(−A·ratio, −A·clip(ratio, 1 − ε_low, 1 + ε_high)); for A < 0 at most −A·c
    drop: −A·ratio + p·(log ratio)², without tokens that have moved by more than δ in
          probability the way they were pushed
    value: ½ max((v − R)², (v_old + clip(v − v_old, ±c_v) − R)²)

Shapes: B sequences, T tokens; every loss is [B, T] and 0 where the mask is not set.

Invariants: at ratio 1 the gradient is that of −A·log π; clipping takes the gradient away
only where the ratio has already gone the way it is pushed; a loss summed with `spread` and
divided by `total` of the *whole* step does not depend on how the step is cut.

Sources: PPO, arXiv 1707.06347, as in verl and SkyRL; DAPO's clip-higher, 2503.14476; the dual
clip, 1912.09729; prime-rl's drop; the reductions as verl names them.
Not here: advantages, KL, and what corrects the sampler (`importance`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..settings.policy_gradient import Reduction, SurrogateSettings
from .importance import log_ratios


class Surrogate(NamedTuple):
    """A surrogate at every token: [B, T] each."""

    loss: Tensor
    ratio: Tensor
    """Without a gradient."""
    stopped: Tensor
    """bool: tokens whose gradient was clipped away or dropped."""


def surrogate(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, settings: SurrogateSettings
) -> Surrogate:
    """The loss of every token by the settings' kind: [B, T]."""
    if settings.kind == "drop":
        return dropped(
            logprobs,
            old,
            advantages,
            mask,
            above=settings.drop_above,
            penalty=settings.ratio_penalty,
        )
    return clipped(
        logprobs,
        old,
        advantages,
        mask,
        low=settings.clip_low,
        high=settings.clip_high,
        dual=settings.dual_clip,
    )


def clipped(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    low: float,
    high: float,
    dual: float = 0.0,
) -> Surrogate:
    """PPO's clipped ratio, with its own bound either way, and the dual clip (0: none)."""
    ratio = log_ratios(logprobs, old, mask).exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - low, 1 + high)
    loss = torch.maximum(plain, bounded)
    stopped = bounded > plain
    if dual:
        cap = -advantages * dual
        capped = (advantages < 0) & (cap < loss)
        loss = torch.where(capped, cap, loss)
        stopped = stopped | capped
    return Surrogate(torch.where(mask, loss, 0.0), ratio.detach(), stopped & mask)


def dropped(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    above: float,
    penalty: float,
) -> Surrogate:
    """prime-rl's: no clip, but tokens whose probability has moved by more than `above` the way
    they were pushed are left out, and a square keeps log-ratios small."""
    log_ratio = log_ratios(logprobs, old, mask)
    ratio = log_ratio.exp()
    moved = (logprobs.exp() - old.exp()).detach()
    stopped = mask & (moved * advantages.sign() > above)
    loss = torch.where(stopped, 0.0, -advantages * ratio) + penalty * log_ratio.square()
    return Surrogate(torch.where(mask, loss, 0.0), ratio.detach(), stopped)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The critic's clipped squared error: [B, T]."""
    bounded = old + (values - old).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (bounded - returns).square())
    return torch.where(mask, worse / 2, 0.0)


def spread(losses: Tensor, mask: Tensor, reduction: Reduction, norm: float = 0.0) -> Tensor:
    """The share of these sequences in the step's sum, to be divided by `total`: [].

    Args:
        norm: the constant L of "seq_mean_token_sum_norm".
    """
    sums = torch.where(mask, losses, 0.0).sum(dim=1)
    if reduction == "seq_mean_token_mean":
        sums = sums / mask.sum(dim=1).clamp(min=1)
    elif reduction == "seq_mean_token_sum_norm":
        sums = sums / norm
    return sums.sum()


def total(counts: Iterable[int], reduction: Reduction) -> float:
    """What the sums of a whole step are divided by: its action tokens, or its sequences.

    Args:
        counts: action tokens of each sequence; one without any is not counted.
    """
    if reduction == "token_mean":
        return float(sum(counts))
    return float(sum(1 for count in counts if count))

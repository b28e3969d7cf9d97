"""GRPO, and its kin without a critic: attempts at one task are judged against each other.

One pass over the wave in mini-batches (settings.training), from the policy that explored it.
`estimator` chooses the advantage (`advantages`); dr_grpo, r − mean, is the default, and grpo
is the published one with the division by the group's standard deviation.

Invariants: a group of one never trains (`singleton`), since it has nothing to be judged
against; groups whose rewards are all equal have an advantage of exactly 0, and are left out
(`zero_variance`) unless settings keep them: left in, they only count in the denominator.
reinforce_pp has no groups, and leaves nobody out; gigpo keeps groups of equal rewards, whose
turns may still differ.

Sources: GRPO, arXiv 2402.03300; Dr.GRPO, 2503.20783; RLOO, 2402.14740; REINFORCE++, 2501.03262;
GiGPO, 2505.10978; MaxRL; the groups that are left out as in DAPO, 2503.14476. Simplified:
rewards are of whole episodes or of turns; a model that rates single steps is not offered.
Not here: the loss (`objective`), and refilling a wave until enough groups differ
(`actors.explorer`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import Evidence, Progress, Report
from ..settings import GrpoSettings
from .advantages import (
    group_advantages,
    group_sizes,
    numbered,
    returns_to_go,
    step_advantages,
    varied,
    whitened,
)
from .objective import Estimate, PolicyGradient, reference_of, run_gradient
from .rollouts import Rollout, Rollouts, rollouts_of

if TYPE_CHECKING:
    from ..model.policy import Policy


def evolve(
    settings: GrpoSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    ready = comparable(rollouts_of(settings, evidence), settings).require()
    start, reference = evidence.start("last"), reference_of(settings, evidence)
    objective = GroupGradient(settings, ready, start=start, reference=reference)
    return run_gradient(objective, settings, out=out, progress=progress)


def comparable(ready: Rollouts, settings: GrpoSettings) -> Rollouts:
    """Leave out those whose group says nothing: `singleton` and `zero_variance`."""
    items = ready.items
    if settings.estimator == "reinforce_pp" or not items:
        return ready
    groups = numbered([item.group for item in items])
    several = (group_sizes(groups) > 1).tolist()
    differ = varied(torch.stack([item.rewards.sum() for item in items]), groups).tolist()
    keep_equal = settings.zero_variance == "keep" or settings.estimator == "gigpo"
    dropped = Counter(ready.dropped)
    kept: list[Rollout] = []
    for item, compared, useful in zip(items, several, differ, strict=True):
        if not compared:
            dropped["singleton"] += 1
        elif not useful and not keep_equal:
            dropped["zero_variance"] += 1
        else:
            kept.append(item)
    useful_groups = {item.group for item, useful in zip(items, differ, strict=True) if useful}
    figures = ready.figures | {
        "groups": float(groups.max() + 1),
        "useful_groups": float(len(useful_groups)),
    }
    return Rollouts(kept, dict(dropped), figures)


class GroupGradient(PolicyGradient):
    """The objective with advantages from groups."""

    def __init__(
        self, settings: GrpoSettings, ready: Rollouts, *, start: str, reference: str
    ) -> None:
        super().__init__(settings, ready, start=start, reference=reference)
        self._rules = settings

    def may_idle(self) -> bool:
        """With zero_variance = "keep" equal rewards are to count, and nothing else."""
        return self._rules.zero_variance == "keep"

    def estimate(
        self, policy: Policy, items: Sequence[Rollout], rewards: Tensor, mask: Tensor
    ) -> Estimate:
        return Estimate(token_advantages(items, rewards, mask, self._rules))


def token_advantages(
    items: Sequence[Rollout], rewards: Tensor, mask: Tensor, settings: GrpoSettings
) -> Tensor:
    """The advantage of every action token by the settings' estimator, 0 elsewhere: [N, T]."""
    groups = numbered([item.group for item in items])
    match settings.estimator:
        case "reinforce_pp":
            returns = returns_to_go(rewards, mask, settings.discount, resets=settings.resets)
            return whitened(returns, mask)
        case "reinforce_pp_baseline":
            centred = group_advantages(rewards.sum(dim=1), groups, "dr_grpo")
            return whitened(_broadcast(centred, mask), mask)
        case "gigpo":
            centred = group_advantages(rewards.sum(dim=1), groups, "dr_grpo")
            steps = _step_advantages(items, rewards, settings.discount)
            return _broadcast(centred, mask) + settings.step_weight * steps
        case estimator:
            return _broadcast(group_advantages(rewards.sum(dim=1), groups, estimator), mask)


def _step_advantages(items: Sequence[Rollout], rewards: Tensor, discount: float) -> Tensor:
    """GiGPO's step advantage at every action token: [N, T]."""
    earned: list[list[float]] = []
    for item, row in zip(items, rewards, strict=True):
        earned.append([0.0] * len(item.observations))
        for turn, reward in zip(item.turns.tolist(), row.tolist(), strict=False):
            if turn >= 0:
                earned[-1][turn] += reward
    anchors = [[(*item.group, seen) for seen in item.observations] for item in items]
    spread = torch.zeros_like(rewards)
    for row, (item, steps) in enumerate(
        zip(items, step_advantages(earned, anchors, discount), strict=True)
    ):
        for turn, advantage in enumerate(steps):
            spread[row, : len(item.turns)][item.turns == turn] = advantage
    return spread


def _broadcast(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values[:, None], 0.0)

"""How much better than expected: from rewards to the advantage of every action token.

    grpo                   (r − mean) / (std + 1e-6), std with ddof = 1
    dr_grpo                r − mean
    rloo                   r − mean of the others = (r − mean) · n/(n−1)
    maxrl                  (r − mean) / mean
    reinforce_pp           discounted return-to-go, whitened over the batch's action tokens
    reinforce_pp_baseline  r − mean, whitened likewise
    gigpo                  (r − mean) + w · (return of the turn − mean over equal observations)
    GAE                    Σ (γλ)^k δ over decisions: action tokens, or turns

Shapes: N trajectories; B sequences, T tokens. Means are over a group: attempts at one task.

Invariants:

* a group of one has an advantage of 0 and is not `informative`; one whose rewards are all
  equal has exactly 0;
* decisions are action tokens: what stands at observation tokens (values, discounts) changes
  nothing, and a sequence without them gets the same advantages. A reward there is an error,
  since it would vanish;
* an episode that a limit of ours cut ends there: nothing is bootstrapped from its last token.

Sources: GRPO, arXiv 2402.03300; Dr.GRPO, 2503.20783; RLOO, 2402.14740; REINFORCE++, 2501.03262;
GiGPO, 2505.10978; GAE, 1506.02438; MaxRL as in prime-rl. Published code differs in three
places: a group of one keeps r (here 0); GAE bootstraps from the first observation
token (here from the next action token); and REINFORCE++ starts its running return anew at
observations, so that only the last turn learns (`resets`, off).

Not here: where the reward goes (`placement`), and KL in it (`kl`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from ...engine.errors import BadSample

GroupEstimator = Literal["grpo", "dr_grpo", "rloo", "maxrl"]

TOLERANCE: Final = 1e-6
"""Rewards of a group that differ by no more are equal: what is left is rounding."""


def numbered(keys: Sequence[Hashable]) -> Tensor:
    """Number equal keys alike, in first-seen order: [N] int64."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)


def group_sizes(groups: Tensor) -> Tensor:
    """Of each trajectory, how many its group has: [N] int64."""
    return torch.bincount(groups)[groups]


def varied(rewards: Tensor, groups: Tensor) -> Tensor:
    """Of each trajectory, whether rewards differ in its group: [N] bool."""
    count = int(groups.max()) + 1 if len(groups) else 0
    values = rewards.double()
    highest = torch.full((count,), -torch.inf, dtype=torch.float64)
    highest = highest.scatter_reduce(0, groups, values, "amax")
    lowest = torch.full((count,), torch.inf, dtype=torch.float64)
    lowest = lowest.scatter_reduce(0, groups, values, "amin")
    return ((highest - lowest) > TOLERANCE)[groups]


def informative(rewards: Tensor, groups: Tensor) -> Tensor:
    """Of each trajectory, whether its group tells anything: two members that differ: [N] bool."""
    return (group_sizes(groups) > 1) & varied(rewards, groups)


def group_advantages(rewards: Tensor, groups: Tensor, estimator: GroupEstimator) -> Tensor:
    """The advantage of each trajectory within its group: [N] float32.

    Args:
        rewards: [N], finite: the return of each trajectory.
        groups: [N] int64, equal for attempts at one task.

    Raises:
        BadSample: a negative reward with "maxrl", which divides by the mean.
    """
    if not len(rewards):
        return torch.zeros(0)
    values = rewards.double()
    sizes = torch.bincount(groups).double()
    means = torch.zeros_like(sizes).index_add(0, groups, values) / sizes
    centred = values - means[groups]
    if estimator == "grpo":
        squares = torch.zeros_like(sizes).index_add(0, groups, centred.square())
        scale = (squares / (sizes - 1).clamp(min=1)).sqrt()[groups] + 1e-6
        centred = centred / scale
    elif estimator == "rloo":
        centred = centred * (sizes / (sizes - 1).clamp(min=1))[groups]
    elif estimator == "maxrl":
        if bool((values < 0).any()):
            raise BadSample(
                f"reward {values.min().item()} with maxrl, which divides by the mean reward: "
                "rewards must not be negative; shift them at the environment, or use dr_grpo"
            )
        centred = centred / means.clamp(min=TOLERANCE)[groups]
    return torch.where(informative(rewards, groups), centred, 0.0).float()


def returns_to_go(
    rewards: Tensor, mask: Tensor, discount: float, *, resets: bool = False
) -> Tensor:
    """Discounted return from each action token on, 0 at observations: [B, T] float32.

    The discount applies once for each action token, and the running return crosses
    observations unchanged.

    Args:
        rewards: [B, T], at action tokens alone.
        mask: [B, T] bool.
        resets: start anew at each observation, as published code does: all turns but the one
            with the reward then get 0.

    Raises:
        BadSample: a reward stands at an observation token.
    """
    _require_at_actions(rewards, mask)
    returns = torch.zeros(rewards.shape, dtype=torch.float64)
    running = torch.zeros(rewards.shape[0], dtype=torch.float64)
    for t in reversed(range(rewards.shape[1])):
        new = rewards[:, t].double() + discount * running
        running = torch.where(mask[:, t], new, 0.0 if resets else running)
        returns[:, t] = torch.where(mask[:, t], running, 0.0)
    return returns.float()


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 (ddof = 1) over the masked tokens: [B, T].

    0 elsewhere, and everywhere if the masked values are all equal.
    """
    picked = values[mask].double()
    if len(picked) < 2 or (picked.max() - picked.min()) <= TOLERANCE:
        return torch.zeros(values.shape)
    scaled = (values.double() - picked.mean()) / (picked.std() + 1e-8)
    return torch.where(mask, scaled, 0.0).float()


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation where each action token is a decision.

    Args:
        rewards: [B, T], at action tokens alone.
        values: [B, T], at an action token: what was expected before it was written.
        mask: [B, T] bool.
        discount: γ, once a decision.
        smoothing: λ.

    Returns:
        Advantages and returns (advantage + value), [B, T] float32 each, 0 at observations.

    Raises:
        BadSample: a reward stands at an observation token.
    """
    _require_at_actions(rewards, mask)
    advantages = torch.zeros(rewards.shape, dtype=torch.float64)
    next_value = torch.zeros(rewards.shape[0], dtype=torch.float64)
    running = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        here, value = mask[:, t], values[:, t].double()
        delta = rewards[:, t].double() + discount * next_value - value
        running = torch.where(here, delta + discount * smoothing * running, running)
        next_value = torch.where(here, value, next_value)
        advantages[:, t] = torch.where(here, running, 0.0)
    returns = torch.where(mask, advantages + values.double(), 0.0)
    return advantages.float(), returns.float()


def turn_gae(
    rewards: Tensor, values: Tensor, turns: Tensor, *, discount: float, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where each turn is a decision: its value stands at its first token, its reward
    is the sum over its tokens, and all of them share its advantage.

    Args:
        turns: [B, T] int64, the turn that wrote a token, −1 at observations.

    Returns:
        Advantages [B, T], returns [B, T] (0 but at first tokens), first tokens [B, T] bool.
    """
    mask = turns >= 0
    _require_at_actions(rewards, mask)
    before = torch.nn.functional.pad(turns[:, :-1], (1, 0), value=-1)
    first = mask & (turns != before)
    gathered = torch.zeros(rewards.shape, dtype=torch.float64)
    running = torch.zeros(rewards.shape[0], dtype=torch.float64)
    for t in reversed(range(rewards.shape[1])):
        running = running + rewards[:, t].double()
        gathered[:, t] = torch.where(first[:, t], running, 0.0)
        running = torch.where(first[:, t], 0.0, running)
    decided, returns = gae(gathered, values, first, discount=discount, smoothing=smoothing)
    shared = torch.zeros_like(decided)
    current = torch.zeros(rewards.shape[0])
    for t in range(rewards.shape[1]):
        current = torch.where(first[:, t], decided[:, t], current)
        shared[:, t] = torch.where(mask[:, t], current, 0.0)
    return shared, returns, first


def step_advantages(
    rewards: Sequence[Sequence[float]], anchors: Sequence[Sequence[Hashable]], discount: float
) -> list[list[float]]:
    """GiGPO's step advantages: each turn against those that saw the same at the same task.

    Args:
        rewards: of each trajectory, the reward of each turn.
        anchors: of each trajectory, what each turn saw, with its task.
        discount: γ of a turn.

    Returns:
        Of each turn, its discounted return less the mean of its step group; 0 in a group of
        one, which has nothing to compare with.
    """
    returns: list[float] = []
    for turns in rewards:
        running, behind = 0.0, []
        for reward in reversed(turns):
            running = reward + discount * running
            behind.append(running)
        returns += reversed(behind)
    keys = [anchor for turns in anchors for anchor in turns]
    flat = group_advantages(
        torch.tensor(returns, dtype=torch.float64), numbered(keys), "dr_grpo"
    ).tolist()
    values = iter(flat)
    return [[next(values) for _ in turns] for turns in rewards]


def _require_at_actions(rewards: Tensor, mask: Tensor) -> None:
    if bool(rewards[~mask].any()):
        raise BadSample(
            "a reward stands at an observation token, where it would be lost: put it at the "
            "turn's last action token (`placement.place`)"
        )

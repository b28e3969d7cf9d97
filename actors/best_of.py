"""Best-of-N: what several attempts at a task would give somebody who could choose among them.

    pass@k   1 - C(n-c, k) / C(n, k): the chance that k of the n attempts hold one of the c
             successes; unbiased, unlike 1 - (1 - c/n)^k (Chen et al., arXiv 2107.03374)
    best@k   the same for rewards: the mean of the best reward over all choices of k attempts
    majority the attempt whose actions most attempts at the task took, and
    likeliest the attempt with the highest mean log-probability: both choose without the reward

Invariants: pass@k and best@k never fall with k; at k = 1 they are the mean over attempts (not
the greedy policy's value); best@n is the mean of the best.

pass@k and best@k look at the reward of the test task itself. They are an oracle's upper bound,
and no method that can be deployed: every table says so.

Simplified: a verifier that is a model of its own is not offered; `chosen` takes any rule.
Not here: playing attempts (`waves`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ..engine.codec import unpack_floats
from ..engine.trajectory import Trajectory

LABEL: Final = "oracle upper bound"
"""Goes with every figure that was chosen by the reward it reports."""

Choose = Callable[[Sequence[Trajectory]], Trajectory]
"""Picks one of a task's attempts, without looking at rewards."""


@dataclass(frozen=True, slots=True)
class BestOf:
    """The figures of N attempts at each task."""

    label: str
    attempts: int
    """N: of the task with the fewest."""
    tasks: int
    pass_at: dict[int, float]
    """By k: 1, 2, 4, … and N."""
    best_at: dict[int, float]
    """Mean reward of the best of k."""
    majority: float
    """Mean reward of the attempt that most agree with."""
    likeliest: float | None
    """Mean reward of the most probable attempt; None where log-probs are missing."""


def pass_at(n: int, successes: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k attempts succeeds, from n attempts.

    Raises:
        ValueError: not 0 <= successes <= n, or not 1 <= k <= n.
    """
    if not (0 <= successes <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} attempts with {successes} successes")
    return 1.0 - math.comb(n - successes, k) / math.comb(n, k)


def best_at(rewards: Sequence[float], k: int) -> float:
    """Mean of the highest reward over all choices of k of these attempts.

    Raises:
        ValueError: not 1 <= k <= the number of rewards.
    """
    n = len(rewards)
    if not 1 <= k <= n:
        raise ValueError(f"best@{k} of {n} attempts")
    # The i-th lowest is the highest of C(i-1, k-1) choices.
    return sum(
        reward * (math.comb(below, k - 1) / math.comb(n, k))
        for below, reward in enumerate(sorted(rewards))
    )


def majority(attempts: Sequence[Trajectory]) -> Trajectory:
    """The first attempt with the actions that most attempts took."""
    taken = [tuple(turn.action for turn in t.turns) for t in attempts]
    most = Counter(taken).most_common(1)[0][0]
    return attempts[taken.index(most)]


def likeliest(attempts: Sequence[Trajectory]) -> Trajectory:
    """The attempt with the highest mean log-probability of what was sampled, the first of equals.

    Raises:
        ValueError: an attempt has no log-probs.
    """
    if not all(t.sampled_tokens for t in attempts):
        raise ValueError("an attempt has no sampled tokens with log-probs")
    return max(attempts, key=lambda t: math.fsum(unpack_floats(t.logprobs)) / t.sampled_tokens)


def chosen(tasks: Sequence[Sequence[Trajectory]], choose: Choose) -> float:
    """Mean reward over tasks if a rule picks one attempt at each; a fault counts 0."""
    return sum(choose(attempts).reward or 0.0 for attempts in tasks) / len(tasks)


def best_of(trajectories: Sequence[Trajectory]) -> BestOf | None:
    """The figures, where every task was tried at least twice.

    An attempt without a reward (fault, cancelled) counts as reward 0, as in the evaluation.
    Of a task with more attempts than another all are used: the estimators are unbiased.
    """
    by_task: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        by_task.setdefault((trajectory.env, trajectory.task_id), []).append(trajectory)
    tasks = list(by_task.values())
    most = min(map(len, tasks), default=0)
    if most < 2:
        return None
    ks = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    rewards = [[t.reward or 0.0 for t in attempts] for attempts in tasks]
    counts = [(len(attempts), sum(t.success for t in attempts)) for attempts in tasks]
    n = len(tasks)
    recorded = all(t.sampled_tokens for t in trajectories)
    return BestOf(
        label=LABEL,
        attempts=most,
        tasks=n,
        pass_at={k: sum(pass_at(m, c, k) for m, c in counts) / n for k in ks},
        best_at={k: sum(best_at(r, k) for r in rewards) / n for k in ks},
        majority=chosen(tasks, majority),
        likeliest=chosen(tasks, likeliest) if recorded else None,
    )

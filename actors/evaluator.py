"""From trajectories to the figures of an evaluation.

`average_reward` is ETO's metric: the sum of rewards over *all* episodes, so that an
episode without a reward (fault, cancelled) adds nothing to the sum and one to the
count, and so is its standard error. Beside it stands the average over scored episodes
alone; they differ exactly when something broke, which the fault counts then say.

The 95 % interval of the success rate is Wilson's when every task was tried once.
With several attempts the unit is the task, and it is a seeded bootstrap over tasks.

Not here: which policy and which tasks (`cli.evaluate`, `campaign`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Final

from ..engine.seeds import generator
from ..engine.trajectory import Outcome, Trajectory, count_outcomes

_Z95: Final = 1.959963984540054
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one environment, or of all together."""

    env: str
    episodes: int
    tasks: int
    outcomes: dict[str, int]
    faults: dict[str, int]
    """By fault kind."""
    success_rate: float
    interval: tuple[float, float]
    """95 %, of the success rate."""
    average_reward: float
    """Over all episodes; those without a reward count 0."""
    average_reward_scored: float | None
    """Over scored episodes; None if there are none."""
    turns: int
    turns_mean: float
    format_errors: float
    """Share of turns whose completion broke the action format."""
    truncated: float
    """Share of episodes that a limit of ours ended."""
    average_reward_error: float = 0.0
    """Standard error of `average_reward`; 0 in reports that were written before it was kept."""


def evaluate(trajectories: Sequence[Trajectory]) -> list[Evaluation]:
    """One evaluation for each environment, in first-seen order."""
    by_env: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_env.setdefault(trajectory.env, []).append(trajectory)
    return [summarise(env, members) for env, members in by_env.items()]


def summarise(env: str, trajectories: Sequence[Trajectory]) -> Evaluation:
    """The figures of these trajectories, under that name."""
    n = len(trajectories)
    by_task: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        by_task.setdefault(trajectory.task_id, []).append(trajectory.success)
    successes = sum(t.success for t in trajectories)
    rewards = [t.reward for t in trajectories if t.reward is not None]
    turns = [turn for t in trajectories for turn in t.turns]
    once = all(len(tries) == 1 for tries in by_task.values())
    return Evaluation(
        env=env,
        episodes=n,
        tasks=len(by_task),
        outcomes=count_outcomes(trajectories),
        faults=dict(Counter(t.fault.kind.value for t in trajectories if t.fault is not None)),
        success_rate=successes / n if n else 0.0,
        interval=wilson(successes, n) if once else bootstrap(list(by_task.values())),
        average_reward=sum(rewards) / n if n else 0.0,
        average_reward_scored=sum(rewards) / len(rewards) if rewards else None,
        turns=len(turns),
        turns_mean=len(turns) / n if n else 0.0,
        format_errors=sum(turn.format_error for turn in turns) / len(turns) if turns else 0.0,
        truncated=sum(t.outcome is Outcome.TRUNCATED for t in trajectories) / n if n else 0.0,
        average_reward_error=standard_error([t.reward or 0.0 for t in trajectories]),
    )


def standard_error(rewards: Sequence[float]) -> float:
    """Standard error of the mean reward, each an observation of its own.

    Never 0, so that a perfect score can be left: at least that of n rewards of 0 or 1 with a
    share of 1 / (n + 1), which is 1 / (n + 1) itself.
    """
    least = 1 / (max(len(rewards), 1) + 1)
    return max(pstdev(rewards) / math.sqrt(len(rewards)), least) if rewards else least


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion; (0, 1) without data."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    z2 = _Z95 * _Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Exact where the formula is, but its arithmetic is not.
    low = centre - half if successes > 0 else 0.0
    high = centre + half if successes < n else 1.0
    return low, high


def bootstrap(tasks: Sequence[Sequence[bool]], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the success rate, resampling whole tasks.

    Where all tasks agree there is nothing to resample; the interval is then Wilson's,
    with one observation for each task.
    """
    if not tasks:
        return 0.0, 1.0
    rates = {sum(tries) / len(tries) for tries in tasks}
    if len(rates) == 1:
        return wilson(round(rates.pop() * len(tasks)), len(tasks))
    random = generator(seed, "bootstrap")
    means = []
    for _ in range(_RESAMPLES):
        drawn = random.choices(tasks, k=len(tasks))
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    means.sort()
    return means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]

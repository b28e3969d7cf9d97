"""What a wave of exploration came to, in figures: a pure function of its trajectories.

Invariant: derived from the records alone, so that a wave that is read back has the same
figures as when it was played.

Not here: what was learned from it (the learner's report), and printing it (`cli.evolve`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ..engine.codec import unpack_floats
from ..engine.trajectory import Outcome, Trajectory, group
from ..learners.evidence.filters import TaskKey, distinct, task_key

_TIE: Final = 1e-6
"""Rewards this close are equal: sums of floats."""


@dataclass(frozen=True, slots=True)
class WaveFigures:
    """One wave as it was explored, before anything was dropped."""

    episodes: int
    turns: int
    turns_mean: float
    success: dict[str, float]
    """Success rate over scored episodes, by environment."""
    average_reward: float
    """Over scored episodes."""
    faults: int
    tasks: int
    tasks_solved: int
    tasks_newly_solved: int
    """Solved by no wave before, and shown by no expert."""
    duplicates: int
    """Episodes that repeat the actions of another at the same task."""
    groups_used: int
    """Tasks whose attempts earned different rewards: those that a comparison learns from."""
    rounds: int
    """In which the wave was played."""
    turn_limit: int
    """0: the environment's own."""
    format_errors: float
    """Share of turns whose completion broke the action format."""
    entropy: float | None
    """Nats a token: the mean surprise of what was sampled; None without log-probs."""
    staleness: dict[int, int]
    """Episodes by how many policies the oldest of their tokens is behind the one that is
    trained from."""

    @property
    def staleness_mean(self) -> float:
        """Mean over the episodes; 0 where nothing was played."""
        total = sum(self.staleness.values())
        return sum(age * n for age, n in self.staleness.items()) / total if total else 0.0


@dataclass(slots=True)
class Solved:
    """The tasks that were solved so far."""

    tasks: set[TaskKey] = field(default_factory=set)

    def add(self, trajectories: Sequence[Trajectory]) -> tuple[int, int]:
        """Enter these; give how many tasks they solve, and how many of those are new."""
        found = {task_key(t) for t in trajectories if t.success}
        new = len(found - self.tasks)
        self.tasks |= found
        return len(found), new


def describe(
    trajectories: Sequence[Trajectory],
    solved: Solved,
    *,
    trained_from: int,
    rounds: int = 1,
    turn_limit: int = 0,
) -> WaveFigures:
    """Describe a wave, and enter what it solved.

    Args:
        trajectories: of all its parts.
        solved: what was solved before.
        trained_from: version of the policy that is trained on it.
        rounds: in which it was played.
        turn_limit: of its episodes.
    """
    scored = [t for t in trajectories if t.outcome.scored]
    turns = [turn for t in trajectories for turn in t.turns]
    by_env: dict[str, list[bool]] = defaultdict(list)
    for t in scored:
        by_env[t.env].append(t.success)
    unique, new = solved.add(trajectories)
    groups = group(trajectories, 0)
    return WaveFigures(
        episodes=len(trajectories),
        turns=len(turns),
        turns_mean=len(turns) / len(trajectories) if trajectories else 0.0,
        success={env: sum(good) / len(good) for env, good in sorted(by_env.items())},
        average_reward=sum(t.reward or 0.0 for t in scored) / len(scored) if scored else 0.0,
        faults=sum(t.outcome is Outcome.FAULT for t in trajectories),
        tasks=len(groups),
        tasks_solved=unique,
        tasks_newly_solved=new,
        duplicates=distinct(scored).dropped.get("duplicate", 0),
        groups_used=sum(differs(g.rewards()) for g in groups),
        rounds=rounds,
        turn_limit=turn_limit,
        format_errors=sum(turn.format_error for turn in turns) / len(turns) if turns else 0.0,
        entropy=_entropy(scored),
        staleness=dict(sorted(Counter(trained_from - t.versions[0] for t in scored).items())),
    )


def differs(rewards: Sequence[float]) -> bool:
    """Whether a comparison of these attempts says anything."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > _TIE


def _entropy(scored: Sequence[Trajectory]) -> float | None:
    tokens = sum(t.sampled_tokens for t in scored)
    if not tokens:
        return None
    # The mean surprise of what was sampled estimates the entropy per token.
    return -sum(math.fsum(unpack_floats(t.logprobs)) for t in scored) / tokens

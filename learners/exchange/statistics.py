"""What a set of trajectories comes to, by environment: counts, rewards, turns, tokens.

Invariant: one pass, and memory for the task ids alone: sets of any length are counted.

Not here: whether a policy is good (`actors.evaluator`), and printing (`cli.data`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...engine.trajectory import Outcome, Trajectory


@dataclass(slots=True)
class Spread:
    """Numbers, summed while they come."""

    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, value: float) -> None:
        """Take one in."""
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)

    @property
    def mean(self) -> float | None:
        """Their mean; None if there are none."""
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Statistics:
    """The figures of one environment, or of all together."""

    env: str
    trajectories: int = 0
    tasks: set[str] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=lambda: {o.value: 0 for o in Outcome})
    rewards: Spread = field(default_factory=Spread)
    """Of scored trajectories."""
    turns: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    """Of trajectories that carry token ids."""
    sampled_tokens: int = 0
    characters: Spread = field(default_factory=Spread)
    """Of conversations."""
    agent_characters: int = 0
    """Of those, written by the agent in its turns."""
    format_errors: int = 0
    """Turns that broke the action format."""

    def add(self, trajectory: Trajectory) -> None:
        """Take one in."""
        self.trajectories += 1
        self.tasks.add(trajectory.task_id)
        self.outcomes[trajectory.outcome.value] += 1
        if trajectory.reward is not None:
            self.rewards.add(trajectory.reward)
        self.turns.add(len(trajectory.turns))
        if trajectory.tokens:
            self.tokens.add(trajectory.tokens)
        self.sampled_tokens += trajectory.sampled_tokens
        self.characters.add(sum(len(m.text) for m in trajectory.conversation()))
        self.agent_characters += sum(len(turn.completion) for turn in trajectory.turns)
        self.format_errors += sum(turn.format_error for turn in trajectory.turns)

    def figures(self) -> dict[str, object]:
        """Give the figures by name, None where there is nothing to measure."""
        scored = self.rewards.count
        return {
            "env": self.env,
            "trajectories": self.trajectories,
            "tasks": len(self.tasks),
            "outcomes": self.outcomes,
            "success_rate": self.outcomes[Outcome.SUCCESS] / scored if scored else None,
            "reward_mean": self.rewards.mean,
            "reward_least": self.rewards.least if scored else None,
            "reward_most": self.rewards.most if scored else None,
            "turns": int(self.turns.total),
            "turns_mean": self.turns.mean,
            "turns_most": int(self.turns.most) if self.turns.count else None,
            "format_errors": self.format_errors,
            "with_tokens": self.tokens.count,
            "tokens": int(self.tokens.total),
            "tokens_mean": self.tokens.mean,
            "tokens_most": int(self.tokens.most) if self.tokens.count else None,
            "sampled_tokens": self.sampled_tokens,
            "characters_mean": self.characters.mean,
            "agent_characters": self.agent_characters,
        }


def statistics(trajectories: Iterable[Trajectory]) -> list[Statistics]:
    """Count a set by environment, in first-seen order."""
    found: dict[str, Statistics] = {}
    for trajectory in trajectories:
        if trajectory.env not in found:
            found[trajectory.env] = Statistics(trajectory.env)
        found[trajectory.env].add(trajectory)
    return list(found.values())

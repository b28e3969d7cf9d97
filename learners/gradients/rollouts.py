"""From a wave to what policy gradients learn from: tokens, rewards, groups, targets.

Invariants: every rollout was sampled by a policy that is not too old, at a temperature, with
its log-probs, and was scored; what is not is counted under one reason. A fault is never a
reward: it enters no group.

Reasons for dropping: those of `filters.usable`, and `bad_reward` (of a turn: not finite),
`no_logprobs` (texts, experts), `greedy` (sampled at temperature 0: its log-probs are not those of
what was sampled from) and `stale`.

Not here: advantages (`advantages`), or which groups count (`grpo`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec
import torch
from torch import Tensor

from ...engine.errors import EmptyWave, EvaluationLeak
from ...engine.trajectory import Trajectory
from ..base import Evidence, Sample
from ..evidence.filters import TaskKey, task_key
from ..evidence.moments import moments, staleness
from ..evidence.samples import hash_samples, samples_of
from ..settings import GradientSettings
from .importance import action_mask
from .placement import overlong, place


@dataclass(frozen=True, slots=True)
class Target:
    """What the loss of a rollout compares with: [n] float32 each, on the CPU."""

    mask: Tensor
    """bool: where it carries loss, ratio masks applied."""
    old: Tensor
    """log π_old."""
    advantages: Tensor
    weights: Tensor
    """Importance weights, 1 where there is no correction."""
    reference: Tensor
    """log π_ref; π_old's where there is no reference."""
    values: Tensor
    """The critic's before the step; 0 without one."""
    returns: Tensor
    decisions: Tensor
    """bool: where the critic learns."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One scored trajectory of a known policy."""

    sample: Sample
    reward: float
    """The trajectory's, before penalties."""
    rewards: Tensor
    """[n] float32: where it went, penalties included."""
    turns: Tensor
    """[n] int64: the turn that wrote a token, −1 at observations."""
    group: TaskKey
    observations: tuple[str, ...]
    """What each turn saw."""
    temperature: float
    overlong: bool
    target: Target | None = field(default=None, compare=False)

    @property
    def actions(self) -> Tensor:
        """[n] bool: the tokens that the agent wrote."""
        return action_mask(self.sample)

    @property
    def settled(self) -> Target:
        """The target, once it was made."""
        assert self.target is not None
        return self.target


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What is learned from, and what there is to say about the wave."""

    items: list[Rollout]
    dropped: dict[str, int]
    figures: dict[str, float]

    def require(self) -> Rollouts:
        """Return itself, or raise `EmptyWave` with the counts if there are none."""
        if self.items:
            return self
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.items()))
        raise EmptyWave(
            f"no trajectory to follow a gradient of: {counts or 'the wave is empty'}; explore "
            "more tasks, or more attempts at each"
        )


def rollouts_of(settings: GradientSettings, evidence: Evidence) -> Rollouts:
    """Take the last wave of the evidence, tokenised for its policy.

    Raises:
        EvaluationLeak: an evaluation task is among them.
        ConfigError: there is no policy to start from.
    """
    wave = [t for part in evidence.waves for t in part]
    leaked = evidence.evaluation.intersection(map(task_key, wave))
    if leaked:
        env, task = min(leaked)
        raise EvaluationLeak(
            f"{len(leaked)} evaluation tasks are in the wave, such as {task} of {env}: explore "
            "tasks of the training split only"
        )
    ready = samples_of(wave, start=evidence.start("last"), settings=settings.training)
    dropped: Counter[str] = Counter(ready.dropped)
    kept: list[tuple[Trajectory, Sample]] = []
    for trajectory, sample in zip(ready.trajectories, ready.samples, strict=True):
        if not all(math.isfinite(turn.reward) for turn in trajectory.turns):
            dropped["bad_reward"] += 1
        elif not len(sample.logprobs):
            dropped["no_logprobs"] += 1
        elif not trajectory.temperature > 0:
            dropped["greedy"] += 1
        elif staleness(trajectory, evidence.number) > settings.max_staleness:
            dropped["stale"] += 1
        else:
            kept.append((trajectory, sample))
    items = [_rollout(trajectory, sample, settings) for trajectory, sample in kept]
    figures = moments([trajectory for trajectory, _ in kept], evidence.number)
    if kept:
        figures["overlong"] = statistics.fmean(overlong(trajectory) for trajectory, _ in kept)
    return Rollouts(items, dict(dropped), figures)


def hash_rollouts(items: Sequence[Rollout]) -> str:
    """Hash what training sees of rollouts: their samples, and what they earned where."""
    digest = blake2b(hash_samples([item.sample for item in items]).encode(), digest_size=16)
    for item in items:
        fields = (
            item.rewards.tolist(),
            item.turns.tolist(),
            item.group,
            item.observations,
            item.temperature,
            item.overlong,
        )
        digest.update(msgspec.msgpack.encode(fields))
    return digest.hexdigest()


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as one tensor, with zeros (False) at the right: [B, T]."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _rollout(trajectory: Trajectory, sample: Sample, settings: GradientSettings) -> Rollout:
    mask = action_mask(sample)
    turns = torch.full((len(mask),), -1, dtype=torch.int64)
    for number, turn in enumerate(trajectory.turns):
        turns[turn.start : turn.end] = number
    turns[~mask] = -1
    return Rollout(
        sample,
        trajectory.reward or 0.0,
        torch.tensor(place(trajectory, mask.tolist(), settings.reward)),
        turns,
        task_key(trajectory),
        tuple(turn.observation for turn in trajectory.turns),
        trajectory.temperature,
        overlong(trajectory),
    )

"""What may be learned from, and how many of each task: pure functions with counts.

Invariants: a faulted or cancelled trajectory never passes; nothing is cut to fit (too
long is dropped, since a cut would lose the final, decisive step); whatever does not
pass is counted under exactly one reason; order is kept.

Not here: what a trajectory weighs (`agent_evol`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...engine.errors import BadSample, EmptyWave, EvaluationLeak
from ...engine.seeds import generator
from ...engine.trajectory import FinishReason, Outcome, Trajectory
from ..base import Sample
from ..settings import Choose

TaskKey = tuple[str, str]
"""(environment id, task id)."""

DEFAULT_THRESHOLD: Final = 0.99
"""A reward must lie strictly above it: a success, where success pays 1 (AgentGym's value)."""


def task_key(trajectory: Trajectory) -> TaskKey:
    """Name the task: numbers repeat across environments."""
    return trajectory.env, trajectory.task_id


def refuse_evaluation(evaluation: Collection[TaskKey], keys: Iterable[TaskKey]) -> None:
    """Let no task be learned from that is evaluated.

    Raises:
        EvaluationLeak: one is; the text counts them and names the first.
    """
    leaked = set(evaluation).intersection(keys)
    if leaked:
        env, task = min(leaked)
        raise EvaluationLeak(
            f"{len(leaked)} evaluation tasks are among the training data, such as {task} of "
            f"{env}: explore and clone tasks of the training split only"
        )


@dataclass(frozen=True, slots=True)
class Filtered:
    """What passed, in order, and how many did not, by reason."""

    kept: list[Trajectory]
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usable:
    """Trajectories that can be trained on, with their samples, and the others by reason."""

    trajectories: list[Trajectory]
    samples: list[Sample]
    dropped: dict[str, int]

    def require(self, new: Collection[Trajectory] = ()) -> Usable:
        """Return itself, or raise `EmptyWave` with the counts if nothing is usable.

        Args:
            new: if given, one of these has to be among what is.
        """
        if self.samples and (not new or not set(new).isdisjoint(self.trajectories)):
            return self
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped.items()))
        what = "new trajectory" if self.samples else "trajectory"
        raise EmptyWave(f"no usable {what}: {counts or 'none were given'}")


def usable(
    trajectories: Sequence[Trajectory],
    tokenise: Callable[[Trajectory], Sample | Sequence[Sample]],
    *,
    context: int,
    texts: bool = False,
) -> Usable:
    """Tokenise what can be trained on. Of a trajectory that becomes several samples, each has to
    be usable.

    Reasons for dropping: `fault`, `cancelled`, `no_turns`, `no_tokens` (a model wrote it,
    but its server gave no token ids; `texts` accepts these and tokenises their text),
    `bad_sample` (breaks the invariants of its record), `empty_mask`, `bad_logprobs` (not
    finite where the loss is) and `too_long` (above `context` tokens).
    """
    passed: list[Trajectory] = []
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    for trajectory in trajectories:
        reason, found = _prepare(trajectory, tokenise, context, texts)
        if reason:
            dropped[reason] += 1
        else:
            passed.append(trajectory)
            samples += found
    return Usable(passed, samples, dict(dropped))


def _prepare(
    trajectory: Trajectory,
    tokenise: Callable[[Trajectory], Sample | Sequence[Sample]],
    context: int,
    texts: bool,
) -> tuple[str, list[Sample]]:
    reason = unscored(trajectory)
    if reason:
        return reason, []
    if not trajectory.turns:
        return "no_turns", []
    sampled = any(turn.finish is not FinishReason.SCRIPTED for turn in trajectory.turns)
    if sampled and not trajectory.token_ids and not texts:
        return "no_tokens", []
    try:
        made = tokenise(trajectory)
    except BadSample:
        return "bad_sample", []
    found = [made] if isinstance(made, Sample) else list(made)
    return next((why for sample in found if (why := _unusable(sample, context))), ""), found


def _unusable(sample: Sample, context: int) -> str:
    # The first token has no predecessor to be predicted from.
    if not any(sample.loss_mask[1:]):
        return "empty_mask"
    if not all(
        math.isfinite(value)
        for value, counts in zip(sample.logprobs, sample.loss_mask, strict=False)
        if counts
    ):
        return "bad_logprobs"
    return "too_long" if len(sample.token_ids) > context else ""


def unscored(trajectory: Trajectory) -> str:
    """Name why a trajectory carries no reward, or nothing."""
    if trajectory.outcome is Outcome.CANCELLED:
        return "cancelled"
    if not trajectory.outcome.scored or trajectory.fault is not None:
        return "fault"
    return ""


def threshold_for(env: str, thresholds: Mapping[str, float]) -> float:
    """Look up by full id, then without options, then "*", then `DEFAULT_THRESHOLD`."""
    for key in (env, env.partition("?")[0], "*"):
        if key in thresholds:
            return thresholds[key]
    return DEFAULT_THRESHOLD


def above(trajectories: Sequence[Trajectory], thresholds: Mapping[str, float]) -> Filtered:
    """Keep rewards strictly above the threshold of their environment.

    Reasons: `fault`, `cancelled`, `below_threshold`.
    """
    kept: list[Trajectory] = []
    dropped: Counter[str] = Counter()
    for trajectory in trajectories:
        reward = trajectory.reward
        if reason := unscored(trajectory):
            dropped[reason] += 1
        elif reward is not None and reward > threshold_for(trajectory.env, thresholds):
            kept.append(trajectory)
        else:
            dropped["below_threshold"] += 1
    return Filtered(kept, dict(dropped))


def distinct(trajectories: Sequence[Trajectory]) -> Filtered:
    """Keep the first of those that took the same actions at the same task (`duplicate`)."""
    kept: list[Trajectory] = []
    seen: set[tuple[TaskKey, tuple[str, ...]]] = set()
    for trajectory in trajectories:
        # A turn that broke the format has no action; what it said instead tells it apart.
        actions = tuple(turn.action or turn.completion for turn in trajectory.turns)
        key = task_key(trajectory), actions
        if key not in seen:
            seen.add(key)
            kept.append(trajectory)
    return _counted(trajectories, kept, "duplicate")


def capped(
    trajectories: Sequence[Trajectory], cap: int, *, choose: Choose = "first", seed: int = 0
) -> Filtered:
    """Keep at most `cap` attempts at each task (`over_cap`); 0 keeps all.

    "shortest" breaks ties by sampled tokens, then by attempt. "random" depends on the
    seed and the task alone, not on what other tasks there are.
    """
    by_task: dict[TaskKey, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_task.setdefault(task_key(trajectory), []).append(trajectory)
    chosen: set[int] = set()
    for key, members in by_task.items():
        order = sorted(members, key=lambda t: (t.attempt, t.id))
        if choose == "shortest":
            order.sort(key=lambda t: (len(t.turns), t.sampled_tokens))
        elif choose == "random":
            generator(seed, "cap", *key).shuffle(order)
        chosen.update(id(t) for t in (order[:cap] if cap else order))
    return _counted(trajectories, [t for t in trajectories if id(t) in chosen], "over_cap")


def _counted(trajectories: Sequence[Trajectory], kept: list[Trajectory], reason: str) -> Filtered:
    missing = len(trajectories) - len(kept)
    return Filtered(kept, {reason: missing} if missing else {})

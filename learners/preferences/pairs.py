"""Which trajectories make preference pairs: pure functions from records to pairs, with counts.

| rule                    | chosen and rejected                                             |
|-------------------------|-----------------------------------------------------------------|
| `against_experts`       | expert and exploration of one task: the higher reward is chosen |
| `at_turns`              | the expert's turn and the agent's, by how the episodes ended    |
| `best_and_worst`        | a task's best attempt and its worst                             |
| `two_samples`           | the lower of the first half of attempts, of the second          |

A reward that is higher by `TIE` or less is a tie, and makes no pair.

Invariants: a faulted or cancelled trajectory is in no pair; both sides begin with the same
observation of the same task, end with what the agent wrote, and differ; nothing is cut
to fit, and an episode that *its* token limit ended is not compared with one that was not
(the difference would be the limit's, not the agent's); whatever makes no pair is a tie or
counted under one reason; equal input gives equal pairs in the same order.

Reasons: `fault`, `cancelled`, `bad_sample` (its tokens, mask and log-probs do not fit together),
`no_reward`, `no_expert`, `itself`, `empty_side`, `other_start`, `bad_branch`, `identical`,
`one_sided_truncation`, `small_gap`, `low_reward`, `single`, `over_cap`.

Sources: ETO, arXiv 2403.02502, and its code (against_experts, at_turns); AgentGym's DPO script
(two_samples). Simplified: nothing. `at_turns` is not in the published code.

Not here: tokens (`objective`), and the losses (`losses`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from ...engine.errors import BadSample
from ...engine.trajectory import Trajectory
from ..evidence.filters import TaskKey, task_key, unscored

TIE: Final = 1e-6
"""Rewards that differ by less are equal: sums of floats carry noise."""

Verdict = Literal["win", "tie", "lose"]
"""Of an exploration against the expert."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two records of one task, the better first."""

    chosen: Trajectory
    rejected: Trajectory
    turn: int | None = None
    """Of a step-wise pair: the turn, counted from 0, that alone is learned from. Both sides end
    with it, and share what stands before it. None: all turns of both."""

    @property
    def gap(self) -> float:
        """By how much the chosen side earned more."""
        return reward_of(self.chosen) - reward_of(self.rejected)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a wave, and what became of the rest."""

    kept: list[Pair]
    dropped: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    """Of explorations against experts, before caps and checks on their tokens."""

    def __add__(self, other: Pairs) -> Pairs:
        dropped = Counter(self.dropped) + Counter(other.dropped)
        verdicts = Counter(self.verdicts) + Counter(other.verdicts)
        return Pairs([*self.kept, *other.kept], dict(dropped), dict(verdicts))

    def metrics(self) -> dict[str, float]:
        """Figures of an evolution step: how many, how far apart, and how the losers failed."""
        figures = {"pairs": float(len(self.kept))}
        figures |= {name: float(n) for name, n in self.verdicts.items()}
        if self.kept:
            n = len(self.kept)
            figures["reward_gap"] = sum(pair.gap for pair in self.kept) / n
            # They teach the format, not the task.
            broken = (any(t.format_error for t in p.rejected.turns) for p in self.kept)
            figures["rejected_format_errors"] = sum(broken) / n
            figures["chosen_turns"] = sum(len(p.chosen.turns) for p in self.kept) / n
            figures["rejected_turns"] = sum(len(p.rejected.turns) for p in self.kept) / n
        return figures


def reward_of(trajectory: Trajectory) -> float:
    """The reward; an expert's without one counts as 1, as experts do in every learner."""
    return 1.0 if trajectory.reward is None else trajectory.reward


def judge(explored: float, expert: float) -> Verdict:
    """Compare two rewards, from the exploration's side."""
    if abs(explored - expert) <= TIE:
        return "tie"
    return "win" if explored > expert else "lose"


def best_own(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """The best attempt at each task, the earliest of equals: the expert of self-play."""
    best: dict[TaskKey, Trajectory] = {}
    for trajectory in trajectories:
        if trajectory.reward is None or unscored(trajectory):
            continue
        key = task_key(trajectory)
        if key not in best or trajectory.reward > reward_of(best[key]) + TIE:
            best[key] = trajectory
    return list(best.values())


def shortened(trajectory: Trajectory, turns: int) -> Trajectory:
    """The record up to the end of what the agent wrote in its turn number `turns`, or its own
    end: a last observation goes in either case."""
    kept = trajectory.turns[:turns]
    if not kept:
        return trajectory
    end = kept[-1].end
    return msgspec.structs.replace(
        trajectory,
        turns=kept,
        final_observation="",
        token_ids=trajectory.token_ids[: 4 * end],
        loss_mask=trajectory.loss_mask[:end],
        logprobs=trajectory.logprobs[: 4 * end],
    )


def against_experts(
    experts: Sequence[Trajectory],
    explored: Sequence[Trajectory],
    *,
    max_extra_turns: int | None = None,
    gap: float = 0.0,
    threshold: float = float("-inf"),
    per_task: int = 0,
) -> Pairs:
    """ETO's rule: at each task the side with the higher reward is chosen.

    Args:
        experts: of several at a task the best counts.
        explored: any number of attempts at a task.
        max_extra_turns: a rejected exploration is cut to the expert's turns and so many.
        gap: least difference in reward.
        threshold: least reward of the chosen side.
        per_task: pairs kept of each task, the widest first; 0: all.
    """
    found = _Found(experts)
    for attempt in explored:
        expert = found.compared(attempt)
        if expert is None:
            continue
        if judge(reward_of(attempt), reward_of(expert)) == "win":
            found.add(attempt, expert, gap, threshold)
        else:
            most = len(attempt.turns)
            if max_extra_turns is not None:
                most = len(expert.turns) + max_extra_turns
            found.add(expert, shortened(attempt, most), gap, threshold)
    return found.pairs(per_task)


def at_turns(experts: Sequence[Trajectory], branches: Sequence[Trajectory]) -> Pairs:
    """ETO's step-wise rule: at turn t the expert's turn against the agent's.

    Args:
        branches: episodes that open with the expert's first t-1 turns and go on with the
            agent's own to their end; their attempt is t, counted from 1. Whichever episode
            ended with the higher reward, its turn t is chosen.
    """
    found = _Found(experts)
    for branch in branches:
        expert = found.compared(branch, at_turn=branch.attempt)
        if expert is None:
            continue
        turns = branch.attempt
        ours, theirs = shortened(branch, turns), shortened(expert, turns)
        if judge(reward_of(branch), reward_of(expert)) == "win":
            found.add(ours, theirs, turn=turns - 1)
        else:
            found.add(theirs, ours, turn=turns - 1)
    return found.pairs()


def best_and_worst(
    explored: Sequence[Trajectory], *, gap: float, threshold: float, per_task: int = 1
) -> Pairs:
    """Best against worst of a task's attempts, second best against second worst, and so on."""
    found = _Found(())
    for members in found.tasks(explored):
        ranked = sorted(members, key=lambda t: (-reward_of(t), t.attempt))
        if len(ranked) < 2:
            found.dropped["single"] += 1
            continue
        couples = len(ranked) // 2
        wanted = min(per_task or couples, couples)
        found.dropped["over_cap"] += len(ranked) - 2 * wanted
        for better, worse in zip(ranked[:wanted], ranked[::-1][:wanted], strict=True):
            found.add(better, shortened(worse, len(worse.turns)), gap, threshold)
    return found.pairs()


def two_samples(explored: Sequence[Trajectory], *, gap: float, threshold: float) -> Pairs:
    """AgentGym's rule: of each half of the attempts the lowest reward; the higher is chosen."""
    found = _Found(())
    half = (max((t.attempt for t in explored), default=0) + 1) / 2
    for members in found.tasks(explored):
        lowest = [
            min(part, key=lambda t: (reward_of(t), t.attempt))
            for part in (
                [t for t in members if t.attempt < half],
                [t for t in members if t.attempt >= half],
            )
            if part
        ]
        found.dropped["over_cap"] += len(members) - len(lowest)
        if len(lowest) < 2:
            found.dropped["single"] += 1
            continue
        worse, better = sorted(lowest, key=reward_of)
        found.add(better, shortened(worse, len(worse.turns)), gap, threshold)
    return found.pairs()


class _Found:
    """Pairs while they are being found, with the counts of what is none."""

    def __init__(self, experts: Sequence[Trajectory]) -> None:
        self.dropped: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._kept: list[Pair] = []
        self._experts: dict[TaskKey, Trajectory] = {}
        for expert in experts:
            # One without a reward is an expert all the same; a broken episode is not.
            if unscored(expert) or _torn(expert):
                continue
            best = self._experts.setdefault(task_key(expert), expert)
            if reward_of(expert) > reward_of(best):
                self._experts[task_key(expert)] = expert

    def tasks(self, explored: Sequence[Trajectory]) -> list[list[Trajectory]]:
        """The scored attempts by task, in first-seen order."""
        by_task: dict[TaskKey, list[Trajectory]] = {}
        for attempt in explored:
            if reason := unscored(attempt) or _torn(attempt):
                self.dropped[reason] += 1
            elif not attempt.turns:
                self.dropped["empty_side"] += 1
            else:
                by_task.setdefault(task_key(attempt), []).append(attempt)
        return list(by_task.values())

    def compared(self, attempt: Trajectory, at_turn: int | None = None) -> Trajectory | None:
        """The expert that this attempt is to be paired with, unless something speaks against it."""
        expert = self._experts.get(task_key(attempt))
        reason = unscored(attempt) or _torn(attempt)
        if not reason and attempt.reward is None:
            reason = "no_reward"
        elif not reason and expert is None:
            reason = "no_expert"
        elif not reason and expert is attempt:
            reason = "itself"
        if not reason and expert is not None and at_turn is not None:
            reason = _broken_branch(expert, attempt, at_turn)
        if not reason and expert is not None:
            reason = _incomparable(expert, attempt)
        if reason or expert is None:
            self.dropped[reason] += 1
            return None
        verdict = judge(reward_of(attempt), reward_of(expert))
        self._verdicts[verdict] += 1
        return None if verdict == "tie" else expert

    def add(
        self,
        chosen: Trajectory,
        rejected: Trajectory,
        gap: float = 0.0,
        threshold: float = float("-inf"),
        *,
        turn: int | None = None,
    ) -> None:
        """Keep a pair, or count why not."""
        reason = _incomparable(chosen, rejected)
        difference = reward_of(chosen) - reward_of(rejected)
        if reason:
            pass
        elif difference <= TIE or difference < gap - TIE:
            reason = "small_gap"
        elif reward_of(chosen) < threshold - TIE:
            reason = "low_reward"
        elif _same(chosen, rejected):
            reason = "identical"
        elif (chosen.truncation == "tokens") != (rejected.truncation == "tokens"):
            reason = "one_sided_truncation"
        if reason:
            self.dropped[reason] += 1
        else:
            self._kept.append(Pair(shortened(chosen, len(chosen.turns)), rejected, turn))

    def pairs(self, per_task: int = 0) -> Pairs:
        """What was found, with at most so many pairs of a task."""
        kept = self._kept
        if per_task:
            taken: Counter[TaskKey] = Counter()
            chosen: set[int] = set()
            for pair in sorted(kept, key=lambda p: -p.gap):  # stable: earlier ones first
                key = task_key(pair.chosen)
                taken[key] += 1
                if taken[key] <= per_task:
                    chosen.add(id(pair))
            self.dropped["over_cap"] += len(kept) - len(chosen)
            kept = [pair for pair in kept if id(pair) in chosen]
        verdicts: dict[str, int] = {}
        if self._verdicts:
            verdicts = {name: self._verdicts[name] for name in ("win", "tie", "lose")}
        return Pairs(kept, {reason: n for reason, n in self.dropped.items() if n}, verdicts)


def _torn(trajectory: Trajectory) -> str:
    """Whether a record's tokens break its invariants: cut to its last turn, it might not show."""
    if not (trajectory.token_ids or trajectory.loss_mask or trajectory.logprobs):
        return ""
    try:
        trajectory.check()
    except BadSample:
        return "bad_sample"
    return ""


def _incomparable(one: Trajectory, other: Trajectory) -> str:
    """Why two records of a task cannot be compared at all, or nothing."""
    if not one.turns or not other.turns:
        return "empty_side"
    # What the environment wrote cancels only between episodes that began alike.
    if one.turns[0].observation.strip() != other.turns[0].observation.strip():
        return "other_start"
    return ""


def _broken_branch(expert: Trajectory, branch: Trajectory, turn: int) -> str:
    """Whether an episode does not open with the expert's turns before this one."""
    if not 1 <= turn <= min(len(expert.turns), len(branch.turns)):
        return "bad_branch"
    before = zip(expert.turns[: turn - 1], branch.turns[: turn - 1], strict=True)
    if any(ours.action != theirs.action for ours, theirs in before):
        return "bad_branch"
    return ""


def _same(one: Trajectory, other: Trajectory) -> bool:
    """Whether the agent wrote the same in both."""
    if len(one.turns) != len(other.turns):
        return False
    texts = zip(one.turns, other.turns, strict=True)
    return all(a.completion.strip() == b.completion.strip() for a, b in texts)

"""AgentEvol: explore with the policy, keep what succeeded, clone it beside the experts.

Expectation maximisation on p(optimal | τ) ∝ r(τ): exploring with π_m and weighting by
reward estimates q ∝ π_m · r, and the update minimises KL(q ‖ π_θ), which is the
reward-weighted log-likelihood of what the agent wrote. With weight = "binary" and a
threshold, as in the published code, the weights are 0 and 1.

    D_m  = the successes of wave m: reward strictly above the threshold of their
           environment, no action sequence twice, at most `per_task_cap` of each task
    data = D_s ∪ D_m (initial) | D_{m-1} ∪ D_m (previous) | D_s ∪ D_1 ∪ … ∪ D_m
           (cumulative) | D_m (none), with D_0 = D_s the expert trajectories

Invariants: D_m holds trajectories of π_m alone (their version span says so); no
evaluation task enters, an attempt is an error and not a count; weights are never
negative; equal input gives an equal dataset, with an equal digest.

Source: AgentGym, arXiv 2406.04151, and its code. Where they differ: the paper weighs by reward,
the code filters (`weight`); the paper merges with the experts, the code piles up (`merge`); the
code explores every task once and greedily, or at a temperature of 1.2, here K times at 1.
Simplified: nothing. A deviation, off by default: choose = "shortest" keeps the shortest success
of a task, not the first.

Not here: waves, attempts per task and stopping (`actors.campaign`, `stopping`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, overload

import msgspec

from ...engine.codec import unpack_floats
from ...engine.errors import BadSample, ConfigError, EmptyWave
from ...engine.seeds import generator
from ...engine.trajectory import Trajectory
from ..base import Evidence, Learner, Progress, Report
from ..evidence.filters import (
    Filtered,
    TaskKey,
    above,
    capped,
    distinct,
    refuse_evaluation,
    task_key,
)
from ..evidence.moments import moments
from ..model.mismatch import wave_mismatch
from ..settings import EvolSettings
from .behaviour_cloning import clone

if TYPE_CHECKING:
    from ..training.loop import Evaluate


@dataclass(frozen=True, slots=True)
class Dataset(Sequence[Trajectory]):
    """What one evolution step trains on: trajectories with weights, and how it came to be."""

    trajectories: tuple[Trajectory, ...]
    weights: tuple[float, ...]
    """One for each trajectory; not negative."""
    digest: str
    """Hash of content and weights."""
    counts: Mapping[str, int]
    """experts, new, wave trajectories, unique and newly solved tasks."""
    dropped: Mapping[str, int]
    """Trajectories of the current wave left out, by reason."""
    statistics: Mapping[str, float]
    """Of the current wave: success_rate (also by environment), turns, entropy."""
    new: tuple[Trajectory, ...] = ()
    """D_m: those of the current wave."""

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Trajectory, ...]: ...
    def __getitem__(self, index: int | slice) -> Trajectory | tuple[Trajectory, ...]:
        return self.trajectories[index]

    def __len__(self) -> int:
        return len(self.trajectories)


def evolve(
    settings: EvolSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    learner = AgentEvol(
        settings,
        base_bc=evidence.start("base_bc"),
        pretrained=evidence.start("pretrained"),
        evaluation=evidence.evaluation,
    )
    learner.last = evidence.start("last")
    data = learner.select(evidence.experts, evidence.waves)
    return learner.update(
        data,
        out=out,
        metrics=moments(evidence.waves[-1] if evidence.waves else (), evidence.number)
        | {"new": float(len(data.new))},
        progress=progress,
    )


class AgentEvol(Learner):
    """The evolution step between two waves.

    Args:
        base_bc: model directory cloned from the experts: where every wave starts, unless
            settings say otherwise.
        pretrained: the model before cloning; needed for start = "pretrained".
        evaluation: tasks that must never be trained on.
    """

    def __init__(
        self,
        settings: EvolSettings,
        *,
        base_bc: str,
        pretrained: str = "",
        evaluation: Iterable[TaskKey] = (),
    ) -> None:
        if settings.start == "pretrained" and not pretrained:
            raise ConfigError('start = "pretrained" needs the directory of the pretrained model')
        self.settings = settings
        self.base_bc = base_bc
        self.pretrained = pretrained
        self.evaluation = frozenset(evaluation)
        self.last = base_bc
        """The policy of the last update; a resumed campaign sets it."""

    def exploration(self, experts: Sequence[Trajectory], tasks: Sequence[TaskKey]) -> list[TaskKey]:
        """The tasks to explore: those of the experts, or all of `tasks` and those.

        Raises:
            EvaluationLeak: an evaluation task is among them.
        """
        known = dict.fromkeys(task_key(t) for t in experts)
        keys = known if self.settings.scope == "expert_tasks" else dict.fromkeys([*tasks, *known])
        refuse_evaluation(self.evaluation, keys)
        return list(keys)

    def select(
        self,
        experts: Sequence[Trajectory],
        waves: Sequence[Sequence[Trajectory]],
        *,
        versions: Sequence[int] | None = None,
    ) -> Dataset:
        """Make the data of wave m = len(waves) from the experts and all waves so far. Pure.

        Reasons for dropping: those of `filters.above`, `other_policy` (tokens of another
        version than π_m's), `out_of_scope`, `duplicate`, `over_cap`, `over_ratio`.

        Args:
            versions: policy version that explored each wave; None: the newest in it.

        Raises:
            EvaluationLeak: an evaluation task is among experts or waves.
            EmptyWave: no new trajectory is left of the last wave.
            BadSample: a weight would be negative.
        """
        if not waves:
            raise EmptyWave("no wave was given: there is nothing to evolve from")
        if versions is not None and len(versions) != len(waves):
            raise ConfigError(f"{len(versions)} policy versions for {len(waves)} waves")
        refuse_evaluation(self.evaluation, map(task_key, experts))
        for wave in waves:
            refuse_evaluation(self.evaluation, map(task_key, wave))
        known = {task_key(t) for t in experts}
        found = [
            self._successes(wave, known, len(experts), versions[m] if versions else None)
            for m, wave in enumerate(waves)
        ]
        new = found[-1]
        if not new.kept:
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(new.dropped.items()))
            raise EmptyWave(
                f"wave {len(waves)} has no usable trajectory ({why or 'it is empty'}): explore "
                "longer, lower the threshold, or clone more experts first"
            )
        merged = _union(self._parts(experts, [f.kept for f in found]))
        weights = self._weights(merged)
        solved = {task_key(t) for t in new.kept}
        before = known | {task_key(t) for f in found[:-1] for t in f.kept}
        counts = {
            "experts": len(set(merged).intersection(experts)),
            "new": len(new.kept),
            "trajectories": len(merged),
            "tasks_solved": len(solved),
            "tasks_newly_solved": len(solved - before),
        }
        return Dataset(
            tuple(merged),
            weights,
            content_hash(merged, weights),
            counts,
            new.dropped,
            _statistics(waves[-1], self.settings.thresholds),
            tuple(new.kept),
        )

    def update(
        self,
        trajectories: Sequence[Trajectory],
        *,
        out: str,
        metrics: Mapping[str, float] | None = None,
        progress: Progress | None = None,
        evaluate: Evaluate | None = None,
    ) -> Report:
        """Train on a `Dataset` of `select` (or on plain trajectories, weighted by settings).

        Args:
            metrics: known before training; they join the report's.

        Raises:
            EvaluationLeak: an evaluation task is among them.
            Others: as `BehaviourCloning.update`.
        """
        refuse_evaluation(self.evaluation, map(task_key, trajectories))
        record: dict[str, object] = {
            "algorithm": "agent_evol",
            "evolution": msgspec.to_builtins(self.settings),
        }
        new: tuple[Trajectory, ...] = ()
        dropped: Mapping[str, int] = {}
        if isinstance(trajectories, Dataset):
            weights, new, dropped = trajectories.weights, trajectories.new, trajectories.dropped
            record |= {"dataset": trajectories.digest, "counts": dict(trajectories.counts)}
        else:
            weights = self._weights(trajectories)
        report = clone(
            list(trajectories),
            settings=self.settings.training,
            start=self.start,
            out=out,
            weights=weights,
            record=record,
            metrics={
                **(metrics or {}),
                **wave_mismatch(self.last, _newest(trajectories), self.settings.training),
            },
            new=new,
            dropped=dropped,
            progress=progress,
            evaluate=evaluate,
        )
        self.last = out
        return report

    @property
    def start(self) -> str:
        """The model directory that the next update starts from."""
        directories = {"base_bc": self.base_bc, "pretrained": self.pretrained, "last": self.last}
        return directories[self.settings.start]

    def _successes(
        self, wave: Sequence[Trajectory], known: set[TaskKey], experts: int, version: int | None
    ) -> Filtered:
        """Make D_m of one wave."""
        settings = self.settings
        passed = above(wave, settings.thresholds)
        if version is None:
            version = max((t.versions[1] for t in wave), default=0)
        own = [t for t in passed.kept if t.versions == (version, version)]
        in_scope = [t for t in own if settings.scope == "all_tasks" or task_key(t) in known]
        dropped = Counter(passed.dropped)
        dropped["other_policy"] = len(passed.kept) - len(own)
        dropped["out_of_scope"] = len(own) - len(in_scope)
        ordered = sorted(in_scope, key=lambda t: t.attempt)
        unique = distinct(ordered) if settings.distinct else Filtered(ordered)
        few = capped(unique.kept, settings.per_task_cap, choose=settings.choose, seed=settings.seed)
        for part in (unique, few):
            dropped.update(part.dropped)
        chosen = {id(t) for t in few.kept}
        kept = [t for t in wave if id(t) in chosen]  # in the order of the wave again
        if settings.max_new_ratio is not None:
            most = math.floor(settings.max_new_ratio * experts)
            if len(kept) > most:
                dropped["over_ratio"] = len(kept) - most
                drawn = set(generator(settings.seed, "ratio").sample(range(len(kept)), most))
                kept = [t for i, t in enumerate(kept) if i in drawn]
        return Filtered(kept, {reason: n for reason, n in dropped.items() if n})

    def _parts(
        self, experts: Sequence[Trajectory], found: Sequence[Sequence[Trajectory]]
    ) -> list[Sequence[Trajectory]]:
        """The sets whose union is trained on."""
        match self.settings.merge:
            case "initial":
                return [experts, found[-1]]
            case "previous":
                return [found[-2] if len(found) > 1 else experts, found[-1]]
            case "cumulative":
                return [experts, *found]
            case "none":
                return [found[-1]]

    def _weights(self, trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
        """Weights in the loss; an expert trajectory without a reward counts as 1."""
        settings = self.settings
        if settings.weight == "binary":
            return (1.0,) * len(trajectories)
        rewards = [1.0 if t.reward is None else t.reward for t in trajectories]
        if settings.weight == "exp":
            # exp(r / beta) up to a constant, which the loss's denominator cancels; it keeps
            # a small beta from overflowing.
            top = max(rewards, default=0.0)
            return tuple(math.exp((r - top) / settings.beta) for r in rewards)
        if rewards and min(rewards) < 0:
            raise BadSample(
                f"reward {min(rewards)} as a weight: weights must not be negative; shift the "
                'rewards at the environment, or use weight = "exp"'
            )
        return tuple(rewards)


def _newest(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """What the newest policy alone sampled."""
    sampled = [t for t in trajectories if t.token_ids]
    version = max((t.versions[1] for t in sampled), default=0)
    return [t for t in sampled if t.versions == (version, version)]


def content_hash(trajectories: Sequence[Trajectory], weights: Sequence[float]) -> str:
    """Hash what was played and how it counts; not when, nor how long it took."""
    digest = blake2b(digest_size=16)
    for t, weight in zip(trajectories, weights, strict=True):
        turns = [(turn.observation, turn.completion, turn.action) for turn in t.turns]
        prompt = [(message.role, message.text, message.loss) for message in t.prompt]
        fields = (t.env, t.task_id, t.id, t.reward, t.token_ids, t.loss_mask, prompt, turns, weight)
        digest.update(msgspec.msgpack.encode(fields))
    return digest.hexdigest()


def _union(parts: Sequence[Sequence[Trajectory]]) -> list[Trajectory]:
    """Records of all parts, each once, in order. By value: ids repeat across runs."""
    return list(dict.fromkeys(t for part in parts for t in part))


def _statistics(wave: Sequence[Trajectory], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Describe a wave as it was explored, before anything was dropped."""
    scored = [t for t in wave if t.outcome.scored]
    if not scored:
        return {}
    good = Counter(t.env for t in above(scored, thresholds).kept)
    of_env = Counter(t.env for t in scored)
    numbers = {f"success_rate/{env}": good[env] / n for env, n in sorted(of_env.items())}
    numbers["success_rate"] = good.total() / len(scored)
    numbers["turns"] = sum(len(t.turns) for t in scored) / len(scored)
    tokens = sum(t.sampled_tokens for t in scored)
    if tokens:
        # The mean surprise of what was sampled estimates the entropy per token.
        numbers["entropy"] = -sum(math.fsum(unpack_floats(t.logprobs)) for t in scored) / tokens
    return numbers

"""Exploration-based trajectory optimisation: learn from one's failures beside the expert.

    iteration i:  explore every expert task with the policy, greedily and once
                  pair each exploration with the expert's trajectory by their rewards
                  DPO from the policy, with the policy itself as the reference

Each iteration uses its own new pairs alone, and its reference is the policy that it starts
from. `contrast` chooses what is compared: whole trajectories, or the single turn behind
which an episode that began with the expert's own turns went on to its end, or both. In
self-play the best own trajectory of a task, of all waves so far, stands in for the expert; with
opening = "rejection" the first wave is rejection fine-tuning, without which self-play fails.

Source: arXiv 2403.02502 v1 and its code. Where they differ: exploration is
greedy as in both; the rate and beta of each iteration are options (`lrs`, `betas`; the code
has 1e-6, 5e-7, … and 0.1, 0.5, …); the cut of rejected explorations is the code's for two of
three worlds (`max_extra_turns`). The step-wise form was not published as code. Simplified:
nothing. Ours: fewer than `min_pairs` pairs end the campaign.

Invariant: the loss at the start of every iteration is ln 2.

Not here: the rules (`pairs`), the step (`step`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...engine.errors import ConfigError
from ...engine.trajectory import Trajectory
from ..base import Evidence, Progress, Report
from ..cloning import rejection
from ..evidence.filters import refuse_evaluation, task_key
from ..settings import EtoSettings, RejectionSettings
from .pairs import Pairs, against_experts, at_turns, best_own
from .step import learn_pairs


def evolve(
    settings: EtoSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    opened = settings.opening == "rejection"
    if opened and evidence.number == 1:
        return rejection.evolve(_opening(settings), evidence, out=out, progress=progress)
    iteration = evidence.number - opened
    return learn_pairs(
        select(settings, evidence),
        at_iteration(settings, iteration),
        evidence,
        start=evidence.start("last"),
        out=out,
        record={"algorithm": "eto", "iteration": iteration},
        progress=progress,
    )


def at_iteration(settings: EtoSettings, iteration: int) -> EtoSettings:
    """The settings with the rate and the beta of an iteration, counted from 1."""
    training, beta = settings.training, settings.beta
    if settings.lrs:
        lr = settings.lrs[min(iteration, len(settings.lrs)) - 1]
        training = msgspec.structs.replace(training, lr=lr)
    if settings.betas:
        beta = settings.betas[min(iteration, len(settings.betas)) - 1]
    return msgspec.structs.replace(settings, training=training, beta=beta)


def select(settings: EtoSettings, evidence: Evidence) -> Pairs:
    """The pairs of the newest wave. Pure.

    Raises:
        EvaluationLeak: an evaluation task is among experts or explorations.
        ConfigError: there is nobody to compare with.
    """
    played = [t for wave in evidence.waves for t in wave]
    refuse_evaluation(evidence.evaluation, map(task_key, [*evidence.experts, *played]))
    if settings.self_play:
        newest = list(evidence.waves[-1]) if evidence.waves else []
        return _against(settings, best_own(played), newest)
    if not evidence.experts:
        raise ConfigError(
            "ETO compares with experts, and there are none: set experts.tasks or experts.path, "
            "or learner.self_play = true"
        )
    match settings.contrast:
        case "trajectory":
            return _against(settings, evidence.experts, played)
        case "step":
            return at_turns(evidence.experts, played)
        case "mixture":
            whole = [t for t in played if t.attempt == 0]
            branches = [t for t in played if t.attempt > 0]
            return _against(settings, evidence.experts, whole) + at_turns(
                evidence.experts, branches
            )


def _against(
    settings: EtoSettings, experts: Sequence[Trajectory], explored: Sequence[Trajectory]
) -> Pairs:
    return against_experts(
        experts,
        explored,
        max_extra_turns=settings.max_extra_turns,
        per_task=settings.pairs_per_task,
    )


def _opening(settings: EtoSettings) -> RejectionSettings:
    """The first wave of a campaign that opens with rejection fine-tuning."""
    return RejectionSettings(
        scope=settings.scope,
        training=settings.opening_training,
        thresholds=settings.thresholds,
        per_task_cap=settings.per_task_cap,
    )

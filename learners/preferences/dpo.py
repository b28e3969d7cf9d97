"""DPO on success and failure: pairs of the policy's own attempts, one round a wave.

    L = -mean log sigma(beta h),   h as in `losses`, reference = the start

Source: DPO, arXiv 2305.18290; AgentGym's ablation, arXiv 2406.04151, whose pairing is
`pairing = "two_samples"`: two samples of each task, the lower of each pass, the higher of these
two is chosen. Ours pairs the best with the worst of K ("self"), or the expert with the worst
("expert"). Every pair needs
a gap in reward and a winner above a threshold. Simplified: nothing.

Invariant: at most `pairs_per_task` pairs of a task and wave.

Not here: the rules (`pairs`), the step (`step`).
"""

from __future__ import annotations

from ..base import Evidence, Progress, Report
from ..evidence.filters import refuse_evaluation, task_key
from ..settings import DpoSettings
from .pairs import Pairs, against_experts, best_and_worst, two_samples
from .step import learn_pairs


def evolve(
    settings: DpoSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    return learn_pairs(
        select(settings, evidence),
        settings,
        evidence,
        start=evidence.start(settings.start),
        out=out,
        record={"algorithm": "dpo"},
        progress=progress,
    )


def select(settings: DpoSettings, evidence: Evidence) -> Pairs:
    """The pairs of the newest wave. Pure.

    Raises:
        EvaluationLeak: an evaluation task is among experts or attempts.
    """
    explored = [t for wave in evidence.waves for t in wave]
    refuse_evaluation(evidence.evaluation, map(task_key, [*evidence.experts, *explored]))
    gap, threshold, most = settings.gap, settings.threshold, settings.pairs_per_task
    match settings.pairing:
        case "self":
            return best_and_worst(explored, gap=gap, threshold=threshold, per_task=most)
        case "expert":
            return against_experts(
                evidence.experts, explored, gap=gap, threshold=threshold, per_task=most
            )
        case "two_samples":
            return two_samples(explored, gap=gap, threshold=threshold)

"""Rejection fine-tuning: keep what succeeded, and train the pretrained model once on it.

The cloned agent makes K attempts at each task; its successes D+ join the experts, and the
*pretrained* model is cloned on D_s ∪ D+. That is AgentEvol with one wave, another start, and more
than one success of a task, and it is selected by the same code.

Source: a baseline of ETO's paper, arXiv 2403.02502, which was not published as code. Simplified:
nothing.

Invariants: those of `agent_evol`; attempts with the same actions count once, so that K
copies of one easy success are one.

Not here: the filters (`filters`), the loss (`behaviour_cloning`).
"""

from __future__ import annotations

import msgspec

from ..base import Evidence, Progress, Report
from ..evidence.moments import moments
from ..model.mismatch import wave_mismatch
from ..settings import EvolSettings, RejectionSettings
from .agent_evol import AgentEvol
from .behaviour_cloning import clone


def evolve(
    settings: RejectionSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    selection = EvolSettings(
        scope=settings.scope,
        training=settings.training,
        start=settings.start,
        thresholds=settings.thresholds,
        per_task_cap=settings.per_task_cap,
    )
    learner = AgentEvol(
        selection,
        base_bc=evidence.start("base_bc"),
        pretrained=evidence.start("pretrained"),
        evaluation=evidence.evaluation,
    )
    learner.last = evidence.start("last")
    wave = [trajectory for part in evidence.waves for trajectory in part]
    data = learner.select(evidence.experts, [wave])
    return clone(
        data.trajectories,
        settings=settings.training,
        start=learner.start,
        out=out,
        weights=data.weights,
        record={
            "algorithm": "rft",
            "evolution": msgspec.to_builtins(settings),
            "dataset": data.digest,
            "counts": dict(data.counts),
        },
        metrics=moments(wave, evidence.number)
        | {"new": float(len(data.new))}
        | wave_mismatch(evidence.start("last"), data.trajectories, settings.training),
        new=data.new,
        dropped=data.dropped,
        progress=progress,
    )

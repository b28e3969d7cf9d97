"""From the settings of an algorithm to its evolution step.

Every algorithm's module has a function `evolve(settings, evidence, *, out, progress)`; this
one finds it by the type of the settings, and loads no other.

Not here: the algorithms.
"""

from __future__ import annotations

from .base import Evidence, Progress, Report
from .settings import (
    AnyLearner,
    DpoSettings,
    EtoSettings,
    EvolSettings,
    GrpoSettings,
    PpoSettings,
    RejectionSettings,
)


def evolve(
    settings: AnyLearner, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """Run one evolution step and save the new policy as a model directory at `out`. Blocks.

    Raises:
        EmptyWave: nothing usable; the text counts what was dropped by reason.
        EvaluationLeak: an evaluation task is among the evidence.
        LearnerError: the loss stopped being finite.
    """
    match settings:
        case EvolSettings():
            from .cloning import agent_evol

            return agent_evol.evolve(settings, evidence, out=out, progress=progress)
        case RejectionSettings():
            from .cloning import rejection

            return rejection.evolve(settings, evidence, out=out, progress=progress)
        case DpoSettings():
            from .preferences import dpo

            return dpo.evolve(settings, evidence, out=out, progress=progress)
        case EtoSettings():
            from .preferences import eto

            return eto.evolve(settings, evidence, out=out, progress=progress)
        case GrpoSettings():
            from .gradients import grpo

            return grpo.evolve(settings, evidence, out=out, progress=progress)
        case PpoSettings():
            from .gradients import ppo

            return ppo.evolve(settings, evidence, out=out, progress=progress)

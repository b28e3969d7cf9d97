"""Behaviour cloning: maximise the log-probability of what the agent wrote.

    loss of one optimiser step = −Σ_i w_i Σ_t a_it log π(x_it | x_i,<t) / Σ_i w_i n_i

with a_it = 1 where the agent wrote token t (its closer included), n_i their number, and
all sums over the whole step. With w_i = 1 this is the token mean.

Invariant: whatever the agent did not write has no part in the loss.

Source: any text on imitation; equation 5 of ETO, arXiv 2403.02502 (its equation 3 lacks the log).
Simplified: a trajectory that is longer than the context is dropped; nothing is windowed by turns.

Not here: which trajectories are good (`filters`, `agent_evol`), the loop (`training.loop`), and
where the result goes (`evolution_step`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...engine.trajectory import Trajectory
from ..base import Learner, Progress, Report
from ..evidence.samples import hash_samples, samples_of
from ..settings import TrainingSettings
from ..training.evolution_step import run_step

if TYPE_CHECKING:
    from ..training.loop import Evaluate


class BehaviourCloning(Learner):
    """Fine-tunes a model on expert trajectories, or on any others it is given."""

    def __init__(self, settings: TrainingSettings, start: str) -> None:
        self.settings = settings
        self.start = start

    def update(
        self,
        trajectories: Sequence[Trajectory],
        *,
        out: str,
        progress: Progress | None = None,
        evaluate: Evaluate | None = None,
    ) -> Report:
        """Clone the trajectories from `start` and save the policy at `out`.

        With `evaluate`, dev reward is taken every `evaluate_every` steps and after the
        last one; the best policy is saved, and training stops after `patience`
        evaluations that were not better.

        Raises:
            EmptyWave: nothing usable; the text counts what was dropped by reason.
            ConfigError: `start` is not a model that can be trained here.
            LearnerError: the loss stopped being finite.
            CheckpointCorrupt: the checkpoint of this very run is damaged.
            StorageFailed: the disk refused a write; checkpoints before it are intact.
            RunLocked: an evolution step that was given up still works on `out`.
        """
        return clone(
            trajectories,
            settings=self.settings,
            start=self.start,
            out=out,
            record={"algorithm": "behaviour_cloning"},
            progress=progress,
            evaluate=evaluate,
        )


def clone(
    trajectories: Sequence[Trajectory],
    *,
    settings: TrainingSettings,
    start: str,
    out: str,
    weights: Sequence[float] | None = None,
    record: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    new: Collection[Trajectory] = (),
    dropped: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
) -> Report:
    """Train on trajectories, each with its weight: what `BehaviourCloning.update` does.

    Args:
        weights: one for each trajectory, not negative; None: all 1.
        record: put into `training.json` beside the rest.
        metrics: known before training; they join the report's.
        new: if given, those without any of which there is nothing to learn.
        dropped: left out before, by reason; they join the report's.

    Raises:
        EmptyWave: nothing is usable, or nothing of what is new.
        Others: as `BehaviourCloning.update`.
    """
    from ..training.objective import Likelihood

    ready = samples_of(
        trajectories, start=start, settings=settings, weights=weights, split=True
    ).require(new)
    single = sum(1 for sample in ready.samples if sample.episode)
    return run_step(
        ready.samples,
        Likelihood(),
        settings=settings,
        start=start,
        out=out,
        data=hash_samples(ready.samples),
        record=record or {},
        dropped=dict(Counter(dropped or {}) + Counter(ready.dropped)),
        kept=len(ready.trajectories),
        metrics={**(metrics or {}), **({"split_turns": float(single)} if single else {})},
        progress=progress,
        evaluate=evaluate,
    )

"""One evolution step on pairs: what DPO and ETO share once their pairs are found.

Invariants: with fewer pairs than `min_pairs` there is no step, and the error counts what
became of the wave; the same pairs, start and settings give bit-equal weights on a CPU, also
when the step was killed anywhere and run again.

Not here: how pairs are found (`dpo`, `eto`, `pairs`), and the loss (`objective`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from ...engine.errors import EmptyWave
from ..base import Evidence, Progress, Report, Sample
from ..evidence.filters import refuse_evaluation, task_key
from ..evidence.moments import moments
from ..evidence.samples import hash_samples
from ..settings import PreferenceSettings
from ..training.evolution_step import run_step
from .pairs import Pairs
from .reference import reference_directory
from .samples import PairSamples, pair_samples, sides


def learn_pairs(
    pairs: Pairs,
    settings: PreferenceSettings,
    evidence: Evidence,
    *,
    start: str,
    out: str,
    record: Mapping[str, Any],
    progress: Progress | None = None,
) -> Report:
    """Train on pairs from `start` and save the policy at `out`.

    Args:
        settings: with the rate and the beta of this very iteration.
        record: what else decides the result; it goes into `training.json`.

    Raises:
        EmptyWave: fewer pairs than `min_pairs` can be used.
        EvaluationLeak: a pair is of an evaluation task.
        ConfigError: the reference is no model directory, or of another vocabulary.
        Others: as `evolution_step.run_step`.
    """
    from ..training.checkpoint import hash_model
    from .objective import Preference

    refuse_evaluation(evidence.evaluation, (task_key(p.chosen) for p in pairs.kept))
    ready = pair_samples(pairs.kept, start=start, settings=settings.training)
    dropped = dict(Counter(pairs.dropped) + Counter(ready.dropped))
    _require_enough(ready, settings.min_pairs, {**pairs.verdicts, **dropped})
    reference = reference_directory(settings.reference, evidence)
    objective = Preference(
        settings,
        reference=reference,
        sampled_at=_temperature(ready) if start == evidence.start("last") else None,
        compared=_newest(ready),
    )
    # The same dictionary: the step reads it after `prepare` has filled in the rest.
    newest = evidence.waves[-1:] if settings.history == "all" else evidence.waves
    objective.figures |= moments([t for part in newest for t in part], evidence.number)
    objective.figures |= Pairs(ready.pairs, {}, pairs.verdicts).metrics()
    return run_step(
        ready.items,
        objective,
        settings=settings.training,
        start=start,
        out=out,
        data=hash_samples(sides(ready.items)),
        record={
            **record,
            "preference": msgspec.to_builtins(settings),
            "reference": hash_model(reference) if reference else "start",
        },
        dropped=dropped,
        metrics=objective.figures,
        progress=progress,
    )


def _require_enough(ready: PairSamples, least: int, counts: Mapping[str, int]) -> None:
    found = len(ready.items)
    if found < least:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()) if n)
        raise EmptyWave(
            f"{found} usable preference pairs, fewer than learner.min_pairs = {least} "
            f"({why or 'the wave is empty'}): explore more tasks, or accept fewer pairs"
        )


def _newest(ready: PairSamples) -> list[Sample]:
    """The sequences that the newest policy sampled: the best own one may be of an earlier wave."""
    found = [
        (trajectory, sample)
        for pair, item in zip(ready.pairs, ready.items, strict=True)
        for trajectory, sample in ((pair.chosen, item.chosen), (pair.rejected, item.rejected))
        if trajectory.token_ids
    ]
    newest = max((trajectory.versions[0] for trajectory, _ in found), default=0)
    return [sample for trajectory, sample in found if trajectory.versions[0] == newest]


def _temperature(ready: PairSamples) -> float:
    """What the agent's sides were sampled at; one wave has one temperature."""
    own = [t for pair in ready.pairs for t in (pair.chosen, pair.rejected) if t.token_ids]
    return own[0].temperature if own else 0.0

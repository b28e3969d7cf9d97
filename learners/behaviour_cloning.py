"""Behaviour cloning: maximise the log-probability of what the agent wrote.

    loss of one optimiser step = −Σ_i w_i Σ_t a_it log π(x_it | x_i,<t) / Σ_i w_i n_i

with a_it = 1 where the agent wrote token t (its closer included), n_i their number, and
all sums over the whole step. With w_i = 1 this is the token mean.

Invariants: the same trajectories, start and settings give bit-equal weights on a CPU;
the model directory appears whole or not at all, and its `training.json` says what made
it: hashes of data and start, settings, seed, versions, what was dropped.

    OUT            the model directory
    OUT.training   checkpoints, while it is being made (`training`)

Not here: which trajectories are good (`filters`, `agent_evol`), the loop (`training`).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from ..engine.trajectory import Trajectory
from .base import Learner, Progress, Report, Sample
from .chat import load_renderer, tokenise
from .filters import usable
from .settings import CloningSettings

if TYPE_CHECKING:
    from .training import Evaluate


class BehaviourCloning(Learner):
    """Fine-tunes a model on expert trajectories, or on any others it is given."""

    def __init__(self, settings: CloningSettings, start: str) -> None:
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
    settings: CloningSettings,
    start: str,
    out: str,
    weights: Sequence[float] | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
) -> Report:
    """Train on trajectories, each with its weight: what `BehaviourCloning.update` does.

    Args:
        weights: one for each trajectory, not negative; None: all 1.
        record: put into `training.json` beside the rest.
    """
    from .checkpoint import hash_model
    from .directories import atomic_directory, claimed
    from .policy import context_length
    from .training import Training

    renderer = load_renderer(start, keep_thoughts=settings.keep_thoughts)
    weight_of = {id(t): w for t, w in zip(trajectories, weights or (), strict=weights is not None)}
    ready = usable(
        trajectories,
        lambda t: _weighted(tokenise(renderer, t), weight_of.get(id(t), 1.0)),
        context=min(settings.context or 2**31, context_length(start)),
        texts=settings.texts,
    ).require()
    made_by: dict[str, Any] = {
        **(record or {}),
        "data": hash_samples(ready.samples),
        "start": {"path": str(start), "hash": hash_model(start)},
        "settings": msgspec.to_builtins(settings),
    }
    with claimed(f"{out}.training") as work:
        training = Training(
            ready.samples, settings, start=str(start), work=work, fingerprint=_fingerprint(made_by)
        )
        metrics = training.run(progress, evaluate)
        made_by |= {
            "metrics": metrics,
            "kept": len(ready.samples),
            "dropped": ready.dropped,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("rollwave", "torch", "transformers")},
            },
        }
        with atomic_directory(out) as draft:
            training.save(draft)
            text = msgspec.json.format(msgspec.json.encode(made_by, order="sorted"), indent=2)
            (draft / "training.json").write_bytes(text + b"\n")
        training.clear()
    return Report(metrics, len(ready.samples), ready.dropped)


def _fingerprint(made_by: Mapping[str, Any]) -> str:
    """Hash what decides the result: not where the start lies, nor when it is checkpointed."""
    what = _lasting({**made_by, "start": made_by["start"]["hash"]})
    return blake2b(msgspec.json.encode(what, order="sorted"), digest_size=16).hexdigest()


def _lasting(value: Any) -> Any:
    """Settings, at whatever depth, without those of checkpoints."""
    if not isinstance(value, Mapping):
        return value
    return {k: _lasting(v) for k, v in value.items() if not k.startswith("checkpoint_")}


def hash_samples(samples: Sequence[Sample]) -> str:
    """Hash what training sees: ids, tokens, masks and weights, in order."""
    digest = blake2b(digest_size=16)
    for sample in samples:
        fields = (
            sample.id,
            list(sample.token_ids),
            bytes(sample.loss_mask),
            sample.weight,
        )
        digest.update(msgspec.msgpack.encode(fields))
    return digest.hexdigest()


def _weighted(sample: Sample, weight: float) -> Sample:
    return Sample(sample.id, sample.token_ids, sample.loss_mask, sample.logprobs, weight)

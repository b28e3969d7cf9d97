"""Log-probabilities under the policy that a preference loss compares with.

Computed once, before the first step: the reference of an evolution step never changes. It
is the policy that this very step starts from, adapters to go on with included, unless a
directory is named: then that model is loaded, asked, and let go before training begins, so
that two models are never held while one learns.

Invariants: same dtype and device as the policy, no dropout (the settings refuse it), no
gradient; a sum depends on its sample alone, up to rounding.

Not here: the losses (`losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...engine.errors import BadSample, ConfigError
from ..base import Evidence, Sample
from ..model.scoring import require_vocabulary, score
from ..settings import TrainingSettings

if TYPE_CHECKING:
    from ..model.policy import Policy


def reference_directory(name: str, evidence: Evidence) -> str:
    """The model directory of `PreferenceSettings.reference`; empty for the start of the step.

    Raises:
        ConfigError: it names neither a role nor a model directory.
    """
    from pathlib import Path

    if name == "start":
        return ""
    path = evidence.starts.get(name, name)
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(
            f'learner.reference = {name!r} is no model directory; give one, or "start", '
            f"{', '.join(sorted(evidence.starts))}"
        )
    return path


def summed_logprobs(policy: Policy, samples: Sequence[Sample], micro_tokens: int) -> list[float]:
    """Summed log-probability of what the agent wrote in each sample, in nats.

    Raises:
        BadSample: one is not finite: the model cannot have written that.
    """
    sums = [float(row.sum()) for row in score(policy, samples, micro_tokens=micro_tokens)]
    for sample, value in zip(samples, sums, strict=True):
        if not abs(value) < float("inf"):
            raise BadSample(
                f"sample {sample.id} has log-probability {value} under the reference "
                f"{policy.source}: its weights are damaged, or its vocabulary is another"
            )
    return sums


def named_logprobs(
    path: str, samples: Sequence[Sample], settings: TrainingSettings, vocabulary: int
) -> list[float]:
    """The same under the model of a directory, which is held no longer than that.

    Args:
        vocabulary: of the policy; the reference's has to be the same size.

    Raises:
        ConfigError: the directory holds no such model.
    """
    from ..model.policy import Policy

    reference = Policy.load(
        path,
        dtype=settings.dtype,
        device=settings.device,
        packing=settings.packing,
        shard=settings.shard,
    )
    require_vocabulary(reference, vocabulary)
    return summed_logprobs(reference, samples, settings.micro_tokens)

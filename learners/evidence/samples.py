"""From trajectories to what a model of a directory can be trained on.

Invariant: what the agent sampled is taken as it was sampled; only what a script or a server
without token ids wrote is tokenised here, with the start's own chat template.

Not here: the rules (`filters`), and templates (`chat`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import msgspec

from ...engine.errors import TemplateError
from ...engine.trajectory import Trajectory
from ..base import Sample
from ..model.chat import load_renderer, tokenise
from ..model.turns import tokenise_turns
from ..settings import TrainingSettings
from .filters import Usable, usable


def samples_of(
    trajectories: Sequence[Trajectory],
    *,
    start: str,
    settings: TrainingSettings,
    weights: Sequence[float] | None = None,
    split: bool = False,
) -> Usable:
    """Tokenise what can be trained on from `start`, and count the rest (`filters.usable`).

    Args:
        weights: one for each trajectory, not negative; None: all 1.
        split: whoever asks can learn from single turns, where the settings allow it: a text whose
            rendering breaks the prefix rule becomes one sample a turn, each with the weight of
            its trajectory.

    Raises:
        ConfigError: `start` holds no model.
        TemplateError: there is a text, its rendering breaks the prefix rule, and it may not be
            split.
    """
    from ..model.policy import context_length

    renderer = load_renderer(start, keep_thoughts=settings.keep_thoughts, strict=False)
    weight_of: Mapping[int, float] = {
        id(t): w for t, w in zip(trajectories, weights or (), strict=weights is not None)
    }

    def made(trajectory: Trajectory) -> list[Sample]:
        weight = weight_of.get(id(trajectory), 1.0)
        try:
            found = [tokenise(renderer, trajectory)]
        except TemplateError as error:
            if settings.split_turns == "never":
                raise TemplateError(f'{error}. Or let split_turns be "auto"') from None
            if not split:
                raise
            found = tokenise_turns(renderer, trajectory)
        return [replace(sample, weight=weight) for sample in found]

    return usable(
        trajectories,
        made,
        context=min(settings.context or 2**31, context_length(start)),
        texts=settings.texts,
    )


def hash_samples(samples: Sequence[Sample]) -> str:
    """Hash what training sees: ids, tokens, masks, behaviour log-probs and weights, in order."""
    digest = blake2b(digest_size=16)
    for sample in samples:
        fields = (
            sample.id,
            list(sample.token_ids),
            bytes(sample.loss_mask),
            list(sample.logprobs),
            sample.weight,
        )
        digest.update(msgspec.msgpack.encode(fields))
    return digest.hexdigest()

"""From pairs of trajectories to pairs of token sequences that a model can be trained on.

Invariants: a pair is whole or dropped: where one side cannot be used, or is longer than the
context, both go, under that side's reason (a side that was cut would lose for where it was
cut); the sides of a step-wise pair have the same tokens up to the turn they differ in.

Reasons: those of `filters.usable`, `identical`.

Not here: which pairs (`pairs`), tensors and the loss (`objective`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ...engine.errors import TemplateError
from ...engine.trajectory import Trajectory
from ..base import Sample
from ..evidence.filters import usable
from ..model.chat import ChatRenderer, load_renderer, tokenise
from ..settings import TrainingSettings
from .pairs import Pair


@dataclass(frozen=True, slots=True)
class PairSample:
    """Two sequences; what the reference thinks of them is settled before the first step."""

    chosen: Sample
    rejected: Sample
    reference: tuple[float, float] | None = None
    """Summed log-probabilities of the chosen and of the rejected side under the reference."""


@dataclass(frozen=True, slots=True)
class PairSamples:
    """What can be trained on, in order, and the rest by reason."""

    items: list[PairSample]
    pairs: list[Pair]
    dropped: dict[str, int]


def pair_samples(pairs: Sequence[Pair], *, start: str, settings: TrainingSettings) -> PairSamples:
    """Tokenise the pairs that can be trained on from `start`, and count the rest.

    Raises:
        ConfigError: `start` holds no model.
        TemplateError: a side is text, and its rendering breaks the prefix rule.
    """
    from ..model.policy import context_length

    renderer = load_renderer(start, keep_thoughts=settings.keep_thoughts, strict=False)
    context = min(settings.context or 2**31, context_length(start))
    kept: list[Pair] = []
    items: list[PairSample] = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        found = usable(
            [pair.chosen, pair.rejected],
            partial(_sample, renderer, pair),
            context=context,
            texts=settings.texts,
        )
        reason = next(iter(found.dropped), "")
        if not reason:
            chosen, rejected = found.samples
            if list(chosen.token_ids) == list(rejected.token_ids):
                reason = "identical"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(pair)
            items.append(PairSample(chosen, rejected))
    return PairSamples(items, kept, dict(dropped))


def sides(items: Sequence[PairSample]) -> list[Sample]:
    """All sequences, each pair's chosen one before its rejected one."""
    return [side for item in items for side in (item.chosen, item.rejected)]


def _sample(renderer: ChatRenderer, pair: Pair, side: Trajectory) -> Sample:
    """One side of a pair: all its turns, or the last alone."""
    if pair.turn is None:
        return _trimmed(_whole(renderer, side))
    other = pair.rejected if side is pair.chosen else pair.chosen
    scripted = not side.token_ids
    anchor = other if scripted and other.token_ids else side
    sample = _whole(renderer, anchor)
    written = renderer.completion(side.turns[pair.turn].completion) if scripted else ()
    if anchor.token_ids:
        # What the agent had seen before this turn, token for token, stands before both.
        first = anchor.turns[pair.turn].start
    else:
        first = len(sample.token_ids) - len(written)
    before = list(sample.token_ids[:first])
    if scripted:
        mask = bytes(first) + b"\x01" * len(written)
        return Sample(f"{side.id}@{pair.turn}", [*before, *written], mask)
    mask = bytes(first) + bytes(sample.loss_mask[first:])
    return _trimmed(replace(sample, id=f"{side.id}@{pair.turn}", loss_mask=mask))


def _whole(renderer: ChatRenderer, side: Trajectory) -> Sample:
    """All of a side as one sequence: its log-probability is compared as a whole."""
    try:
        return tokenise(renderer, side)
    except TemplateError as error:
        raise TemplateError(
            f"{error}. Preferences compare whole episodes, which are not split into turns: with "
            "this template they can be learned only from what the policy sampled itself"
        ) from None


def _trimmed(sample: Sample) -> Sample:
    """Without what follows the last token that the agent wrote: it carries no loss."""
    end = max((i + 1 for i, marked in enumerate(sample.loss_mask) if marked), default=0)
    return replace(
        sample,
        token_ids=sample.token_ids[:end],
        loss_mask=sample.loss_mask[:end],
        logprobs=sample.logprobs[:end],
    )

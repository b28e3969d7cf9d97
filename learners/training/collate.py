"""Samples as tensors: optimiser steps, micro-batches (packed or padded), padded batches.

Invariants: padding stands at the right and carries no loss; every sample is in exactly
one step of an epoch and in one micro-batch of its step; the order of epoch e depends on
the seed and e alone, so that a resumed run sees the same steps.

Not here: what is worth training on (`filters`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import TypeVar

import torch
from torch import Tensor

from ...engine.errors import BadSample
from ...engine.seeds import generator
from ..base import Sample

Item = TypeVar("Item")

PAD = 0
"""Any id will do: padding stands after the last token, where causal attention never looks back."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples, padded on the right to T tokens."""

    token_ids: Tensor  # [B, T] int64
    attention: Tensor  # [B, T] bool, False at padding
    loss_mask: Tensor  # [B, T] bool
    logprobs: Tensor  # [B, T] float32, behaviour log-probs; 0 where there are none
    weights: Tensor  # [B] float32


def collate(samples: Sequence[Sample], *, device: torch.device | str = "cpu") -> Batch:
    """Pad samples to the longest of them.

    Raises:
        BadSample: ids, mask and log-probs of a sample differ in length.
    """
    rows, longest = len(samples), max(len(s.token_ids) for s in samples)
    token_ids = torch.full((rows, longest), PAD, dtype=torch.int64)
    attention = torch.zeros((rows, longest), dtype=torch.bool)
    loss_mask = torch.zeros((rows, longest), dtype=torch.bool)
    logprobs = torch.zeros((rows, longest), dtype=torch.float32)
    for row, sample in enumerate(samples):
        n = len(sample.token_ids)
        if len(sample.loss_mask) != n or len(sample.logprobs) not in (0, n):
            raise BadSample(
                f"sample {sample.id}: {n} tokens, {len(sample.loss_mask)} mask entries and "
                f"{len(sample.logprobs)} log-probs"
            )
        token_ids[row, :n] = torch.as_tensor(sample.token_ids)
        attention[row, :n] = True
        loss_mask[row, :n] = torch.as_tensor(list(sample.loss_mask), dtype=torch.bool)
        if len(sample.logprobs):
            logprobs[row, :n] = torch.as_tensor(sample.logprobs)
    weights = torch.tensor([s.weight for s in samples], dtype=torch.float32)
    tensors = (token_ids, attention, loss_mask, logprobs, weights)
    return Batch(*(t.to(device) for t in tensors))


def loss_tokens(sample: Sample) -> int:
    """Number of tokens the loss is taken at; the first token cannot be predicted."""
    return sum(1 for value in sample.loss_mask[1:] if value)


def loss_denominator(samples: Sequence[Sample]) -> float:
    """Σ_i w_i n_i over one optimiser step: with equal weights, the number of action tokens."""
    return float(sum(s.weight * loss_tokens(s) for s in samples))


def packed_batches(
    items: Sequence[Item], tokens: int, *, cost: Callable[[Item], int]
) -> list[list[Item]]:
    """Cut one step into parts of at most `tokens` real tokens, few and alike in size.

    The largest items are dealt first, each into the emptiest part. An item larger than the
    budget is a part of its own.
    """
    order = sorted(items, key=cost, reverse=True)
    total = sum(map(cost, order))
    for number in range(max(1, -(-total // tokens)), len(order) + 1):
        parts: list[list[Item]] = [[] for _ in range(number)]
        filled = [0] * number
        for item in order:
            index = filled.index(min(filled))
            parts[index].append(item)
            filled[index] += cost(item)
        fits = all(
            size <= tokens or len(part) == 1 for part, size in zip(parts, filled, strict=True)
        )
        if fits:
            return [part for part in parts if part]
    return [[item] for item in order]


def micro_batches(
    items: Sequence[Item], tokens: int, *, width: Callable[[Item], int]
) -> list[list[Item]]:
    """Cut one step into parts of at most `tokens` padded tokens, sorted by width.

    Neighbours in width share a part, so little is padded. An item wider than the budget is
    a part of its own.
    """
    parts: list[list[Item]] = []
    for item in sorted(items, key=width):
        # The newcomer is the widest so far: it sets the padded width of its part.
        if parts and (len(parts[-1]) + 1) * width(item) <= tokens:
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts


def steps(
    items: Sequence[Item],
    *,
    seed: int,
    size: int,
    tokens: int = 0,
    epochs: int = 0,
    cost: Callable[[Item], int],
    together: Callable[[Item], Hashable] = lambda _: None,
) -> Iterator[list[Item]]:
    """Deal the items into optimiser steps, reshuffled every epoch.

    A step takes `size` items or, if `tokens` is given, as many whole ones as fit into so
    many tokens by their `cost` (at least one). With `epochs`, each epoch is cut on its own
    and its last step may be smaller; without, steps go on for ever and across the ends of
    epochs, so that all are full.

    Neighbours that `together` gives the same name are dealt as one item, and count as one of
    `size`.
    """
    wholes = _wholes(items, together)
    step: list[Item] = []
    filled = members = 0
    for number in range(epochs) if epochs else count():
        order = list(wholes)
        generator(seed, "epoch", number).shuffle(order)
        for whole in order:
            n = sum(map(cost, whole))
            if step and (filled + n > tokens if tokens else members == size):
                yield step
                step, filled, members = [], 0, 0
            step += whole
            filled += n
            members += 1
        if epochs:
            yield step
            step, filled, members = [], 0, 0


def _wholes(items: Sequence[Item], together: Callable[[Item], Hashable]) -> list[tuple[Item, ...]]:
    """Neighbours of the same name as one; what has none is by itself."""
    found: list[tuple[Item, ...]] = []
    for name, group in groupby(items, together):
        members = tuple(group)
        found += [members] if name is not None else [(item,) for item in members]
    return found

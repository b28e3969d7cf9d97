"""What both sides of `training` are given: a small model, ragged samples and pairs.

Invariants: a seed gives the same job; items stand in the order in which our own loop deals
them, so that the other side meets the same batches if it takes them one after the other.

Not here: measuring (`training`, `training_side`, `trl_side`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..learners.training.collate import steps

Item = TypeVar("Item")
Job = dict[str, Any]

WORDS = tuple(f"w{index}" for index in range(10_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of the model and of the data."""

    items: int = 256
    batch: int = 32
    per_device: int = 8
    """Items that the other side puts into one forward pass: TRL's default."""
    shortest: int = 32
    longest: int = 512
    typical: int = 120
    """Median length in tokens."""
    vocabulary: int = 1_000
    width: int = 256
    layers: int = 4
    epochs: int = 1
    seed: int = 0


def make_model(out: Path, size: Size) -> Path:
    """A Llama of some million parameters, one word a token."""
    from ..learners.model.tiny import make_tiny_model

    return make_tiny_model(
        out,
        vocabulary=WORDS[: size.vocabulary],
        width=size.width,
        layers=size.layers,
        heads=4,
        context=size.longest,
        seed=size.seed,
    )


def make_samples(size: Size) -> list[Job]:
    """Multi-turn samples: observations of many words, actions of a few, which carry the loss."""
    draw = random.Random(size.seed)
    made = []
    for _ in range(size.items):
        n = _length(draw, size)
        mask: list[int] = []
        while len(mask) < n:
            mask += [0] * draw.randint(8, 40) + [1] * draw.randint(3, 12)
        mask = [*mask[: n - 1], 1]
        made.append({"ids": _words(draw, n, size), "mask": mask})
    return made


def make_pairs(size: Size, eos: int) -> list[Job]:
    """Pairs that begin alike and differ in length; all that follows the prompt carries loss."""
    draw = random.Random(size.seed + 1)
    made = []
    for _ in range(size.items):
        prompt = _words(draw, draw.randint(8, size.shortest - 4), size)
        sides = {
            side: prompt + _words(draw, _length(draw, size) - len(prompt) - 1, size) + [eos]
            for side in ("chosen", "rejected")
        }
        made.append({"prompt": len(prompt), **sides})
    return made


def in_order(items: Sequence[Item], size: Size, cost: Callable[[Item], int]) -> list[Item]:
    """Items as our loop deals them over all epochs, one after the other."""
    dealt = steps(items, seed=size.seed, size=size.batch, epochs=size.epochs, cost=cost)
    return [item for step in dealt for item in step]


def _length(draw: random.Random, size: Size) -> int:
    return min(size.longest, max(size.shortest, round(size.typical * draw.lognormvariate(0, 0.8))))


def _words(draw: random.Random, n: int, size: Size) -> list[int]:
    return [draw.randint(1, size.vocabulary) for _ in range(n)]

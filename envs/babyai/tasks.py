"""Which tasks there are: 40 levels, each with 350 seeds.

A task's number is AgentGym's: level = number mod 40 + 1, seed = number div 40.

Splits. AgentGym trains and evaluates on 18 levels with seeds up to 278. These are `train`
whatever their seed, so that every published number is a task here; `dev` and `test` are
the same levels with seeds that AgentGym never used. `unseen` differs in kind: the levels
that it leaves out, where things are put next to each other, locked doors are opened or
instructions have several parts. One level is in no split, and played by number only: in
KeyInBox a box has to be opened, and no action of AgentGym's does that.

Invariant: the numbering and the splits are fixed; a change is a new version of the
environment.

Not here: generating a level (`levels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from ...engine.errors import ConfigError
from .levels import LEVELS

SEEDS: Final = 350
"""Seeds of each level."""

PUBLISHED: Final = (*range(1, 12), 19, 20, 21, 30, 31, 33, 36)
"""The levels that AgentGym trains and evaluates on."""
UNSOLVABLE: Final = (26,)
"""KeyInBox."""

_TRAIN: Final = range(280)
_DEV: Final = range(280, 300)
_TEST: Final = range(300, SEEDS)


def number(level: int, seed: int) -> int:
    """The task's number."""
    return seed * len(LEVELS) + level - 1


def level_and_seed(index: int) -> tuple[int, int]:
    """What a task's number means.

    Raises:
        ConfigError: there is no such task.
    """
    last = SEEDS * len(LEVELS) - 1
    if not 0 <= index <= last:
        raise ConfigError(f"babyai has tasks 0 to {last}, not {index}")
    seed, level = divmod(index, len(LEVELS))
    return level + 1, seed


@cache
def splits() -> Mapping[str, tuple[int, ...]]:
    """Task numbers by split."""
    others = [
        level
        for level in range(1, len(LEVELS) + 1)
        if level not in PUBLISHED and level not in UNSOLVABLE
    ]
    parts = (
        ("train", PUBLISHED, _TRAIN),
        ("dev", PUBLISHED, _DEV),
        ("test", PUBLISHED, _TEST),
        ("unseen", others, range(SEEDS)),
    )
    return {
        name: tuple(number(level, seed) for seed in seeds for level in levels)
        for name, levels, seeds in parts
    }

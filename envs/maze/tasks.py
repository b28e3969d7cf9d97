"""Which mazes there are: AgentGym's double-T maze, and generated ones without end.

Double-T: 26 starts in AgentGym's order, goal at (8, 6). Its published training
data use the starts 13 to 25, so these are the training split here. The walls
around the starts of those data, and the order of their numbers, are read off the
observations in them; the two bars and the upper stems (starts 0 to 12 and 22 to
24) follow from the shape, the count of 26 and the published order of starts.

Generated: every index seeds its own maze, start and goal.

Invariant: no two splits share a task. For generated mazes a hash of walls, start
and goal names the split that the task may belong to; the unseen split has mazes
one cell larger.

Not here: sessions (`environment`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from ...engine.errors import ConfigError
from ...engine.seeds import generator
from .layout import Layout, Position, carve, from_drawing


@dataclass(frozen=True, slots=True)
class Setting:
    """One task: a maze, where the agent starts, and where it must go."""

    layout: Layout
    start: Position
    goal: Position


DOUBLE_T: Final = from_drawing(
    (
        "#############",
        "#     #     #",
        "### ##### ###",
        "### ##### ###",
        "### ##### ###",
        "###       ###",
        "###### ######",
        "###### ######",
        "###### ######",
        "#############",
    )
)

DOUBLE_T_GOAL: Final = (8, 6)

DOUBLE_T_STARTS: Final[tuple[Position, ...]] = (
    *((1, column) for column in range(1, 6)),  # 0-4: left bar
    *((1, column) for column in range(7, 12)),  # 5-9: right bar
    *((row, 3) for row in range(2, 6)),  # 10-13: left stem
    *((5, column) for column in range(4, 7)),  # 14-16: towards the middle
    *((row, 6) for row in range(6, 8)),  # 17-18: last stem
    *((5, column) for column in range(7, 10)),  # 19-21: right of the middle
    *((row, 9) for row in range(4, 1, -1)),  # 22-24: right stem, upwards
    DOUBLE_T_GOAL,  # 25
)

DOUBLE_T_SPLITS: Final[Mapping[str, Sequence[int]]] = {
    "train": range(13, 26),
    "dev": range(10, 13),
    "test": range(5),
    "unseen": range(5, 10),
}


def double_t(index: int) -> Setting:
    """The double-T maze from start number `index`.

    Raises:
        ConfigError: there is no such start.
    """
    if not 0 <= index < len(DOUBLE_T_STARTS):
        raise ConfigError(f"maze-v1 has tasks 0 to {len(DOUBLE_T_STARTS) - 1}, not {index}")
    return Setting(DOUBLE_T, DOUBLE_T_STARTS[index], DOUBLE_T_GOAL)


GRID_SPLITS: Final[Mapping[str, range]] = {
    "train": range(4000),
    "dev": range(4000, 4500),
    "test": range(4500, 5500),
    "unseen": range(5500, 6500),
}

_SHARES: Final = {"train": (0, 1), "dev": (2,), "test": (3,), "unseen": (0, 1, 2, 3)}
"""Which quarters of the hash space each split takes. Unseen mazes differ in size."""


def grid(size: int, loops: float, turn_limit: int) -> Callable[[int], Setting]:
    """The table of generated mazes: from a task index to its setting."""

    def setting(index: int) -> Setting:
        for split, members in GRID_SPLITS.items():
            if index in members:
                return _generate(size + (split == "unseen"), loops, turn_limit, index, split)
        last = GRID_SPLITS["unseen"][-1]
        raise ConfigError(f"maze-grid-v1 has tasks 0 to {last}, not {index}")

    return setting


@lru_cache(maxsize=8192)
def _generate(size: int, loops: float, turn_limit: int, index: int, split: str) -> Setting:
    """Carve mazes until one has a start at most `turn_limit` moves from its goal, in the split.

    The settings themselves are cached: the attempts at a task share one.
    """
    chance = generator(0, "maze-grid", size, str(loops), index)
    while True:
        layout = carve(size, loops, chance)
        goal = _cell(size, chance)
        near = [cell for cell, moves in layout.distances(goal).items() if 0 < moves <= turn_limit]
        for start in chance.sample(near, min(len(near), 16)):
            setting = Setting(layout, start, goal)
            if quarter(setting) in _SHARES[split]:
                return setting


def _cell(size: int, chance: random.Random) -> Position:
    return chance.randrange(size), chance.randrange(size)


def quarter(setting: Setting) -> int:
    """Which quarter of the hash space a task falls into, 0 to 3."""
    places = bytes((*setting.start, *setting.goal))
    return blake2b(setting.layout.passages + places, digest_size=1).digest()[0] % 4

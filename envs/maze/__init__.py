"""Mazes: AgentGym's double-T maze (`maze-v1`) and generated ones (`maze-grid-v1`).

`maze-grid-v1` takes the options `size`, `loops` (the share of dead ends that is
opened), `style` ("text" in AgentGym's sentences, "terse" in a closed vocabulary
of single words, without a prompt) and `turn_limit` (0: half the number of cells,
at least 8). Every start is at most `turn_limit` moves from its goal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ...engine.errors import ConfigError
from ..base import EnvFamily, EnvSpec
from .environment import Maze
from .prompts import DOUBLE_T_OPENING, DOUBLE_T_PROMPT, GRID_PROMPT
from .tasks import DOUBLE_T_SPLITS, GRID_SPLITS, double_t, grid
from .wording import MAX_SIZE, TERSE, TEXT, VOCABULARY

__all__ = ["VOCABULARY", "Maze", "families"]

_DOUBLE_T_MOVES: Final = 50
"""AgentGym's server says Failure after so many moves."""


def _double_t(*, id: str) -> EnvSpec:
    wording = replace(TEXT, opening=DOUBLE_T_OPENING)
    return EnvSpec(
        id=id,
        make=lambda: Maze(double_t, wording, move_limit=_DOUBLE_T_MOVES),
        splits=DOUBLE_T_SPLITS,
        prompt=DOUBLE_T_PROMPT,
        turn_limit=15,  # as AgentGym's evaluation scripts
    )


def _grid(*, id: str, size: int, loops: float, style: str, turn_limit: int) -> EnvSpec:
    if not 3 <= size < MAX_SIZE:
        raise ConfigError(f"maze-grid-v1: size must be 3 to {MAX_SIZE - 1}, not {size}")
    if not 0 <= loops <= 1:
        raise ConfigError(f"maze-grid-v1: loops is a share, 0 to 1, not {loops}")
    if style not in ("text", "terse"):
        raise ConfigError(f"maze-grid-v1: style is text or terse, not {style!r}")
    if not 0 <= turn_limit <= 1000:
        raise ConfigError(f"maze-grid-v1: turn_limit must be 0 to 1000, not {turn_limit}")
    limit = turn_limit or max(8, size * size // 2)
    settings = grid(size, loops, limit)
    terse = style == "terse"
    wording = TERSE if terse else TEXT
    return EnvSpec(
        id=id,
        make=lambda: Maze(settings, wording),
        splits=GRID_SPLITS,
        prompt=() if terse else GRID_PROMPT,
        vocabulary=VOCABULARY if terse else (),
        action_format="raw" if terse else "react",
        turn_limit=limit,
    )


def families() -> list[EnvFamily]:
    """The two families of mazes."""
    return [
        EnvFamily(
            id="maze-v1",
            summary="AgentGym's double-T maze: 26 starts, one goal",
            build=_double_t,
        ),
        EnvFamily(
            id="maze-grid-v1",
            summary="generated mazes of any size, in sentences or in single words",
            build=_grid,
            options={"size": 5, "loops": 0.5, "style": "text", "turn_limit": 0},
        ),
    ]

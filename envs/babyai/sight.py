"""What the agent sees: the 7 by 7 cells before it, as far as nothing hides them.

A view is a tuple of 49 small numbers, row by row from the farthest, each row from left
to right: 0 for a cell out of sight, 1 for an empty one, 2 for a wall, else the number of
a kind of thing (`kind`). The agent stands in the middle of the last row, where what it
carries is seen.

Invariant: two views are equal exactly if the pictures that minigrid gives of them are.

Not here: what follows from a view (`scene`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any, Final, NamedTuple

SIZE: Final = 7
AGENT: Final = SIZE * SIZE - 1 - SIZE // 2
"""Index of the agent's own cell in a view."""
UNSEEN, EMPTY, WALL = 0, 1, 2

View = tuple[int, ...]


class Kind(NamedTuple):
    """A kind of thing: what the agent can tell apart."""

    type: str
    """door, key, ball, box, goal or lava."""
    colour: str
    state: str
    """Of a door: open, closed or locked."""
    name: str
    """`red locked door`, `grey key`."""


_TYPES: Final = ("door", "key", "ball", "box", "goal", "lava")
_COLOURS: Final = ("red", "green", "blue", "purple", "yellow", "grey")
_STATES: Final = ("", "open", "closed", "locked")

_NUMBERS: Final[Mapping[tuple[str, str, str], int]] = {
    parts: 3 + number for number, parts in enumerate(product(_TYPES, _COLOURS, _STATES))
}
_KINDS: Final = {
    number: Kind(*parts, " ".join(part for part in (parts[1], parts[2], parts[0]) if part))
    for parts, number in _NUMBERS.items()
}


def kind(number: int) -> Kind:
    """The kind of thing of a number above `WALL`."""
    return _KINDS[number]


def look(env: Any) -> View:
    """The view in a world of minigrid."""
    column, row = env.agent_pos
    column, row = int(column), int(row)
    grid = env.grid
    width, height, cells = grid.width, grid.height, grid.grid
    codes: list[int] = []
    hidden = 0  # a bit for each cell that nothing is seen behind
    bit = 1
    for right, down in _offsets(int(env.agent_dir)):
        x, y = column + right, row + down
        if 0 <= x < width and 0 <= y < height:
            thing = cells[y * width + x]
            if thing is None:
                codes.append(EMPTY)
            elif thing.type == "wall":
                codes.append(WALL)
                hidden |= bit
            else:
                codes.append(_number(thing))
                if thing.type == "door" and not thing.is_open:
                    hidden |= bit
        else:
            codes.append(WALL)
            hidden |= bit
        bit <<= 1
    seen = 1 << SIZE // 2
    for start in range(SIZE * (SIZE - 1), -1, -SIZE):
        seen, above = _spread(seen, hidden >> start & _ROW)
        if seen != _ROW:
            for place in range(SIZE):
                if not seen >> place & 1:
                    codes[start + place] = UNSEEN
        seen = above
    carried = env.carrying
    codes[AGENT] = EMPTY if carried is None else _number(carried)
    return tuple(codes)


def seen_cells(env: Any) -> Iterator[tuple[int, int]]:
    """(column, row) of every cell of the world that is in sight."""
    column, row = (int(part) for part in env.agent_pos)
    for code, (right, down) in zip(look(env), _offsets(int(env.agent_dir)), strict=True):
        x, y = column + right, row + down
        if code != UNSEEN and 0 <= x < env.grid.width and 0 <= y < env.grid.height:
            yield x, y


_ROW: Final = (1 << SIZE) - 1


def _number(thing: Any) -> int:
    state = ""
    if thing.type == "door":
        state = "open" if thing.is_open else "locked" if thing.is_locked else "closed"
    return _NUMBERS[thing.type, thing.color, state]


@cache
def _offsets(direction: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) from the agent to each cell of the view; 0 looks right, 1 down, ..."""
    ahead = ((1, 0), (0, 1), (-1, 0), (0, -1))[direction]
    aside = (-ahead[1], ahead[0])
    half = SIZE // 2
    return tuple(
        (ahead[0] * far + aside[0] * side, ahead[1] * far + aside[1] * side)
        for far in range(SIZE - 1, -1, -1)
        for side in range(-half, half + 1)
    )


@cache
def _spread(seen: int, hidden: int) -> tuple[int, int]:
    """How sight spreads in a row, to the right and then to the left, and into the row above.

    Bits are cells from left to right. Cached: there are 16,384 rows.
    """
    above = 0
    for place in range(SIZE - 1):
        if seen >> place & 1 and not hidden >> place & 1:
            seen |= 2 << place
            above |= 3 << place
    for place in range(SIZE - 1, 0, -1):
        if seen >> place & 1 and not hidden >> place & 1:
            seen |= 1 << place - 1
            above |= 3 << place - 1
    return seen, above

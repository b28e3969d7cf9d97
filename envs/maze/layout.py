"""The walls of a maze: a grid of cells, each with four bits for its open sides.

Positions are (row, column), counted from 0 at the top left; AgentGym writes them
as "position row, column" and calls the row x. A layout is a value: equal mazes
are equal, hashable, and shared between sessions.

Invariant: a passage is open from both sides, and none leads out of the grid.

Not here: where agents start (`tasks`) and what they are told (`environment`).
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Final

Position = tuple[int, int]
"""(row, column)."""

UP: Final = 1
DOWN: Final = 2
LEFT: Final = 4
RIGHT: Final = 8

STEPS: Final[dict[int, Position]] = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
"""What a move in each direction adds to a position."""

_OPPOSITE: Final = {UP: DOWN, DOWN: UP, LEFT: RIGHT, RIGHT: LEFT}


@dataclass(frozen=True, slots=True)
class Layout:
    """A maze of `len(passages) // columns` rows."""

    columns: int
    passages: bytes
    """One byte a cell, row by row: the bits of its open sides; 0 is solid rock."""

    def open(self, position: Position) -> int:
        """The open sides of a cell, as bits."""
        return self.passages[position[0] * self.columns + position[1]]

    def holds(self, position: Position) -> bool:
        """Whether the position is a cell of the grid."""
        row, column = position
        return 0 <= column < self.columns and 0 <= row * self.columns < len(self.passages)

    def distances(self, goal: Position) -> dict[Position, int]:
        """Moves from each cell that can reach the goal, by breadth-first search."""
        found = {goal: 0}
        queue = deque([goal])
        while queue:
            cell = queue.popleft()
            sides = self.open(cell)
            for side, (down, right) in STEPS.items():
                neighbour = (cell[0] + down, cell[1] + right)
                if sides & side and neighbour not in found:
                    found[neighbour] = found[cell] + 1
                    queue.append(neighbour)
        return found


def from_drawing(rows: tuple[str, ...]) -> Layout:
    """Read a maze drawn with one character a cell: a space is floor, the rest rock."""
    floor = {(r, c) for r, row in enumerate(rows) for c, mark in enumerate(row) if mark == " "}
    passages = bytes(
        sum(
            side
            for side, (down, right) in STEPS.items()
            if (r, c) in floor and (r + down, c + right) in floor
        )
        for r, row in enumerate(rows)
        for c in range(len(row))
    )
    return Layout(len(rows[0]), passages)


def carve(size: int, loops: float, chance: random.Random) -> Layout:
    """Carve a maze of size×size cells by depth-first search from a random cell.

    The result is a tree of corridors. Then each dead end is opened with
    probability `loops` through one of its inner walls, which makes loops.
    """
    passages = [[0] * size for _ in range(size)]

    def inner(cell: Position) -> list[tuple[int, Position]]:
        r, c = cell
        return [
            (side, (r + down, c + right))
            for side, (down, right) in STEPS.items()
            if 0 <= r + down < size and 0 <= c + right < size
        ]

    def dig(cell: Position, side: int, neighbour: Position) -> None:
        passages[cell[0]][cell[1]] |= side
        passages[neighbour[0]][neighbour[1]] |= _OPPOSITE[side]

    path = [(chance.randrange(size), chance.randrange(size))]
    visited = set(path)
    while path:
        ways = [(side, cell) for side, cell in inner(path[-1]) if cell not in visited]
        if not ways:
            path.pop()
            continue
        side, cell = chance.choice(ways)
        dig(path[-1], side, cell)
        visited.add(cell)
        path.append(cell)
    for r in range(size):
        for c in range(size):
            sides = passages[r][c]
            if sides in STEPS and chance.random() < loops:
                side, cell = chance.choice([w for w in inner((r, c)) if not sides & w[0]])
                dig((r, c), side, cell)
    return Layout(size, bytes(sides for row in passages for sides in row))

"""Ways through what the agent sees: the search that AgentGym's macro actions follow.

Cells are given as the agent sees them: `ahead` rows in front, `aside` columns to the
right. Of walls, boxes, balls, keys and lava those in sight are in the way; doors, and
whatever is out of sight, are not.

Invariant: a path is the one that AgentGym takes. Its search is a breadth-first one that
marks a state when it leaves the queue, not when it enters, so that a state may be queued
several times and the last to find it is its predecessor. Paths are then not always the
shortest, and doing it properly would give other worlds than the published ones. One
search serves all things in sight, and goes on only as far as it is asked.

Not here: which paths an action stands for (`scene`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final

from .levels import FORWARD, LEFT, RIGHT

Cell = tuple[int, int]
"""(ahead, aside)."""

_WIDE: Final = 10
"""Columns and rows with a margin: cells from (-2, -4) to (7, 5)."""
_STATES: Final = _WIDE * _WIDE * 4
_TURNS: Final = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Steps of the four directions, from straight ahead on to the right."""


def _state(cell: Cell, direction: int) -> int:
    return ((cell[0] + 2) * _WIDE + cell[1] + 4) * 4 + direction


START: Final = _state((0, 0), 0)


@cache
def _moves() -> tuple[tuple[int, int, int], ...]:
    """For each state: where forward, left and right lead, in the order of the search."""
    moves = []
    for state in range(_STATES):
        place, direction = divmod(state, 4)
        ahead, aside = _TURNS[direction]
        forward = (place + ahead * _WIDE + aside) * 4 + direction
        left, right = place * 4 + (direction - 1) % 4, place * 4 + (direction + 1) % 4
        moves.append((forward, left, right))
    return tuple(moves)


@cache
def _margin(facing: int) -> bytes:
    """The states outside the searched square.

    It is the view and, by a slip of that server's that decides paths, one row behind the
    agent if it looks right or down, one column more on its right if down or left.
    """
    shut = bytearray(b"\x01" * _STATES)
    for ahead in range(-1 if facing in (0, 1) else 0, 7):
        for aside in range(-3, 5 if facing in (1, 2) else 4):
            for direction in range(4):
                shut[_state((ahead, aside), direction)] = 0
    return bytes(shut)


class Walk:
    """The search from where the agent stands."""

    __slots__ = ("_before", "_moves", "_order", "_queue", "_shut", "_taken")

    def __init__(self, obstacles: Iterable[Cell], facing: int) -> None:
        """`facing`: the agent's direction in the world, 0 to 3."""
        shut = bytearray(_margin(facing))
        for cell in obstacles:
            first = _state(cell, 0)
            shut[first : first + 4] = b"\x01\x01\x01\x01"
        self._shut = shut
        self._moves = _moves()
        self._queue = [START]
        self._taken = 0
        self._before: dict[int, int] = {}
        self._order: dict[int, int] = {}

    def to(self, cell: Cell) -> tuple[int, ...] | None:
        """Primitive actions that lead onto a cell; None if there is no path."""
        return self._path({_state(cell, direction) for direction in range(4)})

    def before(self, cell: Cell) -> tuple[int, ...] | None:
        """Primitive actions after which the agent stands before a cell and faces it."""
        ahead, aside = cell
        return self._path(
            {
                _state((ahead - step[0], aside - step[1]), direction)
                for direction, step in enumerate(_TURNS)
            }
        )

    def _path(self, goals: set[int]) -> tuple[int, ...] | None:
        order = self._order
        reached = [goal for goal in goals if goal in order]
        goal = min(reached, key=order.__getitem__) if reached else self._search(goals)
        if goal is None:
            return None
        path = []
        while goal != START:
            before = self._before[goal]
            forward, left, _ = self._moves[before]
            path.append(FORWARD if goal == forward else LEFT if goal == left else RIGHT)
            goal = before
        return tuple(reversed(path))

    def _search(self, goals: set[int]) -> int | None:
        """Go on until one of the goals leaves the queue."""
        queue, shut, before, order, moves = (
            self._queue,
            self._shut,
            self._before,
            self._order,
            self._moves,
        )
        taken = self._taken
        while taken < len(queue):
            state = queue[taken]
            taken += 1
            if not shut[state]:
                shut[state] = 1
                order[state] = taken
            for after in moves[state]:
                if not shut[after]:
                    queue.append(after)
                    before[after] = state
            if state in goals:
                self._taken = taken
                return state
        self._taken = taken
        return None

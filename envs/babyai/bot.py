"""The `minigrid` package's bot, made to give up.

It plans by subgoals, and on some worlds trades two of them for ever within one call. Each
exchange searches for a path, so searches are counted. The search itself, and noting what
was seen, are ours: the package's copies its queue and turns its grid at every step, which
is most of the time of a plan.

Invariant: where the package's bot answers, this one answers the same.

Not here: what its way is turned into (`expert`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from .sight import seen_cells

_MOST_SEARCHES: Final = 60
"""In one call; a way out takes 20 at most in the tasks of the splits."""

Place = tuple[int, int]


class GaveUp(Exception):
    """The bot goes round in circles."""


def make_bot(env: Any) -> Any:
    """A bot for a world of the package, from its present state on.

    `replan(primitive)` tells it what was done last (None at first) and gives what to do
    next; it raises `GaveUp`, or whatever its plans run into.
    """
    return _bot_class()(env)


@cache
def _bot_class() -> Any:
    from minigrid.utils.baby_ai_bot import BabyAIBot

    base: Any = BabyAIBot

    class Bot(base):  # type: ignore[misc]
        """The package's bot with a bounded search."""

        _searches = 0

        def replan(self, action_taken: int | None = None) -> Any:
            self._searches = 0
            return super().replan(action_taken)

        def _process_obs(self) -> None:
            for column, row in seen_cells(self.mission.unwrapped):
                self.vis_mask[column, row] = True

        def _breadth_first_search(
            self,
            initial_states: Iterable[tuple[int, int, int, int]],
            accept_fn: Callable[[Place, Any], bool],
            ignore_blockers: bool,
        ) -> Any:
            self._searches += 1
            if self._searches > _MOST_SEARCHES:
                raise GaveUp
            return _search(
                self.mission.unwrapped.grid,
                self.vis_mask,
                initial_states,
                accept_fn,
                ignore_blockers,
            )

    return Bot


def _search(
    grid: Any,
    seen: Any,
    starts: Iterable[tuple[int, int, int, int]],
    accepts: Callable[[Place, Any], bool],
    ignore_blockers: bool,
) -> tuple[list[Place] | None, Place | None, dict[Place, Place | None]]:
    """Breadth first from (column, row, direction) on, straight on before to the sides.

    Gives the path from its end to its start, the end, and where each place was come to from.
    Cells never seen end a path; walls and closed doors do, and things unless ignored.
    """
    waiting: deque[tuple[tuple[int, int, int, int], Place | None]] = deque(
        (state, None) for state in starts
    )
    came_from: dict[Place, Place | None] = {}
    cells, width, known = grid.grid, grid.width, seen.tolist()
    while waiting:
        (x, y, right, down), before = waiting.popleft()
        place = (int(x), int(y))
        if place in came_from:
            continue
        came_from[place] = before
        cell = cells[y * width + x]
        if accepts(place, cell):
            path = [place]
            while (earlier := came_from[path[-1]]) is not None:
                path.append(earlier)
            return path, place, came_from
        if not known[x][y] or (cell is not None and not _open(cell, ignore_blockers)):
            continue
        for step in ((right, down), (down, right), (-down, -right), (-right, -down)):
            after = (x + step[0], y + step[1])
            if after not in came_from:
                waiting.append(((*after, *step), place))
    return None, None, came_from


def _open(cell: Any, ignore_blockers: bool) -> bool:
    """Whether one may walk on over a cell that holds something."""
    if cell.type == "door":
        return bool(cell.is_open)
    return ignore_blockers and cell.type != "wall"

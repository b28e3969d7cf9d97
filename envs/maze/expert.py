"""The shortest way to the goal.

Invariant: following it from any cell that can reach the goal takes exactly as
many moves as the breadth-first distance.
"""

from __future__ import annotations

from functools import lru_cache

from .layout import STEPS, Layout, Position


@lru_cache(maxsize=1024)
def _distances(layout: Layout, goal: Position) -> dict[Position, int]:
    """Shared by all sessions at one task: attempts and turns ask for the same map."""
    return layout.distances(goal)


def next_side(layout: Layout, goal: Position, position: Position) -> int:
    """Direction bit of a best move; the first of up, down, left, right where several are.

    On the goal itself (AgentGym's task 25 starts there) it is a move into a wall:
    the episode ends with the next move that leaves the agent on the goal.
    """
    distances = _distances(layout, goal)
    sides = layout.open(position)
    if position == goal:
        return next((side for side in STEPS if not sides & side), min(STEPS))
    nearest = distances[position] - 1
    return next(
        side
        for side, (down, right) in STEPS.items()
        if sides & side and distances[position[0] + down, position[1] + right] == nearest
    )

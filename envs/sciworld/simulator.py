"""One live session of the `scienceworld` package's simulator, called as little as possible."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """What an action did."""

    observation: str
    score: int
    """Of the task so far, 0 to 100; below 0 once the task is failed for good."""
    done: bool
    """The simulator says that the task is over."""
    moves: int
    """Ticks of the simulated world so far: some actions cost none, waiting costs several."""

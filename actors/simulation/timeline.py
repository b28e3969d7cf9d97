"""Levels over simulated time: sessions live, requests waiting, slots in use.

Invariants: a timeline holds at most `LIMIT` points, evenly spaced in time, however long
the simulation is: when it is full, every other one goes and the spacing doubles; means
and peaks are exact, taken at every change and not from the points.

Not here: the picture (`cli.simulation_figure`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LIMIT: Final = 2048
_FIRST_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True)
class Point:
    """The levels at one moment."""

    seconds: float
    live: int
    """Sessions."""
    waiting: int
    """Requests without a slot."""
    running: int
    """Slots in use."""


class Timeline:
    """Takes the levels at each change, and keeps some of them."""

    __slots__ = (
        "_at",
        "_next",
        "_spacing",
        "live",
        "peak_waiting",
        "points",
        "running",
        "running_seconds",
        "waiting",
        "waiting_seconds",
    )

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.live: Callable[[], int] = lambda: 0
        """Asked when a point is kept."""
        self.waiting = 0
        self.running = 0
        self.peak_waiting = 0
        self.waiting_seconds = 0.0
        """Requests × seconds without a slot."""
        self.running_seconds = 0.0
        """Slots × seconds in use."""
        self._at = 0.0
        self._next = 0.0
        self._spacing = _FIRST_SECONDS

    def advance(self, now: float) -> None:
        """The levels were what they are until `now`; call it before they change."""
        if now >= self._next:
            self._keep(now)
        passed = now - self._at
        if passed > 0.0:
            self.waiting_seconds += passed * self.waiting
            self.running_seconds += passed * self.running
            self._at = now

    def change(self, waiting: int, running: int) -> None:
        """Set the levels of the requests."""
        self.waiting, self.running = waiting, running
        if waiting > self.peak_waiting:
            self.peak_waiting = waiting

    def _keep(self, now: float) -> None:
        """Keep a point for each spacing that has passed: the levels held all the while."""
        if now > self._next + LIMIT * self._spacing:  # a long calm: its two ends are enough
            self.points.append(Point(self._next, self.live(), self.waiting, self.running))
            self._next = now
        while self._next <= now:
            self.points.append(Point(self._next, self.live(), self.waiting, self.running))
            self._next += self._spacing
        while len(self.points) > LIMIT:
            del self.points[1::2]
            self._spacing *= 2
            self._next = self.points[-1].seconds + self._spacing

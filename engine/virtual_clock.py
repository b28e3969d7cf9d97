"""A virtual clock that jumps in the step in which nothing can run.

trio's `MockClock` is told by the loop that all is idle, one pass later, and looks at the
statistics of everything to find the next deadline. A simulation has a jump for nearly
every event, so that was half of its cost: here the loop's own question, how long to sleep
until the next deadline, is answered by being there.

Invariants: time moves only when no task can run, and then to the next deadline exactly.

Not here: `wait_all_tasks_blocked` and callbacks from threads (`run_sync_soon`), which do
not count as something that can run: time may jump past them. `testing.run_simulated`
takes `MockClock` for those.
"""

from __future__ import annotations

import math

import trio


class VirtualClock(trio.abc.Clock):
    """For `trio.run(…, clock=VirtualClock())`; starts at 0."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """Virtual seconds."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to the deadline, if there is one; then no time is left until it."""
        if deadline == math.inf:
            return math.inf  # nothing will ever happen by itself
        self._now = max(self._now, deadline)
        return 0.0

    def jump(self, seconds: float) -> None:
        """Let so many virtual seconds pass at once, as where a machine slept."""
        self._now += seconds

"""A virtual clock that jumps in the step in which nothing can run.

trio's `MockClock` is told by the loop that all is idle, one pass later, and looks at the
statistics of everything to find the next deadline. A simulation has a jump for nearly
every event, so that was half of its cost: here the loop's own question, how long to sleep
until the next deadline, is answered by being there.

A deadline costs trio a cancel scope, about 10 µs. `sleep` and `Alarm` are the same without
one: the clock itself wakes who is due.

Invariants: time moves only when no task can run, and then to the next deadline or sleeper
exactly, or where `jump` says; a sleeper that is cancelled is forgotten.

Not here: `wait_all_tasks_blocked` and callbacks from threads (`run_sync_soon`), which do
not count as something that can run: time may jump past them. `testing.run_simulated`
takes `MockClock` for those.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count
from typing import Final

import trio


class VirtualClock(trio.abc.Clock):
    """For `trio.run(…, clock=VirtualClock())`; starts at 0."""

    __slots__ = ("_now", "_numbers", "_sleepers")

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, int, Alarm]] = []
        self._numbers = count()

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """Virtual seconds."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to what comes first, a deadline or a sleeper; then no time is left until it."""
        sleepers = self._sleepers
        while sleepers and sleepers[0][2].number != sleepers[0][1]:
            heappop(sleepers)  # cancelled, or rung before its time
        if sleepers and sleepers[0][0] <= deadline:
            now = self._now = max(self._now, sleepers[0][0])
            while sleepers and sleepers[0][0] <= now:
                _, number, alarm = heappop(sleepers)
                if alarm.number == number:
                    alarm.ring()
            return 0.0
        if deadline == math.inf:
            return math.inf  # nothing will ever happen by itself
        self._now = max(self._now, deadline)
        return 0.0

    def jump(self, seconds: float) -> None:
        """Move time ahead by so much, at once: whoever was to wake meanwhile wakes late."""
        if seconds < 0.0:
            raise ValueError(f"time moves ahead, not by {seconds} s")
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """As `trio.sleep`, for seconds above 0."""
        await Alarm(self).until(self._now + seconds)

    def wake_at(self, time: float, alarm: Alarm) -> int:
        """Ring an alarm then, if it still has the number that is given back."""
        number = next(self._numbers)
        heappush(self._sleepers, (time, number, alarm))
        return number


class Alarm:
    """Wakes one task: at a time, or before, when somebody rings."""

    __slots__ = ("_clock", "_task", "number")

    def __init__(self, clock: VirtualClock) -> None:
        self._clock: Final = clock
        self._task: trio.lowlevel.Task | None = None
        self.number = -1
        """Of the sleep under way."""

    async def until(self, time: float) -> None:
        """Sleep until then (infinity: until somebody rings), or until cancelled."""
        self._task = trio.lowlevel.current_task()
        self.number = self._clock.wake_at(time, self) if time < math.inf else -1
        await trio.lowlevel.wait_task_rescheduled(self._cancelled)

    def ring(self) -> None:
        """Wake the task now; nothing, if none sleeps."""
        task, self._task, self.number = self._task, None, -1
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _cancelled(self, _: object) -> trio.lowlevel.Abort:
        self._task, self.number = None, -1
        return trio.lowlevel.Abort.SUCCEEDED

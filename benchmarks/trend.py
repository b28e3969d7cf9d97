"""Whether something grows: a fitted slope and the ends of a series, against a tolerance.

    warm-up │ first tenth ─ … ─ last tenth
            └── straight line by least squares: slope an hour, rise over the whole

A series grows if the line's rise, the difference of its tenths' medians and that of their
lowest values all exceed what is allowed: a fixed amount, or a share of the level, and three
standard errors of the difference. So what only goes up and down with the load is not taken
for a leak: a leak lifts the floor, too.

Not here: what is measured (`vitals`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median, variance
from typing import Final

from . import vitals
from .vitals import History

WARM_UP: Final = 0.2
"""Share of the run that is not looked at: caches fill, pools and arenas grow to their size."""

LEAST: Final = 20
"""Samples after the warm-up, at least: fewer say nothing."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a level may rise over the whole run; the larger of both."""

    fixed: float
    share: float = 0.0
    """Of the first tenth's level."""


TOLERANCES: Final[Mapping[str, Tolerance]] = {
    vitals.RSS: Tolerance(8, 0.05),
    vitals.CHILD_RSS: Tolerance(16, 0.1),
    vitals.FDS: Tolerance(3),
    vitals.THREADS: Tolerance(3),
    vitals.CHILDREN: Tolerance(1),
    vitals.TASKS: Tolerance(10, 0.1),
    vitals.QUEUED: Tolerance(10, 0.1),
    vitals.OBJECTS: Tolerance(1000, 0.03),
}
OF_A_CLASS: Final = Tolerance(20, 0.1)
"""For the objects of one class."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How one level went."""

    name: str
    first: float
    """Median of the first tenth after the warm-up."""
    last: float
    """Median of the last tenth."""
    peak: float
    slope: float
    """An hour, of the fitted line."""
    rise: float
    """Of the fitted line, over what was looked at."""
    floor_rise: float
    """From the lowest value of the first tenth to that of the last."""
    allowed: float

    @property
    def grows(self) -> bool:
        """Whether it rose by more than is allowed: the line, its ends, and its floor."""
        return min(self.rise, self.last - self.first, self.floor_rise) > self.allowed


def trend(
    name: str, times: Sequence[float], values: Sequence[float], tolerance: Tolerance
) -> Trend:
    """Judge one level by its samples after the warm-up; times in seconds, rising."""
    tenth = max(2, len(values) // 10)
    first, last = values[:tenth], values[-tenth:]
    slope = linear_regression(times, values).slope
    error = math.sqrt((variance(first) + variance(last)) / tenth)
    level = median(first)
    allowed = max(tolerance.fixed, tolerance.share * level) + 3 * error
    rise = slope * (times[-1] - times[0])
    floor = min(last) - min(first)
    return Trend(name, level, median(last), max(values), 3600 * slope, rise, floor, allowed)


def judge(history: History) -> list[Trend]:
    """Judge every level of a run, the named ones first, then classes by their size.

    Raises:
        ValueError: there are too few samples to judge.
    """
    times = history.times
    first = bisect_left(times, WARM_UP * times[-1]) if times else 0
    if len(times) - first < LEAST:
        raise ValueError(
            f"{len(times) - first} samples after the warm-up say nothing, {LEAST} would: "
            "run it for longer"
        )
    found = [
        trend(name, times[first:], level[first:], TOLERANCES.get(name, OF_A_CLASS))
        for name, level in history.levels.items()
    ]
    order = list(TOLERANCES)
    return sorted(
        found,
        key=lambda t: (order.index(t.name) if t.name in order else len(order), -t.last, t.name),
    )

"""Paired statistics over seeds: an interval, an exact test, and a correction for many tests.

The unit is the seed. A value for each seed is a contrast of arms that shared its tasks, its
initial weights and its sampling, so that what the seeds differ by cancels.

Invariants: equal values give equal statistics (resampling is seeded); with all values equal to
0 nothing is significant.

Not here: what is compared (`experiment`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Final

from ...engine.seeds import generator

_RESAMPLES: Final = 10_000
_EXACT: Final = 14
"""Up to so many seeds every choice of signs is tried; above, as many are drawn."""
_POWER: Final = 7.85
"""(z_.975 + z_.8)²: seeds needed are this, times the squared ratio of deviation and mean."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """What the seeds say about one difference."""

    values: tuple[float, ...]
    mean: float
    low: float
    """95 % bootstrap interval of the mean, percentiles over resampled seeds."""
    high: float
    p: float
    """Two-sided, by flipping signs: how often a mean so far from 0 comes of chance alone."""
    positive: int
    """Seeds above 0."""

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len(self.values)

    @property
    def needed(self) -> int | None:
        """Seeds that would show a true mean of this size with a power of 80 %."""
        if len(self.values) < 2 or self.mean == 0:
            return None
        return max(2, math.ceil(_POWER * (stdev(self.values) / self.mean) ** 2))

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> Contrast:
        """Summarise a value for each seed; one at least."""
        random = generator(seed, "bootstrap", len(values))
        means = sorted(fmean(random.choices(values, k=len(values))) for _ in range(_RESAMPLES))
        return cls(
            tuple(values),
            fmean(values),
            means[int(0.025 * _RESAMPLES)],
            means[int(0.975 * _RESAMPLES) - 1],
            sign_flips(values, seed),
            sum(value > 0 for value in values),
        )

    def __str__(self) -> str:
        digits = 1 if max(abs(self.low), abs(self.high)) >= 1 else 3
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def sign_flips(values: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of the randomisation test on paired differences.

    Under the hypothesis that arms do not differ, each difference is as likely with the other
    sign. Exact up to 14 values.
    """
    observed = abs(math.fsum(values)) * (1 - 1e-12)  # rounding must not lose the tie with itself
    if len(values) <= _EXACT:
        flips = product((1, -1), repeat=len(values))
        sums = [abs(math.fsum(s * v for s, v in zip(f, values, strict=True))) for f in flips]
        return sum(total >= observed for total in sums) / len(sums)
    random = generator(seed, "signs", len(values))
    hits = sum(
        abs(math.fsum(v if random.random() < 0.5 else -v for v in values)) >= observed
        for _ in range(_RESAMPLES)
    )
    return (hits + 1) / (_RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that bound the chance of any false claim among them."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected

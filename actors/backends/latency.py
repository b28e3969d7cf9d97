"""How long an answer takes: latency models, seeded by the request.

Invariant: a draw depends on the seed alone, so that a simulation has the same
heavy tail whatever the order of its requests.

Not here: who waits (`scripted`, and the stub server of the benchmarks).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from ...engine.errors import ConfigError
from ...engine.seeds import derive


class Latency(ABC):
    """Seconds that a request takes, or a batch of requests."""

    per_request: float
    """Seconds that each member adds to its batch: the part of the work that does not overlap."""

    @abstractmethod
    def at(self, share: float) -> float:
        """The seconds below which that share of the draws lies; `share` in [0, 1)."""

    def draw(self, seed: int) -> float:
        """Seconds of one request, without `per_request`."""
        return self.at(_uniform(seed))

    def batch(self, seeds: Sequence[int]) -> float:
        """Seconds of a batch: its slowest member, and `per_request` for each."""
        return max(map(self.draw, seeds), default=0.0) + self.per_request * len(seeds)


@dataclass(frozen=True)
class ConstantLatency(Latency):
    """Every request takes the same time."""

    seconds: float
    per_request: float = 0.0

    def __post_init__(self) -> None:
        _refuse_negative(seconds=self.seconds, per_request=self.per_request)

    def at(self, share: float) -> float:
        """The constant."""
        return self.seconds

    def batch(self, seeds: Sequence[int]) -> float:
        """The constant, and `per_request` for each member."""
        return self.seconds + self.per_request * len(seeds)

    def ideal_seconds(self, sessions: int, turns: int, batch_capacity: int) -> float:
        """Least time in which `sessions` × `turns` can be served, if all else were free.

        One batch runs at a time, a session's turns lie in different batches, and a
        batch holds at most `batch_capacity`; 0 = every request alone and at once.
        """
        if not batch_capacity:
            return turns * (self.seconds + self.per_request)
        requests = sessions * turns
        batches = max(turns, math.ceil(requests / batch_capacity))
        return batches * self.seconds + requests * self.per_request


@dataclass(frozen=True)
class UniformLatency(Latency):
    """Evenly between `low` and `high` seconds."""

    low: float
    high: float
    per_request: float = 0.0

    def __post_init__(self) -> None:
        _refuse_negative(low=self.low, high=self.high, per_request=self.per_request)
        if self.high < self.low:
            raise ConfigError(f"uniform latency: high {self.high} is below low {self.low}")

    def at(self, share: float) -> float:
        """That share of the way from `low` to `high`."""
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True)
class LogNormalLatency(Latency):
    """Heavy tail, as of generations of very different length.

    `sigma` is the standard deviation of the logarithm: at 1.0 one request in a
    hundred takes ten times the median. Draws are cut at `longest`.
    """

    median: float
    sigma: float = 1.0
    longest: float = math.inf
    per_request: float = 0.0

    def __post_init__(self) -> None:
        _refuse_negative(median=self.median, sigma=self.sigma, per_request=self.per_request)

    def at(self, share: float) -> float:
        """By inversion."""
        quantile = min(max(share, 1e-12), 1 - 1e-12)
        return min(self.median * math.exp(self.sigma * _NORMAL.inv_cdf(quantile)), self.longest)


_NORMAL: Final = NormalDist()


def _uniform(seed: int) -> float:
    """In [0, 1), from the request's seed."""
    return derive(seed, "latency") / 2**63


def _refuse_negative(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"latency: {name} must be a finite number of at least 0, not {value}")

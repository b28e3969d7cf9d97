"""Latencies as a real run had them: taken from its trajectories, kept in one JSON file.

    {"format": "rollwave-latencies", "version": 1, "source": "runs/a", "concurrency": 64,
     "episodes": 1000,
     "generate": {"mean": 0.9, "buckets": [[0.5, 0.53125, 17], …]},   seconds of a completion
     "step":     {…},                                                 of an environment step
     "open":     {…},           an episode's seconds outside of its turns: make, reset, close
     "turns":    [[8, 12], …]}                                        [turns, episodes]

A bucket is `[from, to, count]`; each is at most 1/16 of its value wide. What a request
waited for, and how full the batches were, is in its latency: so a file holds for the
concurrency it was measured at, and is simulated with a batch without bound.

Invariants: a file that is read is whole (sorted buckets that do not overlap, counts above
0, finite seconds); what is written is read back equal.

Not here: distributions by name (`latencies`), and reading a run (`cli.inspect`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from ...engine.disk import Disk
from ...engine.errors import BadDataFile, ConfigError, storage_error
from ...engine.telemetry import Histogram, lower
from ...engine.trajectory import Trajectory
from ..backends.latency import Latency

FORMAT: Final = "rollwave-latencies"
VERSION: Final = 1


class Buckets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured quantity, in seconds."""

    mean: float
    """Of the values themselves, for people: draws come from the buckets."""
    buckets: tuple[tuple[float, float, int], ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Count values into buckets; negative ones (clocks are floats) count as 0."""
        histogram = Histogram()
        for value in values:
            histogram.observe(max(value, 0.0))
        low, high = histogram.minimum, histogram.maximum
        return cls(
            histogram.total / histogram.count if histogram.count else 0.0,
            tuple(
                (max(lower(b), low), min(lower(b + 1), high), histogram.buckets[b])
                if lower(b + 1) > 0
                else (0.0, 0.0, histogram.buckets[b])
                for b in sorted(histogram.buckets)
            ),
        )

    def wrong(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if not (math.isfinite(self.mean) and self.mean >= 0):
            return f"mean {self.mean}"
        for number, (low, high, count) in enumerate(self.buckets):
            if not (0 <= low <= high < math.inf) or count < 1:
                return f"bucket {number}, {[low, high, count]}"
        for (_, before, _), (after, _, _) in pairwise(self.buckets):
            if after < before:
                return f"buckets that overlap at {after} s"
        return "" if self.buckets else "no buckets"


class MeasuredLatencies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    format: Literal["rollwave-latencies"]
    version: Literal[1]
    source: str
    """The run directory."""
    concurrency: int
    """Live sessions at most while it was measured; 0 = the run did not say."""
    episodes: int
    generate: Buckets
    step: Buckets
    open: Buckets
    turns: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, trajectories: Sequence[Trajectory], *, source: str = "", concurrency: int = 0
    ) -> Self:
        """Measure the scored episodes; a fault's latencies are those of what broke.

        Raises:
            ConfigError: there is no scored episode that took a turn.
        """
        scored = [t for t in trajectories if t.outcome.scored and t.turns]
        if not scored:
            raise ConfigError(
                f"{source or 'the run'} has no episode that was played to a scored end: there are "
                "no latencies to measure"
            )
        return cls(
            FORMAT,
            VERSION,
            source,
            concurrency,
            len(scored),
            Buckets.of(turn.generate_seconds for t in scored for turn in t.turns),
            Buckets.of(turn.step_seconds for t in scored for turn in t.turns),
            Buckets.of(_outside(t) for t in scored),
            tuple(sorted(Counter(len(t.turns) for t in scored).items())),
        )

    def wrong(self) -> str:
        """What is wrong with it; empty if nothing is."""
        for name in ("generate", "step", "open"):
            if found := getattr(self, name).wrong():
                return f"{name} has {found}"
        if not self.turns or any(turns < 1 or count < 1 for turns, count in self.turns):
            return "turns must be pairs [turns, episodes] of numbers above 0"
        if any(a >= b for (a, _), (b, _) in pairwise(self.turns)):
            return "turns must be sorted by their number"
        return "concurrency is negative" if self.concurrency < 0 else ""


class MeasuredLatency(Latency):
    """Draws as often as it was measured, evenly within a bucket."""

    per_request = 0.0

    def __init__(self, measured: Buckets) -> None:
        counts = list(accumulate(count for *_, count in measured.buckets))
        self._buckets = measured.buckets
        self._upto = [count / counts[-1] for count in counts]

    def at(self, share: float) -> float:
        """By inversion of the cumulated counts."""
        index = min(bisect_right(self._upto, share), len(self._buckets) - 1)
        low, high, _ = self._buckets[index]
        before = self._upto[index - 1] if index else 0.0
        return low + (high - low) * (share - before) / (self._upto[index] - before)


class MeasuredTurns:
    """Turns of an episode as often as they were measured."""

    def __init__(self, turns: Sequence[tuple[int, int]]) -> None:
        self._turns = [number for number, _ in turns]
        self._upto = list(accumulate(count for _, count in turns))

    def at(self, share: float) -> int:
        """By inversion; `share` in [0, 1)."""
        return self._turns[bisect_right(self._upto, share * self._upto[-1])]


def write_latencies(measured: MeasuredLatencies, path: Path, *, disk: Disk | None = None) -> None:
    """Write the file, all of it or none.

    Raises:
        StorageFailed: the disk refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (disk or Disk()).replace(path, msgspec.json.encode(measured) + b"\n")
    except OSError as error:
        raise storage_error(error, path) from error


def read_latencies(path: Path) -> MeasuredLatencies:
    """Read the file.

    Raises:
        ConfigError: it cannot be read.
        BadDataFile: it is not what `write_latencies` writes; the text says where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read latencies from {path}: {error.strerror}") from error
    try:
        measured = msgspec.json.decode(data, type=MeasuredLatencies)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadDataFile(
            f"{path} is no file of latencies: {error}; `rollwave inspect DIR --latencies FILE` "
            "writes one"
        ) from None
    if wrong := measured.wrong():
        raise BadDataFile(f"{path} is no file of latencies as we write them: {wrong}")
    return measured


def _outside(trajectory: Trajectory) -> float:
    """An episode's seconds outside of its turns."""
    inside = sum(turn.generate_seconds + turn.step_seconds for turn in trajectory.turns)
    return trajectory.seconds - inside

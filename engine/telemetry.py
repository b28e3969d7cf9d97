"""Counters, gauges, histograms, and a sink of events.

A `Telemetry` owns its instruments; there is no global one. Take an instrument
once, by name and labels, and keep it: an increment is then an attribute
addition, well under a microsecond.

    turns = telemetry.counter("turns", env="maze-v1")
    turns.add()
    telemetry.snapshot()["counters"]["turns{env=maze-v1}"]

`EventSink` writes one JSON object a line, off the loop; it may lose events on a
bad disk, which it counts, and never holds up those who emit.

Invariant: a snapshot is plain data (`dict`, `str`, numbers) and changes nothing.

Not here: what survives a crash (`journal`), and how figures are shown.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import trio

from .clock import now
from .disk import Disk
from .errors import StorageFailed, storage_error

_STEPS: Final = 16
"""Histogram buckets for each doubling: a quantile is right within 1/32."""


class Counter:
    """Only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count `amount` more."""
        self.value += amount


class Gauge:
    """A level, and the highest it has been."""

    __slots__ = ("peak", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.peak: float = 0

    def set(self, value: float) -> None:
        """Set the level."""
        self.value = value
        if value > self.peak:
            self.peak = value

    def add(self, amount: float = 1) -> None:
        """Raise (or lower, if negative) the level."""
        self.set(self.value + amount)


class Histogram:
    """A distribution of values in buckets that grow with the value.

    Bucket b counts the values in `[lower(b), lower(b + 1))`; values that are not
    positive are counted in one bucket of their own, and a NaN nowhere.
    """

    __slots__ = ("buckets", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    def observe(self, value: float) -> None:
        """Add a finite value."""
        if value > 0.0:
            mantissa, exponent = math.frexp(value)
            bucket = exponent * _STEPS + int((mantissa - 0.5) * 2 * _STEPS)
        elif value <= 0.0:
            bucket = _NOT_POSITIVE
        else:
            return
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value

    def quantile(self, share: float) -> float:
        """Give the value below which that share (0 to 1) lies, within 1/32 of it; NaN if empty."""
        wanted = share * self.count
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                if bucket == _NOT_POSITIVE:
                    return self.minimum
                middle = (lower(bucket) + lower(bucket + 1)) / 2
                return min(max(middle, self.minimum), self.maximum)
        return math.nan

    def summary(self) -> dict[str, float]:
        """Give count, mean, extremes and quantiles; the count alone if it is 0."""
        if not self.count:
            return {"count": 0}
        return {
            "count": self.count,
            "mean": self.total / self.count,
            "minimum": self.minimum,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "maximum": self.maximum,
        }


def lower(bucket: int) -> float:
    """Give the lower edge of a histogram bucket."""
    exponent, step = divmod(bucket, _STEPS)
    return math.ldexp(0.5 + step / (2 * _STEPS), exponent)


_NOT_POSITIVE: Final = -(2**31)

Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


class Telemetry:
    """The instruments of one engine."""

    def __init__(self) -> None:
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        """Give the counter of that name and labels, made at first use."""
        return self._take(Counter, name, labels)

    def gauge(self, name: str, **labels: str) -> Gauge:
        """Give the gauge of that name and labels, made at first use."""
        return self._take(Gauge, name, labels)

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Give the histogram of that name and labels, made at first use."""
        return self._take(Histogram, name, labels)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Give all figures as plain data: `counters`, `gauges` and `histograms` by name."""
        counters: dict[str, Any] = {}
        gauges: dict[str, Any] = {}
        histograms: dict[str, Any] = {}
        for key in sorted(self._instruments):
            match self._instruments[key]:
                case Counter() as counter:
                    counters[key] = counter.value
                case Gauge() as gauge:
                    gauges[key] = {"value": gauge.value, "peak": gauge.peak}
                case Histogram() as histogram:
                    histograms[key] = histogram.summary()
        return {"counters": counters, "gauges": gauges, "histograms": histograms}

    def _take(self, kind: type[Instrument], name: str, labels: dict[str, str]) -> Instrument:
        inside = ",".join(f"{label}={labels[label]}" for label in sorted(labels))
        key = f"{name}{{{inside}}}" if inside else name
        found = self._instruments.get(key)
        if found is None:
            found = self._instruments[key] = kind()
        if not isinstance(found, kind):
            raise TypeError(f"{key} is a {type(found).__name__}, not a {kind.__name__}")
        return found


class EventSink:
    """Events as JSON lines: `{"t": seconds, "event": kind, ...}`.

    Somebody runs `run` in a nursery; `emit` works from anywhere on the loop,
    before and during it.

    Args:
        path: the file; appended to.
        interval: seconds between writes.
        limit: events held in memory at most; more are dropped and counted.
        disk: where the writes go.
        threaded: False writes on the loop, for the virtual clock (see `Journal.open`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        interval: float = 0.5,
        limit: int = 100_000,
        disk: Disk | None = None,
        threaded: bool = True,
    ) -> None:
        self.path: Final = Path(path)
        self.dropped = 0
        """Events lost to a full buffer or a bad disk."""
        self.error: StorageFailed | None = None
        """How the last write failed."""
        self._interval = interval
        self._limit = limit
        self._threaded = threaded
        self._disk = disk or Disk()
        self._lines: list[bytes] = []
        self._wanted = trio.Event()
        self._stuck = False

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Add an event. Never blocks, and never fails for the disk's sake.

        Raises:
            TypeError: a value is not one that JSON can hold.
        """
        if len(self._lines) >= self._limit:
            self.dropped += 1
            return
        self._lines.append(msgspec.json.encode({"t": now(), "event": kind, **fields}) + b"\n")
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is emitted until cancelled; then write the rest and close the file.

        Raises:
            StorageFailed: the file cannot be opened. A later failure of the disk only
                loses events: see `dropped` and `error`.
        """
        try:
            descriptor = self._disk.open(self.path)
            length = self.path.stat().st_size
        except OSError as error:
            raise storage_error(error, self.path) from error
        task_status.started()
        try:
            while True:
                await self._wanted.wait()
                length += await self._flush(descriptor, length)
                await trio.sleep(self._interval)
        finally:
            await self._flush(descriptor, length)
            if not self._stuck:
                self._disk.close(descriptor)

    async def _flush(self, descriptor: int, length: int) -> int:
        """Write what waits at offset `length`; give the bytes written, 0 if the disk refused."""
        lines, self._lines = self._lines, []
        self._wanted = trio.Event()
        data = b"".join(lines)
        try:
            if self._stuck:
                raise TimeoutError(0, "an earlier write never ended")
            if not self._threaded:
                self._disk.write(descriptor, data, length)
            elif lines:
                # Shielded, so that a batch is not torn by the end of the run; bounded,
                # so that a hung disk does not hold up the end.
                with trio.move_on_after(_WRITE_SECONDS, shield=True) as scope:
                    await trio.to_thread.run_sync(
                        self._disk.write, descriptor, data, length, abandon_on_cancel=True
                    )
                if scope.cancelled_caught:
                    self._stuck = True
                    raise TimeoutError(0, f"no answer within {_WRITE_SECONDS:g} s")
        except OSError as error:
            # What was half written is written over by the next batch.
            self.error = storage_error(error, self.path)
            self.dropped += len(lines)
            return 0
        return len(data)


_WRITE_SECONDS: Final = 5.0

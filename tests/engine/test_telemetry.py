"""Figures are right and plain; the event sink stops nobody, whatever its disk does."""

from __future__ import annotations

import errno
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.disk import Disk
from rollwave.engine.errors import StorageFailed
from rollwave.engine.telemetry import EventSink, Histogram, Telemetry, lower

positive = st.floats(1e-9, 1e9)


def test_counters_and_gauges_count() -> None:
    telemetry = Telemetry()
    turns = telemetry.counter("turns")
    turns.add()
    turns.add(3)
    live = telemetry.gauge("live")
    live.add(5)
    live.add(-3)
    live.set(1)
    snapshot = telemetry.snapshot()
    assert snapshot["counters"] == {"turns": 4}
    assert snapshot["gauges"] == {"live": {"value": 1, "peak": 5}}


def test_an_instrument_is_known_by_name_and_labels_in_any_order() -> None:
    telemetry = Telemetry()
    first = telemetry.counter("episodes", env="maze-v1", outcome="success")
    assert telemetry.counter("episodes", outcome="success", env="maze-v1") is first
    assert telemetry.counter("episodes", env="maze-v1", outcome="fault") is not first
    assert list(telemetry.snapshot()["counters"]) == [
        "episodes{env=maze-v1,outcome=fault}",
        "episodes{env=maze-v1,outcome=success}",
    ]


def test_two_kinds_under_one_name_are_refused() -> None:
    telemetry = Telemetry()
    telemetry.counter("turns")
    with pytest.raises(TypeError, match="turns is a Counter, not a Gauge"):
        telemetry.gauge("turns")


def test_two_telemetries_share_nothing() -> None:
    first, second = Telemetry(), Telemetry()
    first.counter("turns").add()
    assert second.snapshot()["counters"] == {}


def test_a_snapshot_is_plain_data_that_stays_as_it_was() -> None:
    telemetry = Telemetry()
    telemetry.counter("a").add(2)
    telemetry.gauge("b").set(1.5)
    telemetry.histogram("c").observe(0.25)
    telemetry.histogram("empty")
    snapshot = telemetry.snapshot()
    text = json.dumps(snapshot)
    telemetry.counter("a").add()
    telemetry.histogram("c").observe(9)
    assert json.dumps(snapshot) == text
    assert snapshot["histograms"]["empty"] == {"count": 0}


@given(positive)
def test_a_value_lies_in_its_bucket_and_buckets_are_narrow(value: float) -> None:
    histogram = Histogram()
    histogram.observe(value)
    (bucket,) = histogram.buckets
    assert lower(bucket) <= value < lower(bucket + 1)
    assert lower(bucket + 1) / lower(bucket) <= 1 + 1 / 16


@given(st.integers(-600, 600))
def test_bucket_edges_are_where_the_next_bucket_begins(bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(lower(bucket))
    assert list(histogram.buckets) == [bucket]


@given(st.lists(positive, min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_are_right_within_a_thirtysecond(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    exact = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    assert histogram.quantile(share) == pytest.approx(exact, rel=1 / 31)
    assert min(values) <= histogram.quantile(share) <= max(values)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_count_mean_and_extremes_are_exact(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    summary = histogram.summary()
    assert summary["count"] == sum(histogram.buckets.values()) == len(values)
    assert summary["mean"] == pytest.approx(sum(values) / len(values))
    assert (summary["minimum"], summary["maximum"]) == (min(values), max(values))
    assert summary["minimum"] <= summary["p50"] <= summary["p90"] <= summary["p99"]


def test_a_nan_is_not_counted_and_no_quantile_of_nothing_exists() -> None:
    histogram = Histogram()
    histogram.observe(math.nan)
    assert histogram.count == 0
    assert math.isnan(histogram.quantile(0.5))


# ---- the event sink -------------------------------------------------------------------


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class BadDisk(Disk):
    """Half of every write gets through while `fail` is set; waits for `hold` if there is one."""

    def __init__(self) -> None:
        self.fail = False
        self.hold: threading.Event | None = None
        self.closed = 0

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        if self.hold is not None:
            self.hold.wait(60)
        if self.fail:
            super().write(descriptor, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data, offset)

    def close(self, descriptor: int) -> None:
        self.closed += 1
        super().close(descriptor)


@pytest.mark.parametrize("threaded", [True, False])
async def test_events_become_lines_in_order_the_last_ones_too(
    tmp_path: Path, threaded: bool
) -> None:
    path = tmp_path / "events.jsonl"
    disk = BadDisk()
    for session in range(2):  # the second appends
        log = EventSink(path, threaded=threaded, interval=0, disk=disk)
        log.emit("before", session=session)
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            log.emit("swap", version=3, seconds=0.5)
            await trio.testing.wait_all_tasks_blocked()
            log.emit("end", text="ä\n")
            nursery.cancel_scope.cancel()
        assert disk.closed == session + 1
        assert log.dropped == 0
    found = events(path)
    assert [event["event"] for event in found] == ["before", "swap", "end"] * 2
    assert found[1].items() >= {"version": 3, "seconds": 0.5}.items()
    assert found[2]["text"] == "ä\n"
    assert all(isinstance(event["t"], float) for event in found)


def test_events_carry_the_virtual_clock_and_cost_it_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    async def main() -> None:
        log = EventSink(path, threaded=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            for _ in range(3):
                log.emit("tick")
                await trio.sleep(60)
            assert trio.current_time() == 180
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [event["t"] for event in events(path)] == [0, 60, 120]


async def test_a_full_disk_loses_events_counts_them_and_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    disk = BadDisk()
    log = EventSink(path, disk=disk, threaded=False, interval=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        for index, fail in enumerate([False, True, True, False]):
            disk.fail = fail
            log.emit("event", index=index)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [event["index"] for event in events(path)] == [0, 3]  # no torn line between them
    assert log.dropped == 2
    assert isinstance(log.error, StorageFailed)
    assert "events.jsonl" in str(log.error)


async def test_a_full_buffer_drops_and_counts(tmp_path: Path) -> None:
    log = EventSink(tmp_path / "events.jsonl", limit=3)
    for index in range(10):
        log.emit("event", index=index)
    assert log.dropped == 7
    with pytest.raises(TypeError):
        EventSink(tmp_path / "x").emit("event", value=object())


async def test_a_file_that_cannot_be_opened_is_told_to_the_one_who_starts_it(
    tmp_path: Path,
) -> None:
    log = EventSink(tmp_path / "absent" / "events.jsonl")
    with pytest.raises(StorageFailed, match=r"events\.jsonl.*check the path"):
        await log.run()


async def test_a_hung_disk_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollwave.engine.telemetry._WRITE_SECONDS", 0.01)
    disk = BadDisk()
    disk.hold = threading.Event()
    log = EventSink(tmp_path / "events.jsonl", disk=disk, interval=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.emit("lost")
        with trio.fail_after(30):
            while not log.dropped:
                await trio.lowlevel.checkpoint()
        log.emit("too")
        nursery.cancel_scope.cancel()
    assert log.dropped == 2
    assert "never ended" in str(log.error)
    assert disk.closed == 0  # the thread still has it
    disk.hold.set()

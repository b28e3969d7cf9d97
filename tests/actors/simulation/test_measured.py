"""Measured latencies: the file is read back equal, draws are those that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.simulation.measured import (
    Buckets,
    MeasuredLatencies,
    MeasuredLatency,
    MeasuredTurns,
    read_latencies,
    write_latencies,
)
from rollwave.engine.errors import BadDataFile, ConfigError, StorageFailed
from rollwave.engine.trajectory import Outcome, Trajectory, Turn

SECONDS = st.floats(0.0, 1e5, allow_subnormal=False)
SHARES = [(n + 0.5) / 4000 for n in range(4000)]


def played(turns: list[tuple[float, float]], outside: float, number: int = 0) -> Trajectory:
    inside = sum(generate + step for generate, step in turns)
    return Trajectory(
        id=f"w0/maze_{number}/0",
        env="maze-v1",
        task_id=f"maze_{number}",
        split="test",
        wave=0,
        attempt=0,
        seed=7,
        outcome=Outcome.SUCCESS,
        reward=1.0,
        turns=tuple(
            Turn("o", "c", "c", 0.0, 0, 0, 0, generate_seconds=g, step_seconds=s) for g, s in turns
        ),
        seconds=inside + outside,
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=4), SECONDS),
        min_size=1,
        max_size=5,
    )
)
def test_what_was_measured_is_sound_and_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[list[tuple[float, float]], float]]
) -> None:
    path = tmp_path_factory.mktemp("latencies") / "deep" / "l.json"
    measured = MeasuredLatencies.of([played(*run) for run in runs], source="a", concurrency=3)
    write_latencies(measured, path)
    assert read_latencies(path) == measured
    assert sum(count for *_, count in measured.generate.buckets) == sum(len(t) for t, _ in runs)
    assert measured.turns == tuple(
        sorted({n: sum(len(t) == n for t, _ in runs) for n in {len(t) for t, _ in runs}}.items())
    )


@settings(deadline=None)
@given(st.lists(SECONDS, min_size=1, max_size=50))
def test_draws_are_spread_as_the_values_were(values: list[float]) -> None:
    """Each draw lies where a value was, within a bucket; and so their mean."""
    latency = MeasuredLatency(Buckets.of(values))
    drawn = [latency.at(share) for share in SHARES]
    assert drawn == sorted(drawn)
    assert min(values) <= drawn[0] <= drawn[-1] <= max(values)
    mean = sum(values) / len(values)
    # A bucket is a sixteenth wide; the grid of shares is off by one of its steps at most.
    slack = mean / 8 + len(values) * max(values) / len(SHARES)
    assert sum(drawn) / len(drawn) == pytest.approx(mean, abs=slack)


def test_a_constant_is_drawn_exactly() -> None:
    latency = MeasuredLatency(Buckets.of([0.25] * 9))
    assert {latency.at(share) for share in SHARES} == {0.25}
    assert {MeasuredLatency(Buckets.of([0.0])).at(share) for share in SHARES} == {0.0}


def test_turns_come_as_often_as_they_were_measured() -> None:
    turns = MeasuredTurns([(2, 1), (5, 3)])
    drawn = [turns.at(share) for share in SHARES]
    assert (drawn.count(2), drawn.count(5)) == (1000, 3000)


def test_faults_and_empty_episodes_are_not_measured() -> None:
    from rollwave.engine.errors import FaultKind
    from rollwave.engine.trajectory import Fault

    good = played([(1.0, 0.0)], 0.0)
    broken = Trajectory(
        id="w0/maze_1/0",
        env="maze-v1",
        task_id="maze_1",
        split="test",
        wave=0,
        attempt=0,
        seed=7,
        outcome=Outcome.FAULT,
        reward=None,
        fault=Fault(FaultKind.DEADLINE, "late"),
        turns=(Turn("o", "c", "c", 0.0, 0, 0, 0, generate_seconds=120.0),),
    )
    assert MeasuredLatencies.of([good, broken]).generate.buckets == ((1.0, 1.0, 1),)
    with pytest.raises(ConfigError, match="no latencies to measure"):
        MeasuredLatencies.of([broken, played([], 0.0)], source="runs/x")


def sound() -> dict[str, object]:
    flat = {"mean": 1.0, "buckets": [[1.0, 1.0, 1]]}
    return {
        "format": "rollwave-latencies",
        "version": 1,
        "source": "",
        "concurrency": 1,
        "episodes": 1,
        "generate": flat,
        "step": flat,
        "open": flat,
        "turns": [[1, 1]],
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"surplus": 1}, "surplus"),
        ({"turns": []}, "turns"),
        ({"turns": [[2, 1], [1, 1]]}, "sorted"),
        ({"turns": [[0, 1]]}, "above 0"),
        ({"concurrency": -1}, "concurrency"),
        ({"generate": {"mean": -1.0, "buckets": [[1.0, 1.0, 1]]}}, "generate has mean"),
        ({"generate": {"mean": 1.0, "buckets": []}}, "no buckets"),
        ({"step": {"mean": 1.0, "buckets": [[2.0, 1.0, 1]]}}, "step has bucket 0"),
        ({"open": {"mean": 1.0, "buckets": [[1.0, 3.0, 1], [2.0, 4.0, 1]]}}, "overlap at 2"),
        ({"open": {"mean": 1.0, "buckets": [[1.0, 1.0, 0]]}}, "open has bucket 0"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    path = tmp_path / "l.json"
    path.write_text(json.dumps(sound() | change), "utf-8")
    with pytest.raises(BadDataFile) as caught:
        read_latencies(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b'"x"'])
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "l.json"
    path.write_bytes(data)
    with pytest.raises(BadDataFile, match="no file of latencies"):
        read_latencies(path)


def test_an_absent_file_and_a_bad_place_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_latencies(tmp_path / "absent.json")
    (tmp_path / "file").write_text("", "utf-8")
    measured = MeasuredLatencies.of([played([(1.0, 1.0)], 0.0)])
    with pytest.raises(StorageFailed, match="file"):
        write_latencies(measured, tmp_path / "file" / "l.json")

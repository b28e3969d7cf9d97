"""Trackers: each figure once, over kills too; one that fails is let go and stops nothing."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.evaluator import Evaluation
from rollwave.actors.monitor import Snapshot, TrainingStep
from rollwave.actors.report import Row
from rollwave.actors.sections import TrackSection
from rollwave.actors.tracking import (
    RowRecord,
    StepRecord,
    Tracker,
    Tracking,
    open_tracking,
    tracked,
)
from rollwave.actors.tracking.tracking import figures_of
from rollwave.engine.errors import MissingDependency, StorageFailed
from rollwave.engine.testing import run_simulated


class Notes(Tracker):
    """Keeps what it is told; raises on request."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.told: list[Any] = []

    def _take(self, what: str, record: Any) -> None:
        if what == self.failing:
            raise RuntimeError("out of paper")
        self.told.append(record)

    def config(self, settings: Mapping[str, str]) -> None:
        self._take("config", dict(settings))

    def step(self, record: StepRecord) -> None:
        self._take("step", record)

    def row(self, record: RowRecord) -> None:
        self._take("row", record)

    def close(self) -> None:
        self._take("close", "closed")


def snap(name: str, step: int, steps: int = 9, **metrics: float) -> Snapshot:
    return Snapshot(training=TrainingStep(name, step, steps, {"loss": 1.0 / step} | metrics))


def row(wave: int, arm: str = "evolution", *, dev: bool = True) -> Row:
    found = Evaluation(
        "e", 4, 4, {"success": 1}, {}, 0.25, (0.1, 0.4), 0.25, None, 8, 2.0, 0.0, 0.5
    )
    return Row(
        arm,
        wave,
        wave,
        3,
        6,
        2,
        found if dev else None,
        None,
        "m",
        5,
        None,
        {"kl": 0.5},
        {"stale": 2},
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def opened(path: Path, **section: Any) -> Tracking:
    return open_tracking(path, TrackSection(**section), {"run.seed": "1"}, "now")


# --- each once ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    stages=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    kills=st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 5), st.integers(0, 40)), max_size=4
    ),
)
def test_killed_anywhere_the_file_has_each_step_once_and_in_order(
    stages: list[int], kills: list[tuple[int, int, int]]
) -> None:
    """A run is a list of steps; a kill leaves the file after some of them, torn in the middle of
    a line, and training goes on from a checkpoint some steps before."""
    whole = [
        (f"policy-{n}", k, steps) for n, steps in enumerate(stages) for k in range(1, steps + 1)
    ]
    with TemporaryDirectory() as folder:
        path = Path(folder)
        position = 0
        for length, back, torn in [*kills, (len(whole), 0, 0)]:
            tracking = opened(path)
            if position < len(whole):
                name, step, steps = whole[position]
                if step > 1:  # as training does: it says first at which step it goes on
                    tracking.step(snap(name, step - 1, steps, resumed=step - 1))
            for name, step, steps in whole[position : position + length]:
                tracking.step(snap(name, step, steps, resumed=0))
            position = min(position + length, len(whole))
            first = position
            while first and whole[first - 1][1] > 1 and first > position - back:
                first -= 1  # a checkpoint is of the stage that was being trained
            if position < len(whole) and whole[position][1] > 1:
                position = first
            file = path / "metrics.jsonl"
            if torn:
                with file.open("ab") as end:
                    end.write(b'{"kind": "step", "stage": "policy-0", "step": 99, "metr'[:torn])
        steps = [line for line in lines(path) if line["kind"] == "step"]
        assert [(s["stage"], s["step"], s["steps"]) for s in steps] == whole
        assert [s["global_step"] for s in steps] == list(range(1, len(whole) + 1))
        assert all(s["metrics"] == {"loss": 1.0 / s["step"]} for s in steps)
        assert [line["kind"] for line in lines(path)].count("config") == 1


def test_rows_are_told_once_and_again_when_they_are_evaluated(tmp_path: Path) -> None:
    for _ in range(2):  # a campaign that goes on tells all of its table again
        tracking = opened(tmp_path)
        tracking.step(snap("policy-0000", 1, 1))
        for told in (row(0), row(1, dev=False), row(1), row(1, "control")):
            tracking.row(told)
        tracking.close()
    rows = [line for line in lines(tmp_path) if line["kind"] == "row"]
    assert [(r["arm"], r["wave"], r["evaluated"], r["global_step"]) for r in rows] == [
        ("evolution", 0, True, 1),
        ("evolution", 1, False, 1),
        ("evolution", 1, True, 1),
        ("control", 1, True, 1),
    ]
    assert rows[0]["metrics"]["dev/success_rate"] == 0.25
    assert "dev/success_rate" not in rows[1]["metrics"]


def test_a_row_in_figures() -> None:
    found = figures_of(row(1))
    assert (found["learner/kl"], found["dropped/stale"], found["kept"]) == (0.5, 2.0, 2.0)
    assert found["dev/outcomes/success"] == 1.0
    assert not {"arm", "wave", "model", "dev/env", "dev/interval"} & set(found)


def test_figures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    tracking = opened(tmp_path)
    tracking.step(snap("p", 1, kl=float("nan"), ratio_max=float("inf")))
    assert lines(tmp_path)[-1]["metrics"] == {"loss": 1.0, "kl": None, "ratio_max": None}


def test_foreign_lines_are_left_where_they_are(tmp_path: Path) -> None:
    foreign = b'not json\n{"kind": "step"}\n[1]\n{"kind": "row", "arm": 1, "wave": "x"}\n\xff\n'
    (tmp_path / "metrics.jsonl").write_bytes(foreign)
    opened(tmp_path).step(snap("p", 1))
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert data.startswith(foreign)
    assert json.loads(data.splitlines()[-1])["global_step"] == 1


KILLED = """
import sys
from pathlib import Path
from rollwave.actors.monitor import Snapshot, TrainingStep
from rollwave.actors.sections import TrackSection
from rollwave.actors.tracking import open_tracking

tracking = open_tracking(Path(sys.argv[1]), TrackSection(), {}, "now")
step = 0
while True:
    step += 1
    tracking.step(Snapshot(training=TrainingStep("policy-0000", step, 0, {"loss": 0.5})))
    if step == 50:
        print("far enough", flush=True)
"""


def test_a_process_that_is_killed_leaves_whole_steps(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "far enough\n"
        process.send_signal(signal.SIGKILL)
    tracking = opened(tmp_path)
    steps = [line["step"] for line in lines(tmp_path) if line["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 50
    for step in (10, len(steps), len(steps) + 1):  # trained again from a checkpoint
        tracking.step(snap("policy-0000", step))
    after = [line["step"] for line in lines(tmp_path) if line["kind"] == "step"]
    assert after == list(range(1, len(steps) + 2))


# --- failing ones ---------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["config", "step", "row", "close"])
def test_a_failing_tracker_is_warned_about_once_and_let_go(
    failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Notes(failing), Notes()
    tracking = Tracking([bad, good])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tracking.config({"a": "b"})
        tracking.step(snap("p", 1))
        tracking.step(snap("p", 2))
        tracking.row(row(0))
        tracking.row(row(1))
        tracking.close()
    assert len(good.told) == 7
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "Notes failed" in warnings[0]
    assert "out of paper" in warnings[0]


def test_one_that_cannot_be_made_is_a_failed_one(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Tracker:
        raise ConnectionError("no network")

    tracking = Tracking([])
    with caplog.at_level(logging.WARNING):
        tracking.add(refuse)
        tracking.step(snap("p", 1))
    assert "no network" in caplog.text


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_missing_extra_is_named_before_anything_begins(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = {"tensorboard": "tensorboard.summary.writer.event_file_writer"}.get(extra, extra)
    monkeypatch.setitem(sys.modules, hidden, None)
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingDependency, match=rf"rollwave\[{extra}\]"):
        opened(tmp_path, **{extra: True})


def test_a_disk_that_refuses_is_said_at_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageFailed, match=r"metrics\.jsonl"):
        opened(tmp_path)


def test_steps_may_come_from_any_thread() -> None:
    notes = Notes()
    tracking = Tracking([notes])
    heard: list[Snapshot] = []
    watch = tracking.watching(heard.append)

    def train(name: str) -> None:
        for step in range(1, 51):
            watch(snap(name, step))

    threads = [Thread(target=train, args=(name,)) for name in ("p", "q")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch(Snapshot(stage="wave 1"))
    assert len(heard) == 101
    for name in ("p", "q"):
        steps = [record.step for record in notes.told if record.stage == name]
        assert steps == list(range(1, 51))


def test_the_block_closes_what_it_opened(tmp_path: Path) -> None:
    async def campaign() -> None:
        async with tracked(tmp_path, TrackSection(), {"a": "b"}, created="now") as tracking:
            await tracking.told(row(0))

    run_simulated(campaign)
    assert [line["kind"] for line in lines(tmp_path)] == ["config", "row"]


# --- the extras -----------------------------------------------------------------------------


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = opened(tmp_path, tensorboard=True)
    for step in (1, 2):
        tracking.step(snap("policy-0000", step, kl=float("nan")))
    tracking.row(row(0))
    tracking.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("evolution/dev/success_rate")] == [(2, 0.25)]
    assert "train/kl" not in events.Tags()["scalars"]
    (settings_,) = events.Tensors("settings")
    assert b"run.seed" in settings_.tensor_proto.string_val[0]


@pytest.mark.slow
def test_wandb_takes_it_offline(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    tracking = opened(tmp_path, wandb=True, offline=True)
    tracking.step(snap("policy-0000", 1))
    tracking.row(row(0))
    tracking.close()
    wandb.teardown()  # its process has written everything when it is gone
    (found,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"evolution/dev/success_rate" in found.read_bytes()

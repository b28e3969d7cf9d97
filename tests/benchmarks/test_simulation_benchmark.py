"""The simulation's benchmark: real runs over HTTP are made, measured, simulated and reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rollwave.benchmarks.simulation import BAR, Prediction, predict, report, workloads


def test_a_run_over_http_is_measured_and_predicted(tmp_path: Path) -> None:
    """Only what must hold on a busy machine: the waiting itself is in both figures."""
    stub = replace(next(workloads(tmp_path)), sessions=32, concurrency=16)
    found = predict(stub, 1, tmp_path)
    assert min(found.real, found.other, found.predicted) > 0.1  # two episodes of eight turns
    assert (tmp_path / "latencies.json").exists()
    assert not list(tmp_path.glob("journal-*"))


def test_the_report_is_honest_about_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Prediction(10.0, 8.0, 11.0), Prediction(10.0, 8.0, 12.0)
    assert (good.error, bad.held_out) == (pytest.approx(0.1), pytest.approx(0.5))
    out = tmp_path / "simulation.json"
    report({"good": [good], "one miss": [good, bad]}, out)
    lines = capsys.readouterr().out.splitlines()
    assert any("good" in line and "met" in line for line in lines)
    assert any("one miss" in line and "missed" in line for line in lines)
    kept = json.loads(out.read_text("utf-8"))
    assert kept["bar"] == BAR
    assert [p["error"] for p in kept["backends"]["one miss"]] == pytest.approx([0.1, 0.2])

"""The statistics of the learning benchmark, against values worked out by hand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rollwave.benchmarks import learning
from rollwave.benchmarks.learning import Difference, SeedResult, differences, read_result


def row(arm: str, wave: int, dev: float, test: float) -> dict[str, Any]:
    return {
        "arm": arm,
        "wave": wave,
        "dev": {"success_rate": dev},
        "test": {"success_rate": test},
    }


REPORT: dict[str, Any] = {
    "rows": [
        row("evolution", 0, 0.30, 0.25),
        row("evolution", 1, 0.50, 0.45),
        row("evolution", 2, 0.40, 0.60),
        row("control", 1, 0.45, 0.35),
        row("control", 2, 0.35, 0.30),
    ],
    "best": 1,
    "turns": 1000,
    "seconds": 60.0,
}


def test_the_waves_are_those_that_dev_chose_not_those_that_test_would() -> None:
    result = read_result(3, REPORT)
    assert result == SeedResult(3, 25.0, 45.0, 30.0, 35.0, 1000, 60.0)


def test_the_cloned_policy_is_a_choice_of_the_control_too() -> None:
    report = REPORT | {"rows": [row("evolution", 0, 0.9, 0.8), *REPORT["rows"][1:]]}
    assert read_result(0, report).control_best == 80.0


def test_a_paired_difference_has_students_interval() -> None:
    found = Difference.of([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    # t(0.975, 2 degrees of freedom) = 4.303, standard error 1 / sqrt(3)
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5)
    assert (found.positive, found.seeds) == (3, 3)
    assert str(found) == "+2.0 [-0.5, +4.5]"


def test_differences_are_taken_within_a_seed() -> None:
    results = [SeedResult(0, 20, 50, 30, 35, 1, 1.0), SeedResult(1, 40, 50, 45, 55, 1, 1.0)]
    found = differences(results)
    assert found["AgentEvol - BC"].mean == pytest.approx(20.0)
    assert found["AgentEvol - control"].mean == pytest.approx(12.5)
    assert found["AgentEvol - control at its best"].positive == 1


def test_every_seed_is_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def play(config: Path, seed: int, out: Path, extra: list[str]) -> SeedResult:
        return SeedResult(seed, 20.0, 40.0 + seed, 30.0, 30.0, 10, 1.0)

    monkeypatch.setattr(learning, "run_seed", play)
    monkeypatch.setattr("sys.argv", ["learning", "--seeds", "3", "--out", str(tmp_path)])
    assert learning.main() == 0
    written = json.loads((tmp_path / "learning.json").read_text())
    assert [seed["evolved"] for seed in written["seeds"]] == [40.0, 41.0, 42.0]
    assert "AgentEvol - control" in capsys.readouterr().out


def test_policies_scored_again_keep_the_waves_that_dev_chose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    rates = {"evolution-0": 0.1, "evolution-1": 0.4, "control-1": 0.2, "control-2": 0.3}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        rate = rates.get(Path(command[command.index("--policy") + 1]).name, 0.9)
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"success_rate": rate}))

    monkeypatch.setattr(learning.subprocess, "run", run)
    rows = [{**row, "model": f"m/{row['arm']}-{row['wave']}"} for row in REPORT["rows"]]
    found = learning.score_again({**REPORT, "rows": rows}, 3, "maze-v1", "7:9", tmp_path)
    assert (found.cloned, found.evolved) == (10.0, 40.0)
    assert (found.control_last, found.control_best) == (30.0, 20.0)
    assert all(command[command.index("--tasks") + 1] == "7:9" for command in asked)
    assert len(asked) == 4  # what is not compared is not played

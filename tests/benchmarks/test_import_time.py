"""The benchmark of import times: what it prints and writes, and that its bar can be missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rollwave.benchmarks import import_time


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the benchmark at a file of ours, with one repeat."""
    out = tmp_path / "bench" / "import_time.json"
    monkeypatch.setattr(sys, "argv", ["import_time", "--repeats", "1", "--out", str(out)])
    return out


def test_it_prints_a_table_and_writes_one_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_time, "BAR_SECONDS", 1e9)
    assert import_time.main() == 0
    assert "import rollwave" in capsys.readouterr().out
    figures = json.loads(run.read_text())
    assert figures["met"] is True
    assert figures["seconds"].keys() == import_time.CASES.keys()
    assert figures["seconds"]["rollwave --help"]["modules"] > 10
    assert figures["machine"]


def test_a_missed_bar_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_time, "BAR_SECONDS", -1.0)
    assert import_time.main() == 1
    assert "MISSED" in capsys.readouterr().out


def test_modules_are_those_beyond_a_bare_interpreter() -> None:
    assert import_time.modules("pass") == 0
    assert import_time.modules("import rollwave") >= 1

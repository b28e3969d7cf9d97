"""ScienceWorld's benchmark: it counts all processes, and finds the session that differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rollwave.benchmarks import sciworld as subject

EPISODES: list[subject.Episode] = [("boil", 0, ["look around", "wait"]), ("melt", 1, ["x"])]


def test_memory_is_that_of_all_below() -> None:
    code = "import subprocess; subprocess.run(['cat'])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        while len(found := subject.family(os.getpid())) < 3:
            time.sleep(0.01)  # of another process
        assert child.pid in found
        assert all(subject.pss_mib(pid) >= 0 for pid in found)
        with subject.Peak() as peak:
            while peak.mib == 0:
                time.sleep(0.01)
        assert peak.mib > subject.pss_mib(child.pid) > 0
    finally:
        child.communicate()
    assert subject.pss_mib(child.pid) == 0


def test_a_session_that_was_told_otherwise_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        def __init__(self, name: str, episodes: Any, part: list[int], *_: Any) -> None:
            assert (name, episodes) == ("crowd", EPISODES)
            self.part = part

        def result(self) -> dict[str, Any]:
            digests = [f"d{number}" for number in self.part[:-1]] + ["other"]
            return {"digests": digests, "steps": 7, "evicted": 2, "rebuilt": 1}

    monkeypatch.setattr(subject, "Child", Told)
    found = subject.gather(EPISODES, ["d0", "d1"], 9, 2, 5)
    assert (found.sessions, found.steps, found.evicted, found.rebuilt) == (9, 14, 4, 2)
    assert found.different == 2  # the last of each process


@pytest.mark.parametrize(("different", "steps", "code"), [(0, 90.0, 0), (1, 90.0, 1), (0, 9.0, 1)])
def test_the_bars_decide(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, different: int, steps: float, code: int
) -> None:
    class Answer:
        def __init__(self, name: str, *_: Any) -> None:
            speed = {"wall": [steps], "cpu": [100.0], "load_ms": [5.0]}
            self.answer: Any = {
                "solutions": EPISODES,
                "lean": speed,
                "stock": speed,
                "memory": {"ours_mib": 0.3, "stock_mib": 10.0},
                "alone": ["d0", "d1"],
            }[name]

        def result(self) -> Any:
            return self.answer

    def gathered(*arguments: Any) -> subject.Crowd:
        return subject.Crowd(*arguments[2:], 10, 1.0, 0, 0, 900.0, different)

    out = tmp_path / "sciworld.json"
    monkeypatch.setattr(subject, "Child", Answer)
    monkeypatch.setattr(subject, "gather", gathered)
    monkeypatch.setattr("sys.argv", ["sciworld", "--sessions=40", f"--out={out}"])
    assert subject.main() == code
    written = json.loads(out.read_text())
    assert written["met"] is (code == 0)
    assert [run["processes"] for run in written["crowds"]] == [2, 1, 2]


@pytest.mark.skipif(find_spec("scienceworld") is None, reason="scienceworld is not installed")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")
def test_a_crowd_is_told_what_one_alone_is() -> None:
    expected = subject.alone(EPISODES)
    found = subject.crowd(EPISODES, [0, 1, 0, 1], 2, 1)
    assert found["digests"] == [*expected, *expected]
    assert found["steps"] == 6
    assert found["evicted"] > 0

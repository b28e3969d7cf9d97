"""The soak in a few seconds: everything is churned and judged, and a leak ends it with 1."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from rollwave.actors.rollout import Rollout
from rollwave.benchmarks import churn, soak, vitals
from rollwave.benchmarks.churn import Churn
from rollwave.engine.trajectory import Trajectory

MINUTES = 0.15


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = tmp_path / "soak.json"
    values = ["--minutes", str(MINUTES), "--out", str(out), "--figure", str(tmp_path / "soak.png")]
    monkeypatch.setattr("sys.argv", ["soak", *values])
    return out


@pytest.fixture
def leaked() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def test_everything_is_churned_and_a_planted_leak_is_named(
    arguments: Path,
    leaked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pyarrow")
    backend = churn._Backend.submit

    def leak(self: churn._Backend, *what: object) -> None:
        if self.statistics.requests % 50 == 0:
            leaked.append(os.open(os.devnull, os.O_RDONLY))
        backend(self, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(churn._Backend, "submit", leak)
    # Without counting objects, whose number is that of the whole test run: it takes too long.
    monkeypatch.setattr(vitals, "take", partial(vitals.take, objects=False))
    assert soak.main() == 1
    written = json.loads(arguments.read_text("utf-8"))
    assert vitals.FDS in written["grows"]
    done = written["counts"]
    activities = ("play", "abandon", "swap", "kill", "come_and_go", "cancel", "guest", "keep")
    activities += ("workers", "kill_worker")
    assert {name: done.get(name, 0) > 0 for name in activities} == dict.fromkeys(activities, True)
    assert done["fault: environment"] > 0
    assert done["fault: deadline"] > 0  # worlds that hung
    assert done["success"] > 0
    assert len(written["times"]) == len(written["levels"][vitals.RSS])
    assert written["mailbox_peaks"].keys() == {"collector", "inference", "dispatcher"}
    assert arguments.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "GROWS" in printed
    assert vitals.FDS in printed


def test_a_soak_too_short_to_judge_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "soak.json"
    monkeypatch.setattr("sys.argv", ["soak", "--minutes", "0.01", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        soak.main()
    assert end.value.code == 2
    assert "run it for longer" in capsys.readouterr().err
    assert not out.exists()


def test_an_episode_that_is_lost_ends_the_churn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Rollout.__anext__

    async def lose(self: Rollout) -> Trajectory:
        await take(self)
        return await take(self)

    monkeypatch.setattr(Rollout, "__anext__", lose)
    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match=r"came back|lost an episode"), flatten_subgroups=True
    ):
        trio.run(Churn(tmp_path, 4.0).run)

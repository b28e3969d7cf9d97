"""kill -9 in the middle of a real rollout: the same command goes on, in the middle of episodes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rollwave.actors.turnlog import read_progress
from rollwave.benchmarks.stub_server import stub_server
from rollwave.engine.store import read_wave
from rollwave.engine.trajectory import Trajectory

EPISODES = 24


def start(url: str, out: Path) -> subprocess.Popen[str]:
    words = ["rollout", "--env", "textcraft-v1", "--limit", str(EPISODES), "--policy", url]
    words += ["--turn-limit", "25", "--concurrency", "8", "--out", str(out), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "rollwave", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    try:
        while process.poll() is None and not due():
            time.sleep(0.01)  # another process: there is no virtual clock to wait on
    finally:
        process.kill()
        process.communicate(timeout=60)


def told(trajectory: Trajectory) -> Trajectory:
    """What happened in the episode, without when."""
    turns = tuple(
        msgspec.structs.replace(turn, generate_seconds=0.0, step_seconds=0.0)
        for turn in trajectory.turns
    )
    return msgspec.structs.replace(trajectory, turns=turns, started=0.0, seconds=0.0, policy="")


def finish(url: str, out: Path) -> tuple[dict[str, Any], list[Trajectory]]:
    stdout, stderr = start(url, out).communicate(timeout=120)
    assert stdout, stderr
    summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return summary, [told(t) for t in read_wave(summary["wave"]).trajectories]


def test_killed_twice_nothing_is_lost_doubled_or_played_twice(tmp_path: Path) -> None:
    journal = tmp_path / "run" / "journal.msgpack"
    with stub_server(20.0) as url:
        _, plain = finish(url, tmp_path / "plain")
        before: dict[str, Trajectory] = {}
        begun: dict[str, Any] = {}
        for least in (0, 8):

            def in_the_middle(least: int = least) -> bool:
                ended, begun = read_progress(journal)
                return len(ended) >= least and bool(begun)

            kill_when(start(url, tmp_path / "run"), in_the_middle)
            ended, begun = read_progress(journal)
            assert {id_: ended.get(id_) for id_ in before} == before  # what was kept, is kept
            before = ended
        assert begun
        assert len(before) < EPISODES
        summary, wave = finish(url, tmp_path / "run")
    assert wave == plain
    assert (summary["resumed"], summary["restarted"]) == (len(begun), 0)
    assert summary["episodes"] == EPISODES

"""`rollwave evolve` with a learner of several processes: killed and interrupted, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rollwave.actors.report import read_training
from rollwave.cli.main import INTERRUPTED

pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
pytestmark = [
    pytest.mark.learn,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

# So many steps that a process is caught in the midst of them, also on a busy machine.
CONFIG = """
[run]
learner_processes = 2
concurrency = 8
[environment]
id = "maze-grid-v1?size=3&style=terse"
turn_limit = 6
[model.tiny]
width = 32
layers = 2
heads = 1
context = 96
[inference]
backend = "transformers"
batch = 8
[experts]
tasks = 6
[cloning]
max_steps = 300
batch = 4
device = "cpu"
shard = true
checkpoint_every = 5
[rollout]
tasks = 4
attempts = 2
max_tokens = 2
[learner.training]
max_steps = 300
batch = 4
device = "cpu"
checkpoint_every = 5
[evaluate]
dev_tasks = 2
test_tasks = 0
[stop]
waves = 1
"""


def start(folder: Path) -> subprocess.Popen[str]:
    (folder / "campaign.toml").write_text(CONFIG)
    words = ["evolve", str(folder / "campaign.toml"), "--out", str(folder / "run"), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "rollwave", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        # A shell lets what it starts in the background ignore Ctrl-C, and we may be such.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def members(of: int) -> list[int]:
    """The processes of the learner that a campaign's process started."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            said = stat.with_name("cmdline").read_text().split("\0")
        except OSError:
            continue  # it ended meanwhile
        if "rollwave.learners.member" in said and str(of) in said:
            found.append(int(stat.parent.name))
    return found


def wait_until(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    while process.poll() is None and not due():
        time.sleep(0.01)  # another process: there is no virtual clock to wait on


@pytest.mark.timeout(900)
def test_it_goes_on_after_kill_9_and_after_ctrl_c_and_leaves_nobody(tmp_path: Path) -> None:
    models = tmp_path / "run" / "models"

    def saved(name: str) -> Callable[[], bool]:
        return (models / f"{name}.training" / "checkpoint").exists

    process = start(tmp_path)
    try:
        wait_until(process, saved("policy-0000"))
        assert len(members(process.pid)) == 2
    finally:
        process.kill()
        process.communicate(timeout=60)
    limit = time.monotonic() + 30
    while members(process.pid) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not members(process.pid)
    assert not (models / "policy-0000").exists()

    process = start(tmp_path)
    try:
        wait_until(process, saved("policy-0001"))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED, stderr
    assert "Traceback" not in stderr
    assert not members(process.pid)
    assert read_training(str(models / "policy-0000")).metrics["resumed"] >= 5

    process = start(tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["rows"][-1]["wave"] == 1
    trained = read_training(str(models / "policy-0001"))
    assert trained.metrics["resumed"] >= 5
    assert trained.steps == 300

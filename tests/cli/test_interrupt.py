"""Ctrl-C in the middle of a real rollout: it ends, says what was kept, and that is on disk."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rollwave.actors.turnlog import read_progress
from rollwave.cli.main import INTERRUPTED
from rollwave.engine.store import Store

TOO_MANY = 100_000
"""Attempts at five tasks: hours of play, so that the interrupt always comes first."""


@pytest.mark.parametrize("interrupts", [1, 2], ids=["once", "twice"])
def test_ctrl_c_keeps_what_was_finished(tmp_path: Path, interrupts: int) -> None:
    out = tmp_path / "run"
    words = ["rollout", "--env", "maze-v1", "--attempts", str(TOO_MANY), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "rollwave", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and we may be such.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = out / "journal.msgpack"
    try:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 4096):
            time.sleep(0.05)  # another process: there is no virtual clock to wait on
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED, stderr
    assert not stdout
    assert "Traceback" not in stderr
    said = re.search(r"interrupted: ([\d,]+) of ([\d,]+) episodes are kept", stderr)
    assert said, stderr
    with Store.open(out, exclusive=False) as store:
        kept = read_progress(store.journal_path)[0]
    assert len(kept) == int(said[1].replace(",", "")) > 0
    assert not any(trajectory.outcome == "cancelled" for trajectory in kept.values())


def test_an_abandoned_thread_cannot_hold_up_the_end() -> None:
    """A thread inside torch cannot be stopped; the interpreter would wait for it, or abort."""
    code = (
        "import sys, threading\n"
        "from rollwave.cli import main as cli\n"
        "from rollwave.cli.interrupt import keeping\n"
        "def train():\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    with keeping(lambda: 'all kept'):\n"
        "        raise KeyboardInterrupt\n"
        "entry = cli.Entry('x', 'x', lambda app: app.command('doctor')(train))\n"
        "cli.COMMANDS['doctor'] = entry\n"
        "sys.argv = ['rollwave', 'doctor']\n"
        "sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (INTERRUPTED, "")
    assert done.stderr == "rollwave: interrupted: all kept\n"

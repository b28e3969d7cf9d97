"""`rollwave simulate`, and the latencies that `rollwave inspect` measures for it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rollwave.cli.main import INTERRUPTED, main

KEYS = {
    "digest",
    "wall_seconds",
    "cpu_seconds",
    "turns_per_second",
    "batch_fill",
    "efficiency",
    "outcomes",
}
SMALL = ["simulate", "--sessions", "40", "--turns", "3", "--concurrency", "10", "--batch", "4"]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_json_has_its_keys_and_documents_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *SMALL)
    assert set(found) >= KEYS
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text("utf-8")
    section = page.partition("\n## simulate\n")[2].partition("\n## ")[0]
    assert {key for key in found if f"`{key}`" not in section} == set()
    assert found["outcomes"] == {"success": 40}
    assert found["turns"] == 120


def test_the_same_command_gives_the_same_digest(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (answer(capsys, *SMALL, "--seed", "4") for _ in range(2))
    assert first["digest"] == again["digest"]
    assert answer(capsys, *SMALL, "--seed", "5")["digest"] != first["digest"]


def test_a_sweep_compares_replicas_and_says_where_they_stop_to_pay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "plan"
    found = answer(capsys, *SMALL, "--replicas", "1,2,8", "--out", str(out))
    assert [line["replicas"] for line in found["sweep"]] == [1, 2, 8]
    assert found["digest"] == found["sweep"][0]["digest"]
    assert found["worthwhile_replicas"] in (1, 2, 8)
    assert "pay" in found["advice"]
    kept = json.loads((out / "simulation.json").read_text("utf-8"))
    assert kept["digest"] == found["digest"]
    assert kept["timeline"][-1]["seconds"] <= found["wall_seconds"]
    assert (out / "simulation.png").read_bytes().startswith(b"\x89PNG")


def test_people_get_tables_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--step-latency", "shell", "--faults", "one-percent"]) == 0
    said = capsys.readouterr().out
    for words in ("efficiency", "inference", "permits", "injected", "lower bound comes from"):
        assert words in said


def test_what_a_run_measured_is_simulated_at_its_concurrency(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, file = str(tmp_path / "run"), str(tmp_path / "latencies.json")
    words = ["--env", "maze-grid-v1", "--limit", "12", "--policy", "random", "--concurrency", "3"]
    played = answer(capsys, "rollout", *words, "--out", run)
    measured = answer(capsys, "inspect", run, "--latencies", file)
    assert measured["concurrency"] == 3
    assert measured["episodes"] == 12
    assert measured["turns_mean"] == pytest.approx(played["turns"] / 12)
    found = answer(capsys, "simulate", "--latency", file, "--sessions", "50")
    assert found["concurrency"] == 3
    assert found["batch"] == 0
    assert found["batch_fill"] is None
    assert 0 < found["lower_bound_seconds"] <= found["wall_seconds"]
    # The run goes on with another concurrency: that is nobody's setting.
    assert main(["rollout", *words[:-1], "5", "--out", run]) == 0


def test_a_run_without_its_concurrency_is_warned_about(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flat = {"mean": 1.0, "buckets": [[1.0, 1.0, 1]]}
    file = tmp_path / "l.json"
    whole = {"format": "rollwave-latencies", "version": 1, "source": "", "concurrency": 0}
    whole |= {"episodes": 1, "generate": flat, "step": flat, "open": flat, "turns": [[2, 1]]}
    file.write_text(json.dumps(whole), "utf-8")
    assert main(["simulate", "--sessions", "3", "--latency", str(file)]) == 0
    said = capsys.readouterr()
    assert "simulated with 1024" in said.err
    assert re.search(r"\b5\b", said.out)  # 1 s to open, 2 turns of 2 s


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--latency", "lognromal"], "did you mean lognormal"),
        (["--latency", str(Path(__file__))], "is no file of latencies"),
        (["--step-latency", "absent.json"], "neither a file nor a name"),
        (["--replicas", "4,2"], "rising numbers"),
        (["--replicas", "two"], "rising numbers"),
        (["--replicas", "2", "--batch", "0"], "give --batch"),
        (["--faults", "absent.toml"], "absent.toml"),
        (["--turn-seconds", "0"], "turn_seconds"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["simulate", "--sessions", "3", *words]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert not said.out


def test_ctrl_c_leaves_a_simulation(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    words = ["simulate", "--sessions", "200000", "--turns", "50", "--latency", "bench"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rollwave", *words, "--trace", str(trace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while process.poll() is None and not (trace.exists() and trace.stat().st_size):
            time.sleep(0.05)  # another process: there is no virtual clock to wait on
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED, stderr
    assert not stdout
    assert "a simulation keeps nothing" in stderr
    assert "Traceback" not in stderr
    for line in trace.read_text("utf-8").splitlines():
        json.loads(line)

"""What the ladder makes of a campaign's report, and that it runs none twice."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rollwave.actors.config import load_config
from rollwave.benchmarks import ladder
from rollwave.benchmarks.ladder import EXAMPLES, NAMES, climb, main
from rollwave.engine.errors import ConfigError


def report(*rates: float, best: int = 0) -> dict[str, Any]:
    """As `rollwave evolve --json` tells it, with a control arm beside."""

    def row(arm: str, wave: int, rate: float) -> dict[str, Any]:
        test = {"success_rate": rate, "interval": [rate - 0.125, rate + 0.125], "tasks": 200}
        return {
            "arm": arm,
            "wave": wave,
            "steps": 100 + 20 * wave,
            "explored": 600 * wave,
            "test": test,
        }

    rows = [row("evolution", wave, rate) for wave, rate in enumerate(rates)]
    rows.append(row("control", 9, 1.0))
    return {"rows": rows, "best": best, "stopped": "all were run", "figure": "f/success.png"}


class Commands:
    """Stands in for the processes; `dies` after it has begun."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.dies = False
        self.answer = report(0.5, 0.75, 0.625, best=1)

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        self.ran.append(out.name)
        if self.dies:
            raise subprocess.CalledProcessError(130, command)
        shown = "a line of a library\n" + json.dumps(self.answer) + "\n"
        return subprocess.CompletedProcess(command, 0, shown)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(ladder.subprocess, "run", commands.run)
    monkeypatch.setattr(ladder, "commit", lambda: "abc")
    clock = iter(range(0, 60_000, 90))
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: next(clock))
    return commands


def test_before_is_the_first_policy_and_after_the_one_that_dev_chose(
    commands: Commands, tmp_path: Path
) -> None:
    rung = climb(EXAMPLES / "grpo.toml", tmp_path)
    assert (rung.name, rung.algorithm, rung.seconds, rung.commit) == ("grpo", "grpo", 90, "abc")
    assert (rung.before, rung.after, rung.interval) == (50.0, 75.0, (62.5, 87.5))
    assert (rung.best, rung.waves, rung.steps, rung.explored) == (1, 2, 140, 1200)


def test_what_ended_is_not_run_again_and_what_was_cut_short_has_no_time(
    commands: Commands, tmp_path: Path
) -> None:
    file = EXAMPLES / "ppo.toml"
    commands.dies = True
    with pytest.raises(subprocess.CalledProcessError):
        climb(file, tmp_path)
    commands.dies = False
    again = climb(file, tmp_path)
    assert again.seconds is None
    assert climb(file, tmp_path) == again
    assert commands.ran == ["ppo", "ppo"]
    assert "interrupted" in ladder.cells(again)


def test_a_file_that_changed_since_does_not_pass_for_what_was_run(
    commands: Commands, tmp_path: Path
) -> None:
    file = tmp_path / "bc.toml"
    file.write_bytes((EXAMPLES / "bc.toml").read_bytes())
    climb(file, tmp_path / "out")
    file.write_bytes(file.read_bytes() + b"# and more\n")
    with pytest.raises(ConfigError, match=r"has changed since it was run: remove .*bc and "):
        climb(file, tmp_path / "out")


def test_a_file_that_is_no_campaign_is_refused_before_anything_runs(
    commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "none.toml").write_text("[run]\n")
    with pytest.raises(ConfigError, match=r"none\.toml"):
        climb(tmp_path / "none.toml", tmp_path)
    text = (EXAMPLES / "bc.toml").read_text()
    (tmp_path / "untested.toml").write_text(re.sub("test_tasks = .*", "test_tasks = 0", text))
    with pytest.raises(ConfigError, match=r"test_tasks = 0"):
        climb(tmp_path / "untested.toml", tmp_path)
    assert commands.ran == []


def test_the_table_and_the_file_have_all_nine(
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(ladder, "write", lambda path, figures: path.write_text(json.dumps(figures)))
    assert main(["--out", str(tmp_path), "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| scaling_inter | grpo | 1.5 | 140 | 1,200 | 1 of 2 | 50.0 % | 75.0 % |" in shown
    kept = json.loads((tmp_path / "ladder.json").read_text())["examples"]
    assert [one["name"] for one in kept] == list(NAMES)
    assert main(["--out", str(tmp_path), str(EXAMPLES / "bc.toml")]) == 0
    assert "bc" in capsys.readouterr().out
    assert commands.ran == list(NAMES)


def test_cloning_alone_has_no_before(commands: Commands, tmp_path: Path) -> None:
    commands.answer = report(0.5)
    rung = climb(EXAMPLES / "bc.toml", tmp_path)
    assert rung.algorithm == "cloning"
    assert ladder.cells(rung)[5:8] == ["0 of 0", "", "50.0 %"]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_the_ladder_is_a_campaign_on_vllm(name: str) -> None:
    config = load_config(EXAMPLES / f"{name}.toml")
    assert config.inference.backend == "vllm"
    assert config.run.out == f"runs/{name}"
    assert config.evaluate.test_tasks >= 200


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")])
    assert re.search(r"error: cannot read .*none\.toml", capsys.readouterr().err)

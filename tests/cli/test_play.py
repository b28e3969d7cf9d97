"""`rollout` and `evaluate` from the command line: figures, resume, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollwave.cli.main import main
from rollwave.cli.play import choose_tasks
from rollwave.engine.errors import ConfigError
from rollwave.engine.store import Store, read_wave

KEYS = {
    "episodes",
    "outcomes",
    "faults",
    "success_rate",
    "interval",
    "average_reward",
    "average_reward_error",
    "average_reward_scored",
    "turns",
    "turns_mean",
    "format_errors",
    "truncated",
    "seconds",
    "turns_per_second",
    "resumed",
    "restarted",
    "wave",
    "environments",
}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def answer(out: str) -> dict[str, Any]:
    """The last line of standard output is the one JSON object."""
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_the_experts_solve_what_they_are_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--env", "maze-grid-v1", "--tasks", "0:5", "--attempts", 2, "--out", tmp_path / "r")
    code, out, _ = run(capsys, "rollout", *words, "--json")
    figures = answer(out)
    assert code == 0
    assert set(figures) == KEYS
    assert (figures["episodes"], figures["success_rate"]) == (10, 1.0)
    assert figures["outcomes"]["success"] == 10
    assert figures["average_reward"] == 1.0
    assert figures["environments"]["maze-grid-v1"]["tasks"] == 5
    wave = read_wave(figures["wave"])
    assert [t.id for t in wave.trajectories] == [
        f"w0/maze-grid_{task}/{attempt}" for task in range(5) for attempt in range(2)
    ]
    assert figures["turns"] == sum(len(t.turns) for t in wave.trajectories)


def test_a_second_run_over_the_first_reads_it_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("rollout", "--env", "maze-grid-v1", "--limit", 4, "--policy", "random")
    words = (*words, "--out", tmp_path / "r", "--json")
    _, first, _ = run(capsys, *words)
    before = (tmp_path / "r" / "waves" / "wave-0000.parquet").read_bytes()
    _, second, _ = run(capsys, *words)
    assert (tmp_path / "r" / "waves" / "wave-0000.parquet").read_bytes() == before
    different = {"seconds", "turns_per_second"}
    kept = [{k: v for k, v in answer(o).items() if k not in different} for o in (first, second)]
    assert kept[0] == kept[1]


def test_the_same_seed_gives_the_same_episodes_at_any_concurrency(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen = []
    for concurrency in (1, 16):
        out = tmp_path / f"c{concurrency}"
        words = ("--env", "maze-v1,textcraft-v1", "--limit", 4, "--policy", "random")
        run(capsys, "rollout", *words, "--concurrency", concurrency, "--seed", 5, "--out", out)
        wave = read_wave(out / "waves" / "wave-0000.parquet")
        seen.append([(t.id, t.env, [turn.action for turn in t.turns]) for t in wave.trajectories])
    assert seen[0] == seen[1]
    assert {env for _, env, _ in seen[0]} == {"maze-v1", "textcraft-v1"}


def test_evaluate_shows_a_table_by_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--env", "maze-grid-v1,textcraft", "--limit", 3, "--out", tmp_path / "r")
    code, out, err = run(capsys, "evaluate", *words)
    assert code == 0
    assert "maze-grid-v1" in out
    assert "textcraft-v1" in out
    assert "100.0%" in out
    assert "format errors" in out
    assert err == ""


def test_evaluate_with_attempts_names_the_oracle(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--env", "maze-grid-v1?size=3", "--limit", 6, "--policy", "random", "--attempts", 4)
    options = ("--seed", 3, "--out", tmp_path / "r")
    code, out, _ = run(capsys, "evaluate", *words, *options)
    assert code == 0
    assert "best of 4" in out
    assert "oracle upper bound" in out
    code, out, _ = run(capsys, "evaluate", *words, *options, "--json")
    found = json.loads(out)
    best = found["best_of"]
    assert (best["label"], best["attempts"], best["tasks"]) == ("oracle upper bound", 4, 6)
    assert list(best["pass_at"]) == ["1", "2", "4"]
    assert best["pass_at"]["1"] == pytest.approx(found["success_rate"])
    assert best["pass_at"]["1"] < best["pass_at"]["4"] <= 1
    assert best["likeliest"] is None  # a random policy has no log-probs
    code, out, _ = run(capsys, "rollout", *words, "--out", tmp_path / "other", "--json")
    assert "best_of" not in json.loads(out)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--env", "maze-gird-v1"], "maze-grid-v1"),
        (["--env", "maze-v1", "--tasks", "0:1", "--split", "dev"], "--tasks"),
        (["--env", "maze-v1", "--tasks", "two"], "two"),
        (["--env", "maze-v1", "--tasks", "4:4"], "4:4"),
        (["--env", "maze-v1", "--tasks", "9999"], "9999"),
        (["--env", "maze-v1", "--split", "holdout"], "holdout"),
        (["--env", "maze-v1", "--policy", "no/such/model"], "no/such/model"),
        (["--env", "maze-v1", "--backend", "tpu"], "tpu"),
        (["--env", ","], "no task"),
        (["--env", "maze-v1", "--turn-seconds", "0"], "turn_seconds"),
    ],
)
def test_what_cannot_be_played_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], culprit: str
) -> None:
    code, out, err = run(capsys, "rollout", *words, "--out", tmp_path / "r")
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert culprit in err
    assert "Traceback" not in err


def test_other_settings_over_a_run_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("rollout", "--env", "maze-grid-v1", "--out", tmp_path / "r")
    run(capsys, *words, "--limit", 2)
    code, _, err = run(capsys, *words, "--limit", 2, "--seed", 1)
    assert code == 2
    assert "seed" in err


def test_a_directory_of_somebody_else_is_not_littered(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    code, _, err = run(capsys, "rollout", "--env", "maze-v1", "--out", tmp_path)
    assert code == 2
    assert "thesis.tex" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_runs_in_one_directory_at_once_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Store.open(tmp_path / "r"):
        code, _, err = run(
            capsys, "rollout", "--env", "maze-v1", "--limit", 1, "--out", tmp_path / "r"
        )
    assert code == 2
    assert str(tmp_path / "r") in err


def test_tasks_by_number_may_be_mixed() -> None:
    tasks = choose_tasks("maze-grid-v1", "3,7,10:12", None, None)
    assert [task.index for task in tasks] == [3, 7, 10, 11]
    with pytest.raises(ConfigError, match="not both"):
        choose_tasks("maze-grid-v1", "3", "dev", None)

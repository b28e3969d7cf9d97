"""`rollwave replay`: one JSON object with stable keys, a table for people, errors in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollwave.cli.main import main

KEYS = [
    *("source", "trajectories", "trajectories_equal", "observations", "observations_equal"),
    *("observations_reworded", "rewards", "rewards_equal", "skipped", "kinds", "differences"),
]
FIRST = "Crafting commands:\ncraft 1 stick using 2 bamboo\n\nGoal: craft stick."


def write(path: Path, answer: str) -> Path:
    texts = [
        *(("human", None, "rules"), ("gpt", False, "OK."), ("human", None, FIRST)),
        *(("gpt", True, "Action: get 2 bamboo"), ("human", None, answer)),
        ("gpt", True, "Action: craft 1 stick using 2 bamboo"),
    ]
    turns = [{"from": who, "loss": loss, "value": text} for who, loss, text in texts]
    file = path / "episode.json"
    file.write_text(json.dumps([{"item_id": "textcraft_0", "conversations": turns}]))
    return file


def test_json_is_the_last_line_and_has_stable_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(write(tmp_path, "Got 3 bamboo")), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(answer) == KEYS
    assert (answer["trajectories"], answer["observations"]) == (1, 2)
    assert (answer["observations_equal"], answer["rewards_equal"]) == (1, 1)
    assert answer["kinds"] == {"observation": 1}
    assert answer["differences"] == [
        {
            "kind": "observation",
            "item": "textcraft_0",
            "turn": 1,
            "expected": "Got 3 bamboo",
            "got": "Got 2 bamboo",
        }
    ]


def test_people_see_counts_and_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(write(tmp_path, "Got [red]3[/red] bamboo"))]) == 0
    shown = capsys.readouterr().out
    assert "50.00 %" in shown
    assert "Got [red]3[/red] bamboo" in shown
    assert main(["replay", str(write(tmp_path, "Got 2 bamboo"))]) == 0
    assert "recorded" not in capsys.readouterr().out


def test_hidden_differences_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(write(tmp_path, "Got 3 bamboo")), "--limit", "0"]) == 0
    captured = capsys.readouterr()
    assert "1 more; show them with --limit" in captured.err
    assert "Got 3 bamboo" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json"], "cannot read none.json"),
        (["episode.json", "--env", "textcart"], "did you mean textcraft-v1?"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write(tmp_path, "Got 2 bamboo")
    monkeypatch.chdir(tmp_path)
    assert main(["replay", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1

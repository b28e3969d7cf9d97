"""`rollwave data`: files go in and out, what is lost is said, pairs are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rollwave.cli.main import main
from rollwave.engine.store import Store
from rollwave.engine.trajectory import ChatMessage, Outcome, Trajectory, Turn
from rollwave.learners.exchange.preferences import read_preferences

RULES = (ChatMessage("user", "rules"), ChatMessage("assistant", "OK", False))


def own(task: int, words: str, reward: float, *, attempt: int = 0, **fields: Any) -> Trajectory:
    wave = 0 if fields.get("policy") == "expert" else 1
    acts = words.split()
    base = Trajectory(
        id=f"w{wave}/maze_{task}/{attempt}",
        env="maze-v1",
        task_id=f"maze_{task}",
        split="train",
        wave=wave,
        attempt=attempt,
        seed=3,
        outcome=Outcome.SUCCESS if reward >= 1 else Outcome.FAILURE,
        reward=reward,
        terminated=True,
        prompt=RULES,
        turns=tuple(
            Turn(f"at {task}" if n == 0 else f"after {n}", f"Action:\n{word}", word, 0.0)
            for n, word in enumerate(acts)
        ),
        final_observation="end",
        policy="model",
    )
    return msgspec.structs.replace(base, **fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    with Store.open(path) as store:
        store.seal(0, 0, [own(n, "up up", 1.0, policy="expert") for n in range(3)])
        explored = [
            own(0, "up down", 0.0),
            own(1, "up up", 1.0),
            own(2, "left up", 0.5, attempt=0),
            own(2, "up left up", 0.2, attempt=1),
            own(7, "up", 1.0),
        ]
        store.seal(1, 1, explored)
    return path


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    assert main(["data", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["data", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_there_and_back(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, file in (("agenttraj", "a.json.gz"), ("sharegpt", "s.json"), ("trl", "t.jsonl")):
        there = answer(capsys, "convert", run, tmp_path / file, "--to", form)
        assert (there["read"], there["written"], there["left_out"]) == (8, 8, {})
        assert there["lost"]["seed"] == 8
        assert ("dataset_info" in there) == (form == "sharegpt")
        back = answer(
            capsys, "convert", tmp_path / file, tmp_path / form, "--to", "store", "--env", "maze"
        )
        assert (back["written"], back["lost"]) == (8, {})
        for source in (run, tmp_path / form):
            (found,) = answer(capsys, "stats", source)["environments"]
            assert (found["env"], found["trajectories"], found["tasks"]) == ("maze-v1", 8, 4)
            assert found["outcomes"]["success"] == 5
            assert found["turns"] == 16
        shown = answer(capsys, "show", tmp_path / form, "--id", "maze_7")["trajectories"]
        assert shown[0]["actions"] == ["up"]


def test_only_successes_and_only_so_many(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    found = answer(capsys, "convert", run, out, "--to", "agenttraj", "--successes")
    assert (found["written"], found["left_out"]) == (5, {"no_success": 3})
    assert "exists" in refusal(capsys, "convert", run, out, "--to", "agenttraj")
    words = ("convert", run, out, "--to", "agenttraj", "--overwrite", "--limit", "2")
    assert answer(capsys, *words)["written"] == 2


def test_what_is_not_said_is_taken_for_granted_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]))
    words = ("convert", tmp_path / "t.jsonl", tmp_path / "run", "--to", "store", "--reward", "0.5")
    found = answer(capsys, *words, "--split", "dev", "--from", "trl")
    assert found["assumed"] == {"reward": 1, "split": 1}
    (shown,) = answer(capsys, "show", tmp_path / "run")["trajectories"]
    assert (shown["reward"], shown["split"], shown["outcome"]) == (0.5, "dev", "failure")
    assert (shown["env"], shown["actions"]) == ("unknown", [""])


def test_tables_for_people(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", str(run), str(tmp_path / "a.json"), "--to", "agenttraj"]) == 0
    assert main(["data", "stats", str(run)]) == 0
    assert main(["data", "show", str(run), "--number", "3"]) == 0
    shown = capsys.readouterr().out
    for words in ("8 of 8 trajectories", "not carried by agenttraj", "turns.action", "maze-v1"):
        assert words in shown
    for line in ("none assistant    OK", "loss assistant    Action:", "     user         at 0"):
        assert line in shown


def test_show_takes_numbers_and_ids(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = answer(capsys, "show", run, "--number", "6", "--limit", "5")["trajectories"]
    assert [t["number"] for t in several] == [6, 7]
    (one,) = answer(capsys, "show", run, "--id", "w1/maze_2/1")["trajectories"]
    assert (one["reward"], [m["loss"] for m in one["messages"]][:4]) == (
        0.2,
        [None, False, None, True],
    )
    assert "has no trajectory 'x'" in refusal(capsys, "show", run, "--id", "x")
    assert "has no trajectory number 99" in refusal(capsys, "show", run, "--number", "99")


def test_pairs_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.jsonl"
    found = answer(capsys, "pairs", run, out)
    assert (found["experts"], found["explored"]) == (3, 5)
    assert (found["pairs"], found["written"]) == (3, 3)
    assert found["verdicts"] == {"win": 0, "tie": 1, "lose": 3}
    assert found["dropped"] == {"no_expert": 1}
    first = next(read_preferences(out))
    assert [m.text for m in first.prompt] == ["rules", "OK", "at 0"]
    assert [m.text for m in first.chosen] == ["Action:\nup", "after 1", "Action:\nup"]
    assert (first.score_chosen, first.score_rejected) == (1.0, 0.0)
    assert main(["data", "pairs", str(run), str(tmp_path / "q.parquet")]) == 0
    assert list(read_preferences(tmp_path / "q.parquet")) == list(read_preferences(out))
    assert "lose" in capsys.readouterr().out


def test_pairs_by_other_rules(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pairs", run, tmp_path / "b.json", "--rule", "best-worst", "--gap", "0.1")
    found = answer(capsys, *words, "--per-task", "1")
    assert (found["pairs"], found["verdicts"]) == (1, {})
    found = answer(capsys, "pairs", run, tmp_path / "two.json", "--rule", "two-samples")
    assert found["pairs"] == 1
    cut = answer(capsys, "pairs", run, tmp_path / "c.json", "--max-extra-turns", "0")
    assert cut["metrics"]["rejected_turns"] == 2
    few = answer(capsys, "pairs", run, tmp_path / "d.json", "--threshold", "2")
    assert (few["pairs"], few["dropped"]["low_reward"]) == (0, 3)


def test_pairs_against_experts_of_another_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "convert", run, tmp_path / "a.json", "--to", "agenttraj", "--successes")
    words = (
        "pairs",
        run,
        tmp_path / "p.json",
        "--experts",
        tmp_path / "a.json",
        "--env",
        "maze-v1",
    )
    assert answer(capsys, *words)["pairs"] == 3
    bare = tmp_path / "bare"
    with Store.open(bare) as store:
        store.seal(1, 1, [own(0, "up", 0.0)])
    assert "give --experts" in refusal(capsys, "pairs", bare, tmp_path / "n.json")


def test_llama_factory_has_rows_for_single_turns_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pairs", run, tmp_path / "p.json", "--to", "sharegpt")
    found = answer(capsys, *words)
    assert (found["written"], found["left_out"]) == (0, {"more_than_one_turn": 3})
    branches = tmp_path / "branches"
    with Store.open(branches) as store:
        store.seal(0, 0, [own(0, "up up", 1.0, policy="expert")])
        store.seal(1, 1, [own(0, "up down", 0.0, attempt=2)])
    out = tmp_path / "turns.json"
    found = answer(capsys, "pairs", branches, out, "--rule", "turns", "--to", "sharegpt")
    assert found["written"] == 1
    (row,) = json.loads(out.read_text())
    assert [m["from"] for m in row["conversations"]] == ["human", "gpt", "human", "gpt", "human"]
    assert (row["chosen"]["value"], row["rejected"]["value"]) == ("Action:\nup", "Action:\ndown")


def test_errors_say_what_to_do(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    for words, said in (
        (("convert", run, out, "--to", "csv"), "there are: agenttraj"),
        (("convert", run, tmp_path / "x.csv", "--to", "trl"), "ends in .jsonl"),
        (("convert", run, run, "--to", "store"), "choose another name"),
        (("convert", tmp_path / "none.json", out, "--to", "trl"), "No such file"),
        (("stats", run, "--env", "mazze"), "did you mean"),
        (("pairs", run, out, "--to", "csv"), "trl or sharegpt"),
        (("pairs", run, tmp_path / "x.txt"), "end in .jsonl"),
    ):
        assert said in refusal(capsys, *words)
    assert not out.exists()

"""Files of others: published ones are read whole, others' shapes too, bad ones name the place."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.engine.agenttraj import read_trajectories
from rollwave.engine.errors import (
    BadDataFile,
    ConfigError,
    MissingDependency,
    NotARun,
    StorageFailed,
    StoreError,
)
from rollwave.engine.trajectory import ChatMessage, Outcome
from rollwave.learners.exchange import FORMATS, Reading, Tally, detect, find_format, read
from rollwave.learners.exchange import files as files_module

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "data" / "agenttraj"


def item(number: int = 1, **changes: Any) -> dict[str, Any]:
    conversation = [
        {"from": "human", "loss": None, "value": "rules"},
        {"from": "gpt", "loss": False, "value": "OK"},
        {"from": "human", "loss": None, "value": "a"},
        {"from": "gpt", "loss": True, "value": "up"},
        {"from": "human", "loss": None, "value": "b"},
        {"from": "gpt", "loss": True, "value": "down"},
    ]
    return {"item_id": f"maze_{number}", "conversations": conversation} | changes


def write(path: Path, rows: Any) -> Path:
    path.write_text(
        "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    )
    return path


@pytest.mark.parametrize("name", ["maze", "textcraft", "wordle", "webshop", "sqlgym"])
def test_published_files_pass_through_every_format_word_for_word(name: str, tmp_path: Path) -> None:
    source = PUBLISHED / f"{name}.json.gz"
    if not source.exists():
        pytest.skip(f"the published trajectories are not at {source}")
    tally = Tally()
    given = list(read(source, tally=tally))
    assert tally.read == len(given) == len(read_trajectories(source))
    assert tally.assumed == {"reward": len(given), "split": len(given)}
    assert all(t.outcome is Outcome.SUCCESS and t.reward == 1 for t in given)
    flags = Counter(m.loss for t in given for m in t.conversation() if m.role == "assistant")
    raw = json.loads(gzip.decompress(source.read_bytes()))
    said = Counter(m["loss"] for i in raw for m in i["conversations"] if m["from"] == "gpt")
    assert flags == said
    for form, file in (
        ("agenttraj", "a.json.gz"),
        ("openmanus", "o.parquet"),
        ("sharegpt", "s.json"),
    ):
        tally = Tally()
        find_format(form).write(tmp_path / file, given, tally)
        assert (tally.written, tally.left_out, tally.lost) == (len(given), {}, {})
        assert list(read(tmp_path / file)) == given
    texts = json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes()))
    assert [{k: i[k] for k in ("item_id", "conversations")} for i in texts] == raw


def test_openmanus_has_the_columns_of_its_trainer(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", [item()])
    find_format("openmanus").write(tmp_path / "o.parquet", read(source), Tally())
    (row,) = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert list(row)[:7] == [
        "data_source",
        "item_id",
        "conversations",
        "prompt",
        "ability",
        "reward_model",
        "extra_info",
    ]
    assert row["conversations"] == item()["conversations"]
    assert [m["content"] for m in row["prompt"]] == ["rules", "OK", "a"]
    assert json.loads(row["reward_model"]["ground_truth"]) == item()["conversations"]
    assert (row["ability"], row["data_source"]) == ("agent-reasoning", "maze")


def test_openmanus_files_as_published_are_read(tmp_path: Path) -> None:
    row = item() | {
        "data_source": "maze",
        "prompt": [{"role": "user", "content": "instructions"}],
        "ability": "agent-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"environment": "maze", "task_id": "1"}},
        "extra_info": {"index": 0, "split": "maze"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "val.parquet")
    (found,) = read(tmp_path / "val.parquet", reading=Reading(split="val"))
    assert (found.env, found.task_id, found.split, len(found.turns)) == ("maze", "maze_1", "val", 2)


def test_llama_factory_and_trl_files_of_others_are_read(tmp_path: Path) -> None:
    talk = [("human", "hi"), ("gpt", "yes?"), ("observation", "a"), ("function_call", "up")]
    rows = [{"conversations": [{"from": f, "value": v} for f, v in talk], "system": "be"}]
    (found,) = read(write(tmp_path / "s.json", rows))
    assert [(t.observation, t.completion) for t in found.turns] == [("hi", "yes?"), ("a", "up")]
    assert (found.prompt, found.task_id) == ((ChatMessage("system", "be"),), "record_0")
    talk = [("system", "be"), ("user", "a"), ("assistant", "up")]
    rows = [{"messages": [{"role": r, "content": c} for r, c in talk]}] * 2
    first, second = read(write(tmp_path / "t.jsonl", rows))
    assert first.conversation() == second.conversation()
    assert (first.id, second.id) == ("w0/record_0/0", "w0/record_1/0")


def test_trl_puts_the_loss_where_it_belongs(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", [item()])
    find_format("trl").write(tmp_path / "t.jsonl", read(source), Tally())
    row = json.loads((tmp_path / "t.jsonl").read_text())
    assert [m["content"] for m in row["prompt"]] == ["rules", "OK", "a"]
    assert [m["role"] for m in row["completion"]] == ["assistant", "user", "assistant"]


def test_datasets_of_other_columns_and_splits_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    parts = {name: datasets.Dataset.from_list([item(n)]) for n, name in enumerate(("train", "dev"))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert detect(tmp_path / "d").name == "datasets"
    found = list(read(tmp_path / "d"))
    assert [(t.task_id, t.split) for t in found] == [("maze_0", "train"), ("maze_1", "dev")]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"rollwave\[datasets\]"):
        find_format("datasets").write(tmp_path / "d", [], Tally())


def test_a_record_says_how_it_ended(tmp_path: Path) -> None:
    rows = [
        item(0, reward=0.4, success=0),
        item(1, reward=1, success=True),
        item(2, success=False),
        item(3, reward=0.5),
        item(4, conversations=None),
    ]
    tally = Tally()
    found = list(read(write(tmp_path / "a.json", rows), tally=tally))
    assert [(t.reward, t.outcome.value) for t in found] == [
        (0.4, "failure"),
        (1.0, "success"),
        (0.0, "failure"),
        (0.5, "failure"),
    ]
    assert [turn.reward for turn in found[0].turns] == [0.0, 0.4]
    assert (tally.read, tally.left_out) == (5, {"no_conversation": 1})


def test_a_given_environment_names_the_tasks(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", [item(7) | {"item_id": "lmrlgym_maze_007"}])
    (found,) = read(source, reading=Reading(env="maze-v1?x=1"))
    assert (found.env, found.task_id, found.id) == ("maze-v1?x=1", "maze_7", "w0/maze_7/0")


# --- bad input ------------------------------------------------------------------------------


def chat(**changes: Any) -> dict[str, Any]:
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": []}
    row["completion"] = [{"role": "assistant", "content": "up"}]
    return row | changes


BAD: dict[str, tuple[str, Any, str]] = {
    "text is a number": (
        "a.json",
        [item(), item(conversations=[{"from": "human", "value": 3}])],
        r"item 1 .*agenttraj.*str.*int.*\$\.conversations\[0\]\.value",
    ),
    "reward is text": ("a.jsonl", [item(reward="high")], r"item 0 .*\$\.reward"),
    "a stranger": (
        "a.json",
        [item(), item(2, conversations=[{"from": "robot", "value": "x"}])],
        r"item 1 \(maze_2\).*message 0 is from 'robot'",
    ),
    "no turn": ("s.json", [{"conversations": [{"from": "human", "value": "x"}]}], "take turns"),
    "prompt is text": ("t.jsonl", [chat(prompt="a")], r"item 0 .*trl.*array.*str.*\$\.prompt"),
    "unknown role": (
        "t.jsonl",
        [chat(), chat(prompt=[{"role": "tool", "content": "a"}])],
        r"item 1 .*'tool'.*\$\.prompt\[0\]\.role",
    ),
    "nothing to answer": (
        "t.jsonl",
        [chat(prompt=[{"role": "system", "content": "a"}])],
        "item 0: the prompt ends with system",
    ),
    "outcome unknown": ("t.jsonl", [chat(outcome="fault")], r"item 0 .*\$\.outcome"),
    "pairs": ("t.jsonl", [chat(chosen=[], rejected=[])], "preference pairs"),
    "columns of nothing": ("t.jsonl", [{"text": "x"}], "the columns text"),
    "no records": ("t.jsonl", [], "no records"),
    "no object": ("t.jsonl", ["text"], "item 0 is not a record"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_input_is_one_error_with_file_item_and_field(name: str, tmp_path: Path) -> None:
    file, rows, words = BAD[name]
    path = write(tmp_path / file, rows)
    with pytest.raises(BadDataFile, match=rf"(?s){file}.*{words}|{file}.*{words}"):
        list(read(path))


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    row = item() | {"data_source": "maze", "reward": 1.0}
    rows = [row, row | {"reward": float("nan")}, row | {"item_id": None}]
    for count, words in ((2, "item 1: reward is nan"), (3, r"item 2 .*openmanus.*\$\.item_id")):
        picked = [rows[0], *rows[count - 1 : count]] if count == 2 else [rows[0], rows[0], rows[2]]
        pq.write_table(pa.Table.from_pylist(picked), tmp_path / "o.parquet")
        with pytest.raises(BadDataFile, match=words):
            list(read(tmp_path / "o.parquet"))
    data = (tmp_path / "o.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadDataFile, match=r"cut\.parquet is not a whole Parquet file"):
        list(read(tmp_path / "cut.parquet"))
    with pytest.raises(BadDataFile, match=r"cannot read .*none.parquet: No such file"):
        list(read(tmp_path / "none.parquet"))


def test_directories_that_are_neither_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataFile, match="neither a run directory"):
        list(read(tmp_path))
    with pytest.raises(NotARun):
        list(read(tmp_path, "store"))
    pytest.importorskip("datasets", reason="needs datasets")
    with pytest.raises(BadDataFile, match="save_to_disk"):
        list(read(tmp_path, "datasets"))
    with pytest.raises(ConfigError, match="no data format 'csv'; there are: agenttraj"):
        list(read(tmp_path, "csv"))


def test_a_path_that_readers_would_not_know_is_refused(tmp_path: Path) -> None:
    for name, file in (("openmanus", "o.json"), ("agenttraj", "a.txt"), ("trl", "t.parquet.gz")):
        with pytest.raises(ConfigError, match=f"format {name} ends in"):
            find_format(name).write(tmp_path / file, [], Tally())


@pytest.mark.parametrize("name", list(FORMATS))
def test_what_fails_on_the_way_leaves_nothing(name: str, tmp_path: Path) -> None:
    if name == "datasets":
        pytest.importorskip("datasets", reason="needs datasets")
    form = find_format(name)
    source = write(tmp_path / "a.json", [item(), item(conversations=[{"from": "x", "value": ""}])])
    before = set(tmp_path.iterdir())
    with pytest.raises(BadDataFile):
        form.write(tmp_path / f"out{(form.suffixes or ('',))[0]}", read(source), Tally())
    assert set(tmp_path.iterdir()) == before


def test_a_refusing_disk_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, file in (("agenttraj", "a.json"), ("store", "run")):
        source = read(write(tmp_path / "a.json", [item()]))
        with pytest.raises((StorageFailed, StoreError)):
            find_format(name).write(tmp_path / "file" / file, source, Tally())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(max_size=80),
    name=st.sampled_from(["agenttraj", "openmanus", "sharegpt", "trl"]),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet", ".json.gz"]),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, name: str, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(data)
    try:
        list(read(path, name))
    except BadDataFile as error:
        assert str(path) in str(error)  # noqa: PT017 (either way is right)


def test_records_are_there_before_the_last_is_read(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text(json.dumps(item()) + "\n" + "{broken")
    rows = read(path, "agenttraj")
    assert next(rows).task_id == "maze_1"
    with pytest.raises(BadDataFile, match="item 1"):
        next(rows)


def test_no_more_than_a_batch_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "ROWS", 2)
    path = write(tmp_path / "a.json", [item(n) for n in range(5)])
    tally = Tally()
    batches = files_module.batches(read(path, tally=tally))
    assert [(len(batch), tally.read) for batch in batches] == [(2, 2), (2, 4), (1, 5)]
    find_format("trl").write(tmp_path / "t.parquet", read(path), Tally())
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3
    assert [t.task_id for t in read(tmp_path / "t.parquet")] == [f"maze_{n}" for n in range(5)]

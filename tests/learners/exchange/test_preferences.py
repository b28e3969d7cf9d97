"""Pairs in the files of other trainers: what is written is read back, or left out by a reason."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import BadDataFile
from rollwave.engine.trajectory import ChatMessage, Outcome, Trajectory, Turn
from rollwave.learners.exchange import Tally
from rollwave.learners.exchange.preferences import (
    preference,
    read_preferences,
    write_preferences,
)
from rollwave.learners.preferences.pairs import Pair

PROMPTS = (
    (),
    (ChatMessage("system", "s"),),
    (ChatMessage("user", "r"), ChatMessage("assistant", "OK", False)),
)
TEXT = st.text(max_size=6)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """A pair of episodes, or of turns behind the same ones."""
    prompt = draw(st.sampled_from(PROMPTS))
    shared = draw(st.lists(st.tuples(TEXT, TEXT), max_size=2)) if draw(st.booleans()) else None
    seen = draw(TEXT)

    def side(reward: float) -> Trajectory:
        own = [(seen, draw(TEXT))]
        if shared is None:
            own += draw(st.lists(st.tuples(TEXT, TEXT), max_size=2))
        turns = tuple(Turn(o, c, c, 0.0) for o, c in [*(shared or []), *own])
        return Trajectory(
            id="w0/a_1/0",
            env="a-v1",
            task_id="a_1",
            split="train",
            wave=0,
            attempt=0,
            seed=0,
            outcome=Outcome.FAILURE,
            reward=reward,
            prompt=prompt,
            turns=turns,
            final_observation="",
        )

    return Pair(side(1.0), side(0.25), None if shared is None else len(shared))


@pytest.mark.parametrize(
    ("form", "file"), [("trl", "p.jsonl"), ("trl", "p.parquet"), ("sharegpt", "p.json.gz")]
)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_what_is_written_is_read_back(form: str, file: str, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(pairs(), min_size=1, max_size=4))
    fitting = [
        pair
        for pair in map(preference, drawn)
        if form == "trl" or len(pair.chosen) == len(pair.rejected) == 1
    ]
    with TemporaryDirectory() as folder:
        path, tally = Path(folder) / file, Tally()
        write_preferences(path, drawn, form, tally)
        assert (tally.read, tally.written) == (len(drawn), len(fitting))
        if fitting:
            assert list(read_preferences(path)) == fitting
        assert tally.left_out.get("more_than_one_turn", 0) == len(drawn) - len(fitting)


def test_both_sides_answer_to_the_end_of_the_prompt(make: SimpleNamespace) -> None:
    found = preference(Pair(make.expert(3, "up right"), make.expert(3, "down")))
    assert [m.role for m in found.prompt] == ["user"]
    assert [m.text for m in found.chosen] == ["up", "at 3 1 door", "right"]
    step = preference(Pair(make.expert(3, "up right"), make.expert(3, "up left"), 1))
    assert [m.text for m in step.prompt] == ["at 3 0 door", "up", "at 3 1 door"]
    assert [m.loss for m in (*step.prompt, *step.chosen)] == [None, False, None, True]
    assert ([m.text for m in step.chosen], [m.text for m in step.rejected]) == (["right"], ["left"])


def test_a_last_observation_is_no_part_of_a_side(make: SimpleNamespace) -> None:
    end = make.expert(3, "up", final_observation="won")
    found = preference(Pair(end, make.expert(3, "down", final_observation="lost", reward=0.0)))
    assert (len(found.chosen), len(found.rejected), found.score_rejected) == (1, 1, 0.0)


def test_other_rules_make_no_pair(make: SimpleNamespace, tmp_path: Path) -> None:
    one, other = make.expert(3), make.expert(3, "down", prompt=PROMPTS[2])
    tally = Tally()
    write_preferences(tmp_path / "p.jsonl", [Pair(one, other)], "trl", tally)
    assert (tally.written, tally.left_out) == (0, {"other_prompt": 1})
    double = msgspec.structs.replace(one, prompt=(ChatMessage("user", "r"),))
    write_preferences(tmp_path / "p.json", [Pair(double, double, 1)], "sharegpt", tally)
    assert tally.left_out["no_turn_taking"] == 1


def _row(**changes: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "a"}]
    return {"prompt": said, "chosen": said, "rejected": said} | changes


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (_row(chosen="text"), r"item 0 .*\$\.chosen"),
        (_row(rejected=[]), "item 0: a pair with one empty side"),
        ({"prompt": [], "completion": []}, "no columns chosen and rejected"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, r"item 0 .*\$\.chosen"),
    ],
)
def test_bad_pairs_are_named(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(BadDataFile, match=rf"p\.jsonl.*{words}"):
        list(read_preferences(path))


def test_rows_of_others_get_the_usual_scores(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(_row()))
    (found,) = read_preferences(path)
    assert (found.score_chosen, found.score_rejected, found.task_id) == (1.0, 0.0, "record_0")

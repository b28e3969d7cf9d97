"""What goes through a format comes back, as far as the format carries it; the rest is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.strategies import trajectories
from rollwave.engine.trajectory import ChatMessage, Outcome, Trajectory, Turn
from rollwave.learners.exchange import FORMATS, Reading, Tally, detect, find_format, read
from rollwave.learners.exchange.comparison import lost

TEXT = {"seed", "environment_seed", "truncation", "token_ids", "loss_mask", "logprobs"}
TEXT |= {"versions", "temperature", "started", "seconds", "terminated"}
TURNS = {f"turns.{n}" for n in Turn.__struct_fields__ if n not in {"observation", "completion"}}
MISSING = {
    "agenttraj": TEXT | TURNS | {"id", "env", "split", "wave", "attempt", "outcome", "policy"},
    "openmanus": TEXT | TURNS | {"id", "env", "split", "wave", "attempt", "outcome", "policy"},
    "sharegpt": TEXT | TURNS | {"prompt.loss"},
    "trl": TEXT | TURNS | {"prompt.loss"},
    "datasets": set(),
    "store": set(),
}
"""What each format may lose; docs/data.md says the same."""

NAMES = [
    ("agenttraj", "a.json"),
    ("agenttraj", "a.jsonl"),
    ("agenttraj", "a.json.gz"),
    ("openmanus", "o.parquet"),
    ("sharegpt", "s.json"),
    ("sharegpt", "s.jsonl"),
    ("trl", "t.jsonl"),
    ("trl", "t.parquet"),
    ("datasets", "d"),
    ("store", "r"),
]
PROMPTS = (
    (),
    (ChatMessage("system", "play"),),
    (ChatMessage("user", "rules"), ChatMessage("assistant", "OK", False)),
    (ChatMessage("system", "s"), ChatMessage("user", "r"), ChatMessage("assistant", "OK", False)),
)


@st.composite
def usual(draw: st.DrawFn) -> Trajectory:
    """A trajectory of a kind that campaigns make: every format has a record of it."""
    drawn = draw(trajectories(outcomes=(Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED)))
    task = f"maze-grid_{draw(st.integers(0, 99))}"
    return msgspec.structs.replace(
        drawn,
        id=f"w{drawn.wave}/{task}/{drawn.attempt}",
        env=draw(st.sampled_from(["maze-grid-v1", "maze-grid-v1?size=7", "textcraft-v1"])),
        task_id=task,
        prompt=draw(st.sampled_from(PROMPTS)),
        turns=drawn.turns or (Turn("see", "do", "do", 1.0),),
    )


def through(name: str, file: str, given: list[Trajectory]) -> tuple[list[Trajectory], Tally]:
    with TemporaryDirectory() as folder:
        path, tally = Path(folder) / file, Tally()
        find_format(name).write(path, iter(given), tally)
        assert [p.name for p in Path(folder).iterdir()] == [file]
        if tally.written:
            assert detect(path).name == name
        return list(read(path, name)), tally


@pytest.mark.parametrize(("name", "file"), NAMES, ids=[file for _, file in NAMES])
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_store_to_format_to_store_keeps_what_the_format_carries(
    name: str, file: str, data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(usual(), min_size=1, max_size=4, unique_by=lambda t: t.id))
    given = sorted(drawn, key=lambda t: t.wave)  # as a store keeps them
    back, tally = through(name, file, given)
    assert tally.written == len(back) == len(given)
    assert not tally.left_out
    counted = Counter(
        what for before, after in zip(given, back, strict=True) for what in lost(before, after)
    )
    assert tally.lost == counted
    assert set(counted) <= MISSING[name]
    for before, after in zip(given, back, strict=True):
        assert after.conversation() == before.conversation()
        assert (after.prompt, after.reward, after.task_id) == (
            before.prompt,
            before.reward,
            before.task_id,
        )
        assert after.success == before.success
        after.check()


@pytest.mark.parametrize(("name", "file"), NAMES, ids=[file for _, file in NAMES])
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_trajectory_is_carried_or_left_out_under_a_reason(
    name: str, file: str, data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(trajectories(), min_size=1, max_size=4))
    given = sorted(drawn, key=lambda t: t.wave)
    back, tally = through(name, file, given)
    assert tally.written == len(back)
    assert tally.written + tally.left_out.total() == len(given)
    if not MISSING[name]:
        assert back == given
    assert set(tally.lost) <= MISSING[name]


def own(**changes: object) -> Trajectory:
    base = Trajectory(
        id="w0/maze_3/0",
        env="maze-v1",
        task_id="maze_3",
        split="train",
        wave=0,
        attempt=0,
        seed=0,
        outcome=Outcome.SUCCESS,
        reward=1.0,
        terminated=True,
        prompt=PROMPTS[2],
        turns=(Turn("a", "up", "", 0.0), Turn("b", "down", "", 1.0)),
        final_observation="won",
    )
    return msgspec.structs.replace(base, **changes)


REASONS = [
    ("agenttraj", own(outcome=Outcome.CANCELLED, reward=None), "cancelled"),
    ("agenttraj", own(turns=()), "no_turns"),
    ("agenttraj", own(task_id="maze"), "no_item_id"),
    ("openmanus", own(task_id="maze"), "no_item_id"),
    ("agenttraj", own(prompt=(ChatMessage("user", "rules"),)), "conversation"),
    ("agenttraj", own(prompt=(ChatMessage("tool", "rules"),)), "unknown_role"),
    ("trl", own(prompt=(ChatMessage("tool", "rules"),)), "unknown_role"),
    ("sharegpt", own(prompt=(ChatMessage("user", "rules"),)), "no_turn_taking"),
    ("trl", own(final_observation="\ud800"), "not_unicode"),
]


@pytest.mark.parametrize(("name", "given", "reason"), REASONS)
def test_what_a_format_has_no_record_of_is_left_out(
    name: str, given: Trajectory, reason: str, tmp_path: Path
) -> None:
    form, tally = find_format(name), Tally()
    path = tmp_path / f"x{form.suffixes[0]}"
    form.write(path, [given, own()], tally)
    assert (tally.written, tally.left_out) == (1, {reason: 1})
    assert [t.turns for t in form.read(path, Reading(), Tally())] == [own().turns]


def test_a_second_attempt_keeps_its_number(tmp_path: Path) -> None:
    path, tally = tmp_path / "a.json", Tally()
    given = [own(), own(id="w0/maze_3/1", attempt=1), own(task_id="maze_4", id="w0/maze_4/0")]
    find_format("agenttraj").write(path, given, tally)
    assert tally.lost == {"env": 3}
    assert [(t.id, t.attempt) for t in read(path)] == [(t.id, t.attempt) for t in given]


def test_one_left_out_does_not_shift_the_numbers_of_the_others(tmp_path: Path) -> None:
    path, tally = tmp_path / "a.json", Tally()
    bad = own(prompt=(ChatMessage("user", "rules"),))
    find_format("agenttraj").write(path, [bad, own()], tally)
    assert tally.lost == {"env": 1}


def test_every_format_says_what_it_is() -> None:
    assert list(FORMATS) == list(MISSING)
    assert all(form.summary and form.name == name for name, form in FORMATS.items())


def test_equal_trajectories_give_equal_files(tmp_path: Path) -> None:
    for file in ("a.json.gz", "b.json.gz"):
        find_format("agenttraj").write(tmp_path / file, [own()], Tally())
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()

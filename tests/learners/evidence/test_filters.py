"""What may enter a loss: a faulted trajectory never can, and every drop is counted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import pack_floats, pack_tokens
from rollwave.engine.errors import BadSample, EmptyWave, FaultKind
from rollwave.engine.trajectory import Fault, FinishReason, Outcome, Trajectory, Turn
from rollwave.learners.base import Sample
from rollwave.learners.evidence.filters import (
    above,
    capped,
    distinct,
    task_key,
    threshold_for,
    usable,
)

SCORED = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED)


def make(task: int = 0, attempt: int = 0, actions: str = "up", **fields) -> Trajectory:
    base = {
        "id": f"w0/grid_{task}/{attempt}",
        "env": "grid-v1",
        "task_id": f"grid_{task}",
        "split": "train",
        "wave": 0,
        "attempt": attempt,
        "seed": 0,
        "outcome": Outcome.SUCCESS,
        "reward": 1.0,
        "turns": tuple(Turn("o", a, a, 0.0) for a in actions.split()),
    }
    return Trajectory(**(base | fields))


@st.composite
def trajectories(draw) -> list[Trajectory]:
    """Any mixture of outcomes, rewards, lengths and tasks."""
    made = []
    for index in range(draw(st.integers(0, 12))):
        outcome = draw(st.sampled_from(Outcome))
        actions = draw(st.lists(st.sampled_from(["up", "down"]), max_size=4))
        made.append(
            make(
                draw(st.integers(0, 3)),
                index,
                " ".join(actions),
                outcome=outcome,
                reward=draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])) if outcome.scored else None,
                fault=Fault(FaultKind.BACKEND, "died") if outcome is Outcome.FAULT else None,
            )
        )
    return made


def words(trajectory: Trajectory) -> Sample:
    """A stand-in for the tokeniser: two tokens a turn, the second with loss."""
    n = len(trajectory.turns)
    return Sample(trajectory.id, [1] * 2 * n, [0, 1] * n)


@given(trajectories())
@settings(deadline=None)
def test_a_faulted_or_cancelled_trajectory_never_enters(records):
    ready = usable(records, words, context=6)
    passed = above(records, {"*": -1.0})
    for kept in (*ready.trajectories, *passed.kept):
        assert kept.outcome in SCORED
        assert kept.fault is None
        assert kept.reward is not None


@given(trajectories(), st.integers(0, 3), st.sampled_from(["first", "shortest", "random"]))
@settings(deadline=None)
def test_every_trajectory_is_kept_or_counted_once_and_order_stays(records, cap, choose):
    ready = usable(records, words, context=6)
    assert len(ready.trajectories) + sum(ready.dropped.values()) == len(records)
    assert [s.id for s in ready.samples] == [t.id for t in ready.trajectories]
    for part in (above(records, {}), distinct(records), capped(records, cap, choose=choose)):
        assert len(part.kept) + sum(part.dropped.values()) == len(records)
        assert part.kept == [t for t in records if t in part.kept]
        assert all(part.dropped.values())


@given(trajectories(), st.integers(1, 3), st.sampled_from(["first", "shortest", "random"]))
@settings(deadline=None)
def test_a_cap_keeps_some_of_every_task_and_never_more(records, cap, choose):
    kept = capped(records, cap, choose=choose, seed=3).kept
    for key in {task_key(t) for t in records}:
        there = sum(task_key(t) == key for t in records)
        assert sum(task_key(t) == key for t in kept) == min(cap, there)


@given(trajectories())
@settings(deadline=None)
def test_distinct_keeps_one_of_each_action_sequence(records):
    def key(t):
        return task_key(t), tuple(turn.action for turn in t.turns)

    kept = distinct(records).kept
    assert len({key(t) for t in kept}) == len(kept)
    assert {key(t) for t in kept} == {key(t) for t in records}
    for t in kept:  # the first of its kind
        assert t == next(r for r in records if key(r) == key(t))


def reasons(record: Trajectory, tokenise=words, **options) -> dict[str, int]:
    return usable([record], tokenise, **({"context": 6} | options)).dropped


def raising(trajectory: Trajectory) -> Sample:
    raise BadSample("broken")


def test_each_reason_for_dropping_is_named():
    fault = Fault(FaultKind.ENVIRONMENT, "it broke")
    assert reasons(make(outcome=Outcome.FAULT, reward=None, fault=fault)) == {"fault": 1}
    assert reasons(make(fault=fault)) == {"fault": 1}  # whatever its outcome says
    assert reasons(make(outcome=Outcome.CANCELLED, reward=None)) == {"cancelled": 1}
    assert reasons(make(actions="")) == {"no_turns": 1}
    assert reasons(make(), raising) == {"bad_sample": 1}
    assert reasons(make(), lambda t: Sample(t.id, [1, 2], [1, 0])) == {"empty_mask": 1}
    assert reasons(make(actions="up up up up")) == {"too_long": 1}
    for value in (math.nan, math.inf, -math.inf):
        broken = Sample("x", [1, 2], [0, 1], [0.0, value])
        assert reasons(make(), lambda t, s=broken: s) == {"bad_logprobs": 1}


def test_exactly_the_context_fits_and_nothing_is_cut():
    ready = usable([make(actions="up up up")], words, context=6)
    assert len(ready.samples[0].token_ids) == 6
    assert reasons(make(actions="up up up"), context=5) == {"too_long": 1}


def test_a_logprob_that_is_not_finite_at_an_observation_does_no_harm():
    sample = Sample("x", [1, 2], [0, 1], [math.nan, -1.0])
    assert reasons(make(), lambda t: sample) == {}


def test_a_models_text_without_tokens_is_dropped_unless_texts_are_wanted():
    turn = Turn("o", "up", "up", 0.0, finish=FinishReason.STOP)
    assert reasons(make(turns=(turn,))) == {"no_tokens": 1}
    assert reasons(make(turns=(turn,)), texts=True) == {}


def test_an_empty_result_says_what_was_dropped():
    records = [make(actions=""), make(outcome=Outcome.CANCELLED, reward=None)]
    with pytest.raises(EmptyWave, match="1 cancelled, 1 no_turns"):
        usable(records, words, context=6).require()
    with pytest.raises(EmptyWave, match="none were given"):
        usable([], words, context=6).require()


def test_the_threshold_is_strict():
    records = [make(i, reward=r) for i, r in enumerate((0.5, math.nextafter(0.5, 1), 0.4))]
    assert above(records, {"*": 0.5}).kept == [records[1]]


def test_thresholds_go_by_full_id_then_name_then_star_then_default():
    table = {"grid-v1?size=7": 0.1, "grid-v1": 0.2, "*": 0.3}
    assert threshold_for("grid-v1?size=7", table) == 0.1
    assert threshold_for("grid-v1?size=9", table) == 0.2
    assert threshold_for("maze-v1", table) == 0.3
    assert threshold_for("maze-v1", {}) == 0.99


def test_choose_first_shortest_and_random():
    records = [make(0, 2, "up up"), make(0, 0, "up up up"), make(0, 1, "up")]
    assert capped(records, 1).kept == [records[1]]
    assert capped(records, 1, choose="shortest").kept == [records[2]]
    drawn = {capped(records, 1, choose="random", seed=s).kept[0].attempt for s in range(30)}
    assert drawn == {0, 1, 2}
    assert capped(records, 1, choose="random", seed=4) == capped(
        records, 1, choose="random", seed=4
    )
    assert capped(records, 0).kept == records


def test_turns_that_broke_the_format_are_told_apart_by_what_they_said():
    def said(number: int, text: str) -> Trajectory:
        return make(0, number, turns=(Turn("o", text, "", 0.0, format_error=True),))

    records = [said(0, "hm"), said(1, "well"), said(2, "hm")]
    assert distinct(records).kept == records[:2]


def test_the_same_actions_at_other_tasks_or_environments_are_no_repetition():
    records = [make(0), make(1), make(0, env="maze-v1"), make(0, 1)]
    assert distinct(records).kept == records[:3]


def test_of_equally_short_ones_that_with_fewer_tokens_is_the_shortest():
    def wrote(number: int, tokens: int) -> Trajectory:
        turn = Turn("o", "up", "up", 0.0, 1, 1 + tokens, finish=FinishReason.STOP)
        return make(
            0,
            number,
            turns=(turn,),
            token_ids=pack_tokens(range(1 + tokens)),
            loss_mask=b"\x00" + b"\x01" * tokens,
            logprobs=pack_floats([0.0] * (1 + tokens)),
        )

    records = [wrote(0, 3), wrote(1, 2), wrote(2, 2)]
    assert capped(records, 1, choose="shortest").kept == [records[1]]


def test_a_random_choice_does_not_depend_on_other_tasks():
    records = [make(0, n, "up " * (n + 1)) for n in range(5)]
    alone = capped(records, 1, choose="random", seed=1).kept
    others = [make(9, n) for n in range(5)]
    assert capped([*others, *records], 1, choose="random", seed=1).kept[-1:] == alone

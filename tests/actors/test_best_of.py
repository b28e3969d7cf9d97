"""Best-of-N: the estimators against every choice there is, and the bound they are."""

from __future__ import annotations

from itertools import combinations, pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.actors.best_of import (
    LABEL,
    best_at,
    best_of,
    chosen,
    likeliest,
    majority,
    pass_at,
)
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.errors import FaultKind
from rollwave.engine.trajectory import Fault, Outcome, Trajectory, Turn


def attempt(
    task: int, number: int, reward: float | None, actions: str = "a", logprob: float = 0.0
) -> Trajectory:
    fault = Fault(FaultKind.BACKEND, "gone") if reward is None else None
    outcome = {None: Outcome.FAULT, 1.0: Outcome.SUCCESS}.get(reward, Outcome.FAILURE)
    sampled = (pack_tokens([1, 2]), pack_mask([0, 1]), pack_floats([0.0, logprob]))
    return Trajectory(
        f"w0/x_{task}/{number}",
        "x-v1",
        f"x_{task}",
        "test",
        0,
        number,
        0,
        outcome,
        reward,
        fault=fault,
        turns=tuple(Turn("", word, word, 0.0) for word in actions.split()),
        **(
            dict(zip(("token_ids", "loss_mask", "logprobs"), sampled, strict=True))
            if logprob
            else {}
        ),
    )


@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_choices_with_a_success(case: tuple[int, int, int]) -> None:
    n, c, k = case
    marks = [True] * c + [False] * (n - c)
    choices = list(combinations(marks, k))
    assert pass_at(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7), st.data())
def test_best_at_k_is_the_mean_best_of_all_choices(
    rewards: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    assert best_at(rewards, k) == pytest.approx(fmean(map(max, combinations(rewards, k))), abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9), st.data())
def test_for_rewards_of_0_and_1_both_are_the_same(
    rewards: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    found = pass_at(len(rewards), int(sum(rewards)), k)
    assert best_at(rewards, k) == pytest.approx(found, abs=1e-12)


def test_large_numbers_of_attempts_do_not_overflow() -> None:
    assert pass_at(2000, 1, 1000) == pytest.approx(0.5)
    assert pass_at(2000, 1000, 1999) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_what_cannot_be_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="attempts"):
        pass_at(n, c, k)
    with pytest.raises(ValueError, match="attempts"):
        best_at([0.0] * 4, 0 if k else 5)


@given(
    st.lists(
        st.lists(st.sampled_from([None, 0.0, 0.25, 1.0]), min_size=2, max_size=6),
        min_size=1,
        max_size=5,
    )
)
def test_more_attempts_never_give_less(tasks: list[list[float | None]]) -> None:
    tries = [attempt(i, k, r) for i, rewards in enumerate(tasks) for k, r in enumerate(rewards)]
    found = best_of(tries)
    assert found is not None
    for figures in (found.pass_at, found.best_at):
        values = [figures[k] for k in sorted(figures)]
        assert all(a <= b + 1e-12 for a, b in pairwise(values))
    rewards = [[r or 0.0 for r in task] for task in tasks]
    assert found.best_at[1] == pytest.approx(fmean(map(fmean, rewards)))
    assert found.majority <= fmean(map(max, rewards)) + 1e-12
    if len(set(map(len, tasks))) == 1:
        assert found.best_at[found.attempts] == pytest.approx(fmean(map(max, rewards)))


def test_every_figure_of_a_small_evaluation_by_hand() -> None:
    tries = [
        attempt(0, 0, 0.0, "a b", -0.9),
        attempt(0, 1, 1.0, "a c", -0.1),
        attempt(0, 2, 0.0, "a b", -0.5),
        attempt(1, 0, 0.5, "d", -0.2),
        attempt(1, 1, 0.5, "e", -0.3),
        attempt(1, 2, None, "f", -0.4),
    ]
    found = best_of(tries)
    assert found is not None
    assert (found.label, found.attempts, found.tasks) == ("oracle upper bound", 3, 2)
    assert found.pass_at == pytest.approx({1: 1 / 6, 2: 1 / 3, 3: 0.5})
    assert found.best_at == pytest.approx({1: 1 / 3, 2: (2 / 3 + 0.5) / 2, 3: 0.75})
    assert found.majority == (0.0 + 0.5) / 2  # "a b" twice; of equals the first
    assert found.likeliest == (1.0 + 0.5) / 2
    assert LABEL in found.label


def test_a_rule_of_ones_own_may_choose() -> None:
    tasks = [[attempt(0, 0, 0.2, "a"), attempt(0, 1, 0.9, "a b c")]]
    assert chosen(tasks, lambda tries: max(tries, key=lambda t: len(t.turns))) == 0.9
    assert majority(tasks[0]) == tasks[0][0]


def test_one_attempt_is_no_choice_and_text_alone_has_no_likelihood() -> None:
    assert best_of([]) is None
    assert best_of([attempt(0, 0, 1.0), attempt(0, 1, 1.0), attempt(1, 0, 1.0)]) is None
    plain = best_of([attempt(0, 0, 1.0), attempt(0, 1, 0.0)])
    assert plain is not None
    assert plain.likeliest is None
    with pytest.raises(ValueError, match="log-probs"):
        likeliest([attempt(0, 0, 1.0)])

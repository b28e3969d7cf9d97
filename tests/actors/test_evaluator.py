"""The figures of an evaluation, against values worked out by hand or published."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.actors.evaluator import bootstrap, evaluate, standard_error, summarise, wilson
from rollwave.actors.evolution import evaluated
from rollwave.actors.report import Row
from rollwave.engine.errors import FaultKind
from rollwave.engine.trajectory import Fault, Outcome, Trajectory, Turn


def trajectory(
    task: int,
    outcome: Outcome,
    reward: float | None,
    *,
    env: str = "x-v1",
    attempt: int = 0,
    turns: int = 1,
    errors: int = 0,
) -> Trajectory:
    fault = Fault(FaultKind.BACKEND, "gone") if outcome is Outcome.FAULT else None
    made = tuple(Turn("", "", "", 0.0, format_error=k < errors) for k in range(turns))
    return Trajectory(
        f"w0/x_{task}/{attempt}",
        env,
        f"x_{task}",
        "test",
        0,
        attempt,
        0,
        outcome,
        reward,
        fault=fault,
        turns=made,
    )


def test_every_figure_of_a_small_evaluation_by_hand() -> None:
    (found,) = evaluate(
        [
            trajectory(0, Outcome.SUCCESS, 1.0, turns=4, errors=1),
            trajectory(1, Outcome.FAILURE, 0.25, turns=2),
            trajectory(2, Outcome.TRUNCATED, 0.5, turns=3, errors=1),
            trajectory(3, Outcome.FAULT, None, turns=1),
            trajectory(4, Outcome.CANCELLED, None, turns=0),
        ]
    )
    assert (found.env, found.episodes, found.tasks) == ("x-v1", 5, 5)
    assert found.outcomes == {
        "success": 1,
        "failure": 1,
        "truncated": 1,
        "fault": 1,
        "cancelled": 1,
    }
    assert found.faults == {"backend": 1}
    assert found.success_rate == 0.2
    assert found.average_reward == 1.75 / 5  # what has no reward adds nothing and counts
    assert found.average_reward_scored == 1.75 / 3
    assert (found.turns, found.turns_mean) == (10, 2.0)
    assert found.format_errors == 0.2
    assert found.truncated == 0.2
    assert found.interval == wilson(1, 5)


def test_environments_are_told_apart_in_first_seen_order() -> None:
    found = evaluate(
        [
            trajectory(0, Outcome.SUCCESS, 1.0, env="b-v1"),
            trajectory(0, Outcome.FAILURE, 0.0, env="a-v1"),
            trajectory(1, Outcome.SUCCESS, 1.0, env="b-v1"),
        ]
    )
    assert [(e.env, e.episodes, e.success_rate) for e in found] == [
        ("b-v1", 2, 1.0),
        ("a-v1", 1, 0.0),
    ]
    assert evaluate([]) == []


def test_nothing_at_all_has_figures_too() -> None:
    empty = summarise("x", [])
    assert (empty.episodes, empty.success_rate, empty.average_reward) == (0, 0.0, 0.0)
    assert empty.interval == (0.0, 1.0)
    assert empty.average_reward_scored is None
    assert 0 < empty.average_reward_error <= 0.5


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), table I, method 3; and the limits at 0 and n.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    found = wilson(successes, n)
    assert found == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors_itself(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_with_several_attempts_the_interval_is_a_bootstrap_over_tasks() -> None:
    outcomes = {0: "SSSS", 1: "SFSF", 2: "FFFF", 3: "SSSF", 4: "FFSF", 5: "SSSS", 6: "FFFF"}
    tries = [
        trajectory(
            task,
            Outcome.SUCCESS if mark == "S" else Outcome.FAILURE,
            float(mark == "S"),
            attempt=attempt,
        )
        for task, marks in outcomes.items()
        for attempt, mark in enumerate(marks)
    ]
    found = summarise("x", tries)
    by_task = [[mark == "S" for mark in marks] for marks in outcomes.values()]
    assert found.interval == bootstrap(by_task) == bootstrap(by_task)
    assert found.success_rate == 14 / 28
    low, high = found.interval
    # Attempts at one task are not independent: the task is the unit, and the interval is wider.
    naive_low, naive_high = wilson(14, 28)
    assert low < naive_low < 0.5 < naive_high < high
    rates = [sum(marks) / 4 for marks in by_task]
    spread = math.sqrt(sum((rate - 0.5) ** 2 for rate in rates) / 7) / math.sqrt(7)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_tasks_that_all_agree_leave_wilsons_doubt() -> None:
    assert bootstrap([[True, True]] * 8) == wilson(8, 8)
    assert bootstrap([[False, False]] * 8) == wilson(0, 8)
    assert bootstrap([[True, False]] * 8) == wilson(4, 8)
    assert bootstrap([]) == (0.0, 1.0)


def test_the_standard_error_is_never_zero() -> None:
    for outcome, reward in ((Outcome.SUCCESS, 1.0), (Outcome.FAILURE, 0.0)):
        found = summarise("x", [trajectory(n, outcome, reward) for n in range(99)])
        assert found.average_reward_error == pytest.approx(math.sqrt(0.01 * 0.99 / 99))
    half = [
        trajectory(n, Outcome.SUCCESS if n % 2 else Outcome.FAILURE, float(n % 2))
        for n in range(100)
    ]
    assert summarise("x", half).average_reward_error == pytest.approx(0.05)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rewards_of_0_and_1_have_the_error_of_their_share(case: tuple[int, int]) -> None:
    successes, n = case
    p = min(max(successes / n, 1 / (n + 1)), n / (n + 1))
    found = standard_error([1.0] * successes + [0.0] * (n - successes))
    assert found == pytest.approx(math.sqrt(p * (1 - p) / n))


def test_the_standard_error_is_that_of_the_rewards_and_not_of_the_successes() -> None:
    rewards = [0.2, 0.4, 0.6, None]  # no success at all; what has no reward counts 0
    found = summarise(
        "x",
        [
            trajectory(n, Outcome.FAILURE if reward else Outcome.FAULT, reward)
            for n, reward in enumerate(rewards * 25)
        ],
    )
    assert found.success_rate == 0.0
    assert found.average_reward == pytest.approx(0.3)
    assert found.average_reward_error == pytest.approx(math.sqrt(0.05 / 100))
    (scored,), (score,) = evaluated([Row("evolution", 0, 0, 0, 0, 0, found, None, "m")])
    assert scored.dev is found
    assert (score.mean, score.error) == (found.average_reward, found.average_reward_error)

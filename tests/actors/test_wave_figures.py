"""The figures of a wave: from its records alone, faults told apart, nothing counted twice."""

from __future__ import annotations

import math
from array import array

import pytest
from rollwave.actors.wave_figures import Solved, describe, differs
from rollwave.engine.errors import FaultKind
from rollwave.engine.trajectory import Fault, FinishReason, Outcome, Trajectory, Turn


def trajectory(
    task: str,
    attempt: int = 0,
    outcome: Outcome = Outcome.SUCCESS,
    *,
    env: str = "e-v1",
    action: str = "go",
    version: int = 3,
    logprob: float = -0.5,
    broken: bool = False,
) -> Trajectory:
    scored = outcome.scored
    turn = Turn("you see", "w", action, 0.0, 1, 3, version, FinishReason.STOP, broken)
    return Trajectory(
        id=f"w1/{task}/{attempt}",
        env=env,
        task_id=task,
        split="train",
        wave=1,
        attempt=attempt,
        seed=0,
        outcome=outcome,
        reward=float(outcome is Outcome.SUCCESS) if scored else None,
        fault=None if scored else Fault(FaultKind.ENVIRONMENT, "broke"),
        turns=(turn,),
        token_ids=array("I", [5, 6, 7]).tobytes(),
        loss_mask=b"\x00\x01\x01",
        logprobs=array("f", [0.0, logprob, logprob]).tobytes(),
        versions=(version, version),
    )


WAVE = [
    trajectory("a", 0),
    trajectory("a", 1, Outcome.FAILURE, action="stay", version=2),
    trajectory("b", 0),
    trajectory("b", 1),
    trajectory("c", 0, Outcome.TRUNCATED, env="f-v1", broken=True, version=1),
    trajectory("c", 1, Outcome.FAULT, env="f-v1"),
]


def test_a_wave_in_figures() -> None:
    solved = Solved({("e-v1", "a")})
    figures = describe(WAVE, solved, trained_from=3, rounds=2, turn_limit=7)
    assert (figures.episodes, figures.turns, figures.turns_mean) == (6, 6, 1.0)
    assert figures.success == {"e-v1": 0.75, "f-v1": 0.0}
    assert figures.average_reward == pytest.approx(3 / 5)
    assert figures.faults == 1
    assert (figures.tasks, figures.tasks_solved, figures.tasks_newly_solved) == (3, 2, 1)
    assert figures.duplicates == 1  # b twice by the same way
    assert figures.groups_used == 1  # only a's attempts differ
    assert figures.format_errors == pytest.approx(1 / 6)
    assert figures.entropy == pytest.approx(0.5)
    assert figures.staleness == {0: 3, 1: 1, 2: 1}
    assert figures.staleness_mean == pytest.approx(3 / 5)
    assert (figures.rounds, figures.turn_limit) == (2, 7)


def test_what_was_solved_before_is_not_new() -> None:
    solved = Solved()
    first = describe(WAVE, solved, trained_from=3)
    again = describe(WAVE, solved, trained_from=3)
    assert (first.tasks_newly_solved, again.tasks_newly_solved) == (2, 0)
    assert first.tasks_solved == again.tasks_solved == 2


def test_a_wave_of_nothing_has_no_figures_that_are_no_numbers() -> None:
    for wave in ([], [trajectory("a", 0, Outcome.FAULT)]):
        figures = describe(wave, Solved(), trained_from=0)
        assert figures.entropy is None
        assert figures.success == {}
        assert figures.staleness_mean == 0.0
        assert math.isfinite(figures.turns_mean + figures.average_reward + figures.format_errors)


@pytest.mark.parametrize(
    ("rewards", "says"),
    [([], False), ([1.0], False), ([0.3, 0.3], False), ([0.1 + 0.2, 0.3], False), ([0, 1], True)],
)
def test_a_group_says_something_where_its_rewards_differ(rewards: list[float], says: bool) -> None:
    assert differs(rewards) is says

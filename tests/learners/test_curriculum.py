"""The horizon schedule: a pure function of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError
from rollwave.learners.curriculum import horizon

stages = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@given(rounds=stages, every=st.integers(1, 20))
def test_each_stage_lasts_as_long_and_the_last_for_ever(rounds, every):
    steps = [horizon(step, rounds, every) for step in range(1, len(rounds) * every + 10)]
    assert steps[: len(rounds) * every] == [limit for limit in rounds for _ in range(every)]
    assert set(steps[len(rounds) * every :]) == {rounds[-1]}


def test_at_a_multiple_of_the_interval_it_does_not_jump():
    """Published code is one stage ahead after resuming there."""
    assert [horizon(step, [4, 8, 12], 100) for step in (1, 100, 101, 200, 201)] == [4, 4, 8, 8, 12]


@pytest.mark.parametrize(
    ("step", "rounds", "every"), [(0, [1], 1), (1, [], 1), (1, [0], 1), (1, [1], 0)]
)
def test_impossible_schedules_are_refused(step, rounds, every):
    with pytest.raises(ConfigError):
        horizon(step, rounds, every)

"""When checkpoints are due, on a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rollwave.learners.training.cadence import SHARE, Cadence


def taken(steps: int, seconds: float, step_cost: list[float], cost: float) -> list[int]:
    """The steps after which a checkpoint was taken, where steps and checkpoints take so long."""
    time = 0.0
    cadence = Cadence(steps, seconds, lambda: time)
    found = []
    for step, spent in enumerate(step_cost, 1):
        time += spent
        if cadence.due(step):
            cadence.begin()
            time += cost
            cadence.end()
            found.append(step)
    return found


def test_by_steps_by_seconds_both_or_never() -> None:
    assert taken(4, 0.0, [1.0] * 12, 9.0) == [4, 8, 12]
    assert taken(0, 5.0, [1.0] * 12, 0.0) == [5, 10]
    assert taken(0, 5.0, [6.0] * 3, 0.0) == [1, 2, 3]  # slow steps
    assert taken(8, 5.0, [1.0] * 16, 0.0) == [5, 8, 13, 16]
    assert taken(0, 0.0, [100.0] * 4, 0.0) == []
    assert not Cadence(0, 0.0).enabled
    assert Cadence(0, 30.0).enabled
    assert Cadence(1, 0.0).enabled


@given(
    st.lists(st.floats(0.0, 100.0), max_size=200),
    st.floats(0.01, 50.0),
    st.floats(0.0, 500.0),
)
def test_by_seconds_they_cost_a_twentieth_at_most_however_slow_they_are(
    steps: list[float], seconds: float, cost: float
) -> None:
    found = taken(0, seconds, steps, cost)
    # The first is taken before anybody knows what it costs.
    since = [sum(steps[a:b]) for a, b in pairwise(found)]
    assert all(spent >= max(seconds, SHARE * cost) - 1e-6 for spent in since)

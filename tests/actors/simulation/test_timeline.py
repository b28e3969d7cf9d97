"""Levels over time: a bounded number of points, and means that miss no change."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.simulation.timeline import LIMIT, Timeline

STEPS = st.lists(
    st.tuples(st.floats(0.0, 100.0), st.integers(0, 50), st.integers(0, 50)), max_size=60
)


@settings(deadline=None)
@given(STEPS)
def test_means_are_exact_whatever_is_kept(steps: list[tuple[float, int, int]]) -> None:
    timeline = Timeline()
    now = waited = ran = 0.0
    before = (0, 0)
    for seconds, waiting, running in steps:
        now += seconds
        waited += seconds * before[0]
        ran += seconds * before[1]
        timeline.advance(now)
        timeline.change(waiting, running)
        before = (waiting, running)
    assert timeline.waiting_seconds == pytest.approx(waited)
    assert timeline.running_seconds == pytest.approx(ran)
    assert timeline.peak_waiting == max((waiting for _, waiting, _ in steps), default=0)
    times = [point.seconds for point in timeline.points]
    assert times == sorted(times)
    assert len(times) <= LIMIT


def test_a_long_simulation_is_thinned_evenly() -> None:
    timeline = Timeline()
    for step in range(200_000):
        timeline.advance(step * 0.01)
        timeline.change(0, step // 1000)
    times = [point.seconds for point in timeline.points]
    gaps = [after - before for before, after in pairwise(times)]
    assert LIMIT // 4 <= len(times) <= LIMIT
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)
    assert times[-1] == pytest.approx(1999.99, abs=max(gaps))
    assert [point.running for point in timeline.points] == sorted(
        point.running for point in timeline.points
    )

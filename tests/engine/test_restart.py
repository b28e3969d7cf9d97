"""Restart policy: the sliding window, the kinds and the backoff, as pure values."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError
from rollwave.engine.restart import (
    NO_BACKOFF,
    Backoff,
    Restart,
    RestartIntensity,
    RestartWindow,
)
from rollwave.engine.seeds import generator


@pytest.mark.parametrize(
    ("kind", "after_failure", "after_normal_end"),
    [
        (Restart.PERMANENT, True, True),
        (Restart.TRANSIENT, True, False),
        (Restart.TEMPORARY, False, False),
    ],
)
def test_which_kind_comes_back(kind: Restart, after_failure: bool, after_normal_end: bool) -> None:
    assert kind.wanted(failed=True) is after_failure
    assert kind.wanted(failed=False) is after_normal_end


@given(
    gaps=st.lists(st.floats(0, 10), max_size=60),
    most=st.integers(0, 5),
    window=st.floats(0.1, 20),
)
def test_no_window_ever_holds_more_than_the_allowed_restarts(
    gaps: list[float], most: int, window: float
) -> None:
    restarts = RestartWindow(RestartIntensity(most, window))
    time = 0.0
    granted: list[float] = []
    for gap in gaps:
        time += gap
        inside = [t for t in granted if t > time - window]
        allowed = restarts.allow(time)
        # Exactly the sliding rule: granted if and only if there is room in the window.
        assert allowed == (len(inside) < most)
        if allowed:
            granted.append(time)
    assert restarts.total == len(granted)
    for start in granted:
        assert sum(start <= t < start + window * (1 - 1e-9) for t in granted) <= most


@given(
    attempt=st.integers(0, 5000),
    first=st.floats(0, 10),
    factor=st.floats(1, 10),
    limit=st.floats(0, 100),
    jitter=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_backoff_stays_within_its_bounds_and_follows_its_seed(
    attempt: int, first: float, factor: float, limit: float, jitter: float, seed: int
) -> None:
    backoff = Backoff(first, factor, limit, jitter)
    delay = backoff.delay(attempt, generator(seed))
    full = Backoff(first, factor, limit, 0.0).delay(attempt, generator(seed))
    assert full * (1 - jitter) - 1e-12 <= delay <= full <= limit
    assert delay == backoff.delay(attempt, generator(seed))


def test_backoff_grows_by_its_factor_up_to_its_limit() -> None:
    backoff = Backoff(first=0.5, factor=2.0, limit=3.0, jitter=0.0)
    delays = [backoff.delay(k, random.Random(0)) for k in range(5)]
    assert delays == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert NO_BACKOFF.delay(10**6, random.Random(0)) == 0.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RestartIntensity(-1, 5.0), "max_restarts"),
        (lambda: RestartIntensity(1, 0.0), "window_seconds"),
        (lambda: RestartIntensity(1, float("nan")), "window_seconds"),
        (lambda: Backoff(first=-1.0), "first"),
        (lambda: Backoff(limit=float("inf")), "limit"),
        (lambda: Backoff(factor=0.5), "factor"),
        (lambda: Backoff(jitter=1.5), "jitter"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    make: Callable[[], object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make()

"""Draws, the lower bound and lock-step: fixed by the seed, and in the order that theory says."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.latency import ConstantLatency, LogNormalLatency, UniformLatency
from rollwave.actors.simulation.bounds import Demand, lock_step_seconds
from rollwave.actors.simulation.draws import Draws, Latencies, shares


def latencies(sigma: float = 1.0, turns: int = 3) -> Latencies:
    return Latencies(
        generate=LogNormalLatency(1.0, sigma),
        step=UniformLatency(0.0, 0.5),
        open=ConstantLatency(0.25),
        turns=lambda share: 1 + int(share * turns),
    )


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 12), st.integers(0, 12))
def test_an_episodes_draws_depend_on_its_number_and_the_seed_alone(
    seed: int, sessions: int, more: int
) -> None:
    small, large = (Draws(latencies(), n, seed) for n in (sessions, sessions + more))
    for episode in range(sessions):
        assert small.turns(episode) == large.turns(episode)
        assert small.open[episode] == large.open[episode]
        for turn in range(small.turns(episode)):
            assert (
                small.generate[small.first(episode) + turn]
                == large.generate[large.first(episode) + turn]
            )
            assert (
                small.step[small.first(episode) + turn] == large.step[large.first(episode) + turn]
            )
    assert list(Draws(latencies(), 5, seed).generate) != list(
        Draws(latencies(), 5, seed + 1).generate
    )


def test_shares_are_even_and_within_bounds() -> None:
    drawn = list(islice(shares(7, 3), 20_000))
    assert 0.0 <= min(drawn) < max(drawn) < 1.0
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.01)
    assert drawn[:8] != list(islice(shares(7, 4), 8))


def continuous(draws: Draws, concurrency: int) -> float:
    """List scheduling: an episode begins when a permit is free; slots are without bound."""
    free = [0.0] * concurrency
    for episode in range(len(draws)):
        first = draws.first(episode)
        length = draws.open[episode] + sum(
            draws.generate[at] + draws.step[at] for at in range(first, first + draws.turns(episode))
        )
        at = free.index(min(free))
        free[at] += length
    return max(free)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 8), st.floats(0.0, 2.0))
def test_lock_step_is_never_faster_than_continuous_where_slots_are_without_bound(
    seed: int, sessions: int, concurrency: int, sigma: float
) -> None:
    draws = Draws(latencies(sigma), sessions, seed)
    assert lock_step_seconds(draws, concurrency, 1, 0, 0.0) >= continuous(draws, concurrency) - 1e-9


def test_lock_step_waits_for_the_slowest_of_each_phase() -> None:
    same = Latencies(generate=ConstantLatency(2.0), step=ConstantLatency(1.0), turns=lambda _: 4)
    draws = Draws(same, 6, 0)
    assert lock_step_seconds(draws, 3, 1, 0, 0.0) == 2 * 4 * 3.0
    # Two slots for three sessions: two batches a phase.
    assert lock_step_seconds(draws, 3, 1, 2, 0.0) == 2 * 4 * 5.0
    assert lock_step_seconds(draws, 3, 2, 2, 0.0) == 2 * 4 * 3.0


def test_the_bound_is_the_largest_of_the_three_and_says_which() -> None:
    demand = Demand(3)
    demand.episodes[:] = [4.0, 1.0, 1.0]
    demand.slots = 3.0
    bound = demand.lower_bound(2, 1)
    assert (bound.permits, bound.slots, bound.episode) == (3.0, 3.0, 4.0)
    assert (bound.seconds, bound.limit) == (4.0, "the longest episode")
    assert "permits" in demand.lower_bound(1, 0).limit
    assert demand.lower_bound(1, 0).slots == 0.0
    demand.slots = 30.0
    assert "slots" in demand.lower_bound(2, 1).limit

"""Permits: never more out than allowed, first come first served, cancellation leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.permits import Permits


def run_virtual(function: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
    trio.run(function, *args, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_at_most_size_are_held_and_waiters_are_served_in_order() -> None:
    permits = Permits(2)
    order: list[int] = []

    async def take(index: int) -> None:
        await permits.acquire()
        order.append(index)

    async with trio.open_nursery() as nursery:
        for index in range(5):
            nursery.start_soon(take, index)
            await trio.testing.wait_all_tasks_blocked()
        assert order == [0, 1]
        for served in range(3, 6):
            permits.release()
            await trio.testing.wait_all_tasks_blocked()
            assert order == list(range(served))
    statistics = permits.statistics()
    assert (statistics.held, statistics.waiting, statistics.granted) == (2, 0, 5)
    assert (statistics.peak_held, statistics.peak_waiting) == (2, 3)


async def test_nobody_overtakes_those_who_wait() -> None:
    permits = Permits(1)
    await permits.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(permits.acquire)
        await trio.testing.wait_all_tasks_blocked()
        permits.release()  # granted to the waiter, whose task has not run yet
        with pytest.raises(trio.WouldBlock):
            permits.acquire_nowait()
    assert permits.statistics().held == 1


async def test_growing_serves_waiters_at_once() -> None:
    permits = Permits(0)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(permits.acquire)
        await trio.testing.wait_all_tasks_blocked()
        assert permits.statistics().waiting == 3
        permits.resize(2)
        assert permits.statistics().held == 2
        permits.resize(3)
    assert permits.statistics().held == 3


async def test_shrinking_takes_nothing_away_and_lets_nobody_in() -> None:
    permits = Permits(3)
    for _ in range(3):
        await permits.acquire()
    permits.resize(1)
    assert permits.statistics().held == 3
    for held in (2, 1):
        permits.release()
        assert permits.statistics().held == held
        with pytest.raises(trio.WouldBlock):
            permits.acquire_nowait()
    permits.release()
    permits.acquire_nowait()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    permits = Permits(1)
    await permits.acquire()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(permits.acquire)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert permits.statistics().waiting == 0
    permits.release()
    assert permits.statistics().held == 0


async def test_a_permit_granted_before_the_cancellation_is_in_the_takers_hands() -> None:
    permits = Permits(1)
    await permits.acquire()
    held: list[bool] = []

    async def take() -> None:
        async with permits:
            held.append(True)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        permits.release()
        nursery.cancel_scope.cancel()
    assert held == [True]
    assert permits.statistics().held == 0


async def test_acquire_is_a_checkpoint() -> None:
    permits = Permits(1)
    with trio.testing.assert_checkpoints():
        await permits.acquire()
    permits.release()
    with trio.CancelScope() as scope:
        scope.cancel()
        await permits.acquire()
    assert scope.cancelled_caught
    assert permits.statistics().held == 0


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match="not -1"):
        Permits(-1)
    with pytest.raises(ValueError, match="not -2"):
        Permits(1).resize(-2)
    with pytest.raises(RuntimeError, match="nobody holds"):
        Permits(1).release()


visits = st.tuples(st.integers(0, 9), st.integers(0, 5), st.none() | st.integers(0, 6))
resizes = st.tuples(st.integers(0, 12), st.integers(0, 4))


@settings(max_examples=150)
@given(st.integers(0, 3), st.lists(visits, max_size=12), st.lists(resizes, max_size=5))
def test_whatever_comes_and_goes_the_books_balance(
    size: int,
    visitors: list[tuple[int, int, int | None]],
    changes: list[tuple[int, int]],
) -> None:
    """Visitors arrive, hold, or give up at any time while the size changes under them."""

    async def main() -> None:
        permits = Permits(size)
        live = 0
        limit = size
        arrived: list[int] = []
        served: dict[int, float] = {}

        def balanced() -> None:
            statistics = permits.statistics()
            assert statistics.held >= live  # a grant may not have reached its task yet
            assert statistics.size == limit
            assert not (statistics.waiting and statistics.held < statistics.size)

        async def visit(index: int, start: int, stay: int, patience: int | None) -> None:
            nonlocal live
            await trio.sleep(start + index / 100)
            arrived.append(index)
            with trio.move_on_after(99 if patience is None else patience + 0.5) as scope:
                await permits.acquire()
            if scope.cancelled_caught:
                return
            served[index] = trio.current_time()
            live += 1
            balanced()
            await trio.sleep(stay + 0.25)
            live -= 1
            permits.release()
            balanced()

        async def resize() -> None:
            nonlocal limit
            for after, new in sorted(changes):
                await trio.sleep_until(after + 0.7)
                limit = new
                permits.resize(new)
                balanced()
            await trio.sleep_until(50)
            limit = 20
            permits.resize(20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(resize)
            for index, visitor in enumerate(visitors):
                nursery.start_soon(visit, index, *visitor)
        statistics = permits.statistics()
        assert (statistics.held, statistics.waiting, live) == (0, 0, 0)
        # Granted in order; tasks granted in one go run in any order, at one time.
        times = [served[index] for index in arrived if index in served]
        assert times == sorted(times)
        assert statistics.granted == len(served)
        assert statistics.peak_held <= max([size, 20, *(new for _, new in changes)])

    run_virtual(main)


@given(st.integers(1, 4), st.integers(1, 12))
def test_never_more_are_held_than_the_size_allows(size: int, tasks: int) -> None:
    async def main() -> None:
        permits = Permits(size)
        live = 0

        async def hold() -> None:
            nonlocal live
            async with permits:
                live += 1
                assert live <= size
                await trio.sleep(1)
                live -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(hold)
        assert permits.statistics().peak_held == min(size, tasks)

    run_virtual(main)

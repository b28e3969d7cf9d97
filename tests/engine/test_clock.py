"""Deadlines: cut short by the clock alone, named, and transparent to other cancellation."""

from __future__ import annotations

import pytest
import trio
from rollwave.engine.clock import deadline, now, rolling_deadline
from rollwave.engine.errors import ConfigError, DeadlineExceeded
from rollwave.engine.testing import run_simulated
from trio.testing import MockClock


async def test_a_stage_that_is_late_is_named(autojump_clock: MockClock) -> None:
    start = now()
    with (
        pytest.raises(DeadlineExceeded, match=r"turn 3 took longer than 2\.5 s"),
        deadline("turn 3", 2.5),
    ):
        await trio.sleep(10)
    assert now() - start == 2.5


async def test_a_stage_in_time_leaves_no_trace(autojump_clock: MockClock) -> None:
    with deadline("quick", 5):
        await trio.sleep(4.9)
    with deadline("endless", float("inf")):
        await trio.sleep(100)


async def test_a_block_that_finishes_late_without_a_wait_is_not_an_error(
    mock_clock: MockClock,
) -> None:
    with deadline("compute", 1):
        mock_clock.jump(5)  # no checkpoint inside: the work is done, so it counts


async def test_cancellation_from_outside_passes_through(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope, deadline("inner", 5):
        await trio.sleep(10)
    assert scope.cancelled_caught


async def test_an_error_of_the_block_is_not_replaced(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="mine"), deadline("inner", 5):
        raise ValueError("mine")


async def test_of_two_deadlines_the_earlier_one_is_named(autojump_clock: MockClock) -> None:
    with (
        pytest.raises(DeadlineExceeded, match="episode"),
        deadline("episode", 2),
        deadline("turn", 5),
    ):
        await trio.sleep(10)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_deadline_needs_a_time(seconds: float) -> None:
    with pytest.raises(ConfigError, match="turn"):
        deadline("turn", seconds)


def test_virtual_time_starts_at_zero_and_jumps() -> None:
    async def scenario() -> tuple[float, float]:
        before = now()
        await trio.sleep(3600)
        return before, now()

    assert run_simulated(scenario) == (0.0, 3600.0)


@pytest.mark.parametrize(
    ("stages", "after", "says"),
    [
        ([], 100, "episode took longer than 100 s"),
        ([("turn 0", 5)], 5, "turn 0 took longer than 5 s"),
        ([("turn 0", 5), ("turn 1", 7)], 3 + 7, "turn 1 took longer than 7 s"),
        ([("turn 0", 5), ("turn 1", 500)], 100, "episode took longer than 100 s"),
    ],
)
async def test_a_rolling_deadline_names_the_stage_or_the_whole(
    autojump_clock: MockClock, stages: list[tuple[str, float]], after: float, says: str
) -> None:
    async def episode() -> None:
        with rolling_deadline("episode", 100) as limit:
            for number, (name, seconds) in enumerate(stages):
                limit.stage(name, seconds, now())
                await trio.sleep(3 if number < len(stages) - 1 else 1000)
            await trio.sleep(1000)

    start = now()
    with pytest.raises(DeadlineExceeded, match=says):
        await episode()
    assert now() - start == after


async def test_a_rolling_deadline_lets_the_outside_cancel(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope, rolling_deadline("episode", 5):
        await trio.sleep(10)
    assert scope.cancelled_caught
    with pytest.raises(ConfigError, match="episode"):
        rolling_deadline("episode", -1.0)

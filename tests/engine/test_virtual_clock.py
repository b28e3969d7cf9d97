"""The clock of simulations: it jumps to deadlines, only when nothing can run."""

from __future__ import annotations

import math

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.testing import EventLog, run_simulated
from rollwave.engine.virtual_clock import Alarm, VirtualClock


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20))
def test_every_sleeper_wakes_at_its_deadline_exactly(sleeps: list[float]) -> None:
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await trio.sleep(seconds)
        woken.append((trio.current_time(), seconds))

    async def main() -> None:
        assert trio.current_time() == 0.0
        async with trio.open_nursery() as nursery:
            for seconds in sleeps:
                nursery.start_soon(sleeper, seconds)

    run_simulated(main, clock=VirtualClock())
    assert all(at == seconds for at, seconds in woken)
    assert [at for at, _ in woken] == sorted(sleeps)


def test_time_stands_still_while_something_runs() -> None:
    async def main() -> None:
        with trio.move_on_after(1.0) as scope:
            for _ in range(1000):
                await trio.lowlevel.checkpoint()
            assert trio.current_time() == 0.0
        assert not scope.cancelled_caught

    run_simulated(main, clock=VirtualClock())


def test_it_gives_the_run_that_the_mock_clock_gives() -> None:
    """The same seed is the same interleaving on either clock."""

    async def main() -> str:
        log = EventLog()

        async def worker(name: int) -> None:
            for step in range(5):
                await trio.sleep(0.1 * ((name * 7 + step) % 3))
                log("step", name, step)

        async with trio.open_nursery() as nursery:
            for name in range(6):
                nursery.start_soon(worker, name)
        return log.digest()

    digests = {run_simulated(main, seed=3), run_simulated(main, seed=3, clock=VirtualClock())}
    assert len(digests) == 1
    assert digests != {run_simulated(main, seed=4, clock=VirtualClock())}


SLEEPS = st.lists(st.tuples(st.booleans(), st.floats(0.001, 100.0)), min_size=1, max_size=20)


@settings(deadline=None)
@given(SLEEPS, st.floats(0.001, 100.0))
def test_its_own_sleep_is_as_trios(sleeps: list[tuple[bool, float]], limit: float) -> None:
    """Cheap sleepers and deadlines wake in one order of time; a late one is cancelled."""

    def woken(cheap: bool) -> list[tuple[float, int]]:
        clock = VirtualClock()
        found: list[tuple[float, int]] = []

        async def sleeper(number: int, own: bool, seconds: float) -> None:
            await (clock.sleep if own and cheap else trio.sleep)(seconds)
            found.append((trio.current_time(), number))

        async def main() -> None:
            with trio.move_on_after(limit):
                async with trio.open_nursery() as nursery:
                    for number, (own, seconds) in enumerate(sleeps):
                        nursery.start_soon(sleeper, number, own, seconds)
            assert trio.current_time() == min(limit, max(seconds for _, seconds in sleeps))

        run_simulated(main, clock=clock)
        assert [at for at, _ in found] == sorted(at for at, _ in found)
        return sorted(found)

    expected = sorted((s, n) for n, (_, s) in enumerate(sleeps) if s < limit)
    assert [each for each in woken(True) if each[0] < limit] == expected
    assert [each for each in woken(False) if each[0] < limit] == expected


def test_an_alarm_is_rung_early_once_or_cancelled() -> None:
    clock = VirtualClock()

    async def main() -> None:
        alarm = Alarm(clock)
        alarm.ring()  # nobody sleeps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarm.until, 50.0)
            await clock.sleep(2.0)
            alarm.ring()
            alarm.ring()
        assert clock.current_time() == 2.0
        with trio.move_on_after(1.0) as scope:
            await alarm.until(math.inf)
        assert scope.cancelled_caught
        assert clock.current_time() == 3.0
        await clock.sleep(1.0)  # the entries of the alarm are stale by now
        assert clock.current_time() == 4.0

    run_simulated(main, clock=clock)


def test_who_should_have_woken_during_a_jump_wakes_late() -> None:
    clock = VirtualClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock.sleep, 1.0)
            nursery.start_soon(trio.sleep, 2.0)
            for _ in range(3):
                await trio.lowlevel.checkpoint()  # both sleep by then, in whatever order
            clock.jump(10.0)
        assert clock.current_time() == 10.0
        with pytest.raises(ValueError, match="ahead"):
            clock.jump(-1.0)

    run_simulated(main, clock=clock)

"""The clock of simulations: it jumps to deadlines, only when nothing can run."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.testing import EventLog, run_simulated
from rollwave.engine.virtual_clock import VirtualClock


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

"""The engine on an asyncio loop: streams, both directions of cancellation, and the end.

These run on the real clock (two loops share one thread), with latencies of milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import EngineSettings
from rollwave.actors.guest import AsyncioEngine, open_engine_asyncio
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.protocol import Generate, Sampling
from rollwave.engine.errors import ActorDead, ConfigError, RestartLimitExceeded
from rollwave.engine.trajectory import Outcome, Trajectory

T = TypeVar("T")
MAZE = "maze-grid-v1?style=terse"


def scripted(seconds: float = 0.001, **options: Any) -> PolicySource:
    def make(_version: int, _path: str) -> ScriptedBackend:
        return ScriptedBackend(
            ConstantLatency(seconds), answer=lambda _: "up", takes_tokens=False, **options
        )

    return PolicySource(kind="model", name="scripted", make_backend=make)


def host(main: Callable[[], Awaitable[T]]) -> T:
    """Run on asyncio; nothing may be left behind, and nothing told to the loop's handler."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        async with asyncio.timeout(60):
            result = await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    result = asyncio.run(watched())
    gc.collect()
    assert complaints == []
    return result


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that happens within trio."""
    while not holds():  # noqa: ASYNC110 (an event of one loop does not wake the other)
        await asyncio.sleep(0.005)


def idle(engine: AsyncioEngine) -> bool:
    return engine.engine.permits.statistics().held == 0


def test_a_rollout_streams_on_the_hosts_loop() -> None:
    async def main() -> list[Trajectory]:
        async with open_engine_asyncio(scripted(), concurrency=8, seed=3) as engine:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.001)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            tasks = engine.tasks(MAZE, "train", limit=10)
            sampling = Sampling(0.5, 3)
            rollout = engine.rollout(tasks, attempts=2, wave=1, sampling=sampling, turn_limit=3)
            records = [t async for t in rollout]
            ticking.cancel()
            assert ticks > 0  # the host's own tasks ran beside it
            return records

    records = host(main)
    assert len({t.id for t in records}) == 20
    assert {t.wave for t in records} == {1}
    assert {t.temperature for t in records} == {0.5}
    assert max(len(t.turns) for t in records) == 3
    for record in records:
        record.check()


def test_the_same_seed_plays_the_same_under_either_loop() -> None:
    from rollwave.actors.embedding import open_engine
    from rollwave.engine.testing import run_simulated

    async def guest() -> set[tuple[str, ...]]:
        async with open_engine_asyncio("random", seed=5) as engine:
            tasks = engine.tasks(MAZE, "train", limit=6)
            return {actions(t) async for t in engine.rollout(tasks)}

    async def native() -> set[tuple[str, ...]]:
        async with open_engine("random", seed=5) as engine:
            return {actions(t) async for t in engine.rollout(engine.tasks(MAZE, "train", limit=6))}

    def actions(t: Trajectory) -> tuple[str, ...]:
        return (t.id, *(turn.action for turn in t.turns))

    assert host(guest) == run_simulated(native)


def test_leaving_a_rollout_early_cancels_its_sessions() -> None:
    async def main() -> None:
        async with open_engine_asyncio(scripted(), concurrency=4) as engine:
            tasks = engine.tasks(MAZE, "train", limit=200)
            async with contextlib.aclosing(engine.rollout(tasks)) as rollout:
                async for _ in rollout:
                    break
            assert engine.engine.permits.statistics().held == 0
            assert engine.engine.ledger.books == {}
            assert len([t async for t in engine.rollout(tasks[:5], wave=1)]) == 5

    host(main)


def test_an_iterator_that_is_dropped_is_closed_by_the_loop() -> None:
    async def main() -> None:
        async with open_engine_asyncio(scripted(), concurrency=4) as engine:
            async for _ in engine.rollout(engine.tasks(MAZE, "train", limit=200)):
                break
            gc.collect()
            await until(lambda: idle(engine))

    host(main)


def test_an_iterator_that_outlives_the_engine_closes_in_peace() -> None:
    async def main() -> None:
        async with open_engine_asyncio(scripted(), concurrency=4) as engine:
            rollout = engine.rollout(engine.tasks(MAZE, "train", limit=200))
            await anext(rollout)
        await rollout.aclose()

    host(main)


def test_cancelling_the_asyncio_task_cancels_its_sessions_and_no_others() -> None:
    async def main() -> None:
        async with open_engine_asyncio(scripted(0.005), concurrency=8) as engine:
            tasks = engine.tasks(MAZE, "train", limit=40)
            seen: list[Trajectory] = []

            async def play() -> None:
                async for trajectory in engine.rollout(tasks, attempts=50):
                    seen.append(trajectory)

            playing = asyncio.create_task(play())
            other = asyncio.create_task(collect(engine, wave=1))
            await until(lambda: bool(seen))
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing
            assert len(await other) == 20
            await until(lambda: idle(engine))
            assert len(seen) < 2000

    async def collect(engine: AsyncioEngine, wave: int) -> list[Trajectory]:
        tasks = engine.tasks(MAZE, "dev", limit=20)
        return [t async for t in engine.rollout(tasks, wave=wave)]

    host(main)


def test_cancelling_the_task_that_holds_the_engine_closes_it() -> None:
    engines: list[AsyncioEngine] = []

    async def serve() -> None:
        async with open_engine_asyncio(scripted(1000.0), concurrency=4) as engine:
            engines.append(engine)
            async for _ in engine.rollout(engine.tasks(MAZE, "train", limit=10)):
                pass

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await until(lambda: bool(engines and engines[0].engine.permits.statistics().held))
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert serving.cancelled()
        assert engines[0].engine.permits.statistics().held == 0

    host(main)


def test_a_second_cancellation_does_not_leave_the_engine_half_closed() -> None:
    class Slow(ScriptedBackend):
        async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
            try:
                await super().run(task_status=task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.1)
                ended.append(True)

    ended: list[bool] = []
    opened = asyncio.Event()

    async def serve() -> None:
        source = PolicySource(
            kind="model", name="slow", make_backend=lambda _v, _p: Slow(takes_tokens=False)
        )
        async with open_engine_asyncio(source):
            opened.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await opened.wait()
        serving.cancel()
        await asyncio.sleep(0.01)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert ended == [True]

    host(main)


def test_a_cancellation_while_it_closes_is_not_swallowed() -> None:
    class Slow(ScriptedBackend):
        async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
            try:
                await super().run(task_status=task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.2)

    async def serve() -> None:
        source = PolicySource(
            kind="model", name="slow", make_backend=lambda _v, _p: Slow(takes_tokens=False)
        )
        async with open_engine_asyncio(source):
            pass

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await asyncio.sleep(0.1)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    host(main)


@pytest.mark.parametrize("busy", [True, False])
def test_a_failure_of_the_engine_reaches_the_host(busy: bool) -> None:
    class Dying(ScriptedBackend):
        def submit(self, request: Generate, done: Any) -> None:
            super().submit(request, done)
            self.die()

    source = PolicySource(
        kind="model", name="dying", make_backend=lambda _v, _p: Dying(takes_tokens=False)
    )

    async def main() -> None:
        async with open_engine_asyncio(source) as engine:
            rollout = engine.rollout(engine.tasks(MAZE, "train", limit=3))
            if busy:
                async for _ in rollout:
                    pass
            else:  # the block waits for something else altogether
                asking = asyncio.create_task(anext(rollout))  # type: ignore[arg-type]
                try:
                    await asyncio.sleep(1000)
                finally:
                    with contextlib.suppress(ActorDead, StopAsyncIteration):
                        await asking

    async def outer() -> None:
        with pytest.raises(RestartLimitExceeded, match="inference"):
            await main()
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()  # the cancellation was ours, and is taken back

    host(outer)


def test_what_cannot_open_says_why() -> None:
    class Broken(ScriptedBackend):
        async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
            raise ConfigError("no such device")

    source = PolicySource(
        kind="model", name="broken", make_backend=lambda _v, _p: Broken(takes_tokens=False)
    )

    async def main() -> None:
        for policy, complaint in (("nonsense", "neither expert"), (source, "no such device")):
            with pytest.raises(ConfigError, match=complaint):
                async with open_engine_asyncio(policy):
                    pytest.fail("it opened")

    host(main)


def test_opening_can_be_cancelled() -> None:
    class Loading(ScriptedBackend):
        async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
            await trio.sleep_forever()

    source = PolicySource(
        kind="model", name="loading", make_backend=lambda _v, _p: Loading(takes_tokens=False)
    )

    async def main() -> None:
        for pause in (0.0, 0.05):

            async def serve() -> None:
                async with open_engine_asyncio(source):
                    pytest.fail("it opened")

            serving = asyncio.create_task(serve())
            await asyncio.sleep(pause)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving

    host(main)


def test_a_call_after_the_end_is_answered_with_actor_dead() -> None:
    async def main() -> None:
        async with open_engine_asyncio("expert") as engine:
            tasks = engine.tasks(MAZE, "train", limit=2)
        for _ in range(2):
            with pytest.raises(ActorDead, match="open a new one"):
                await anext(engine.rollout(tasks))
            with pytest.raises(ActorDead, match="open a new one"):
                await engine.swap_weights(1, "x")

    host(main)


def test_a_call_under_way_when_the_engine_closes_is_answered_too() -> None:
    async def main() -> None:
        async with open_engine_asyncio(scripted(1000.0)) as engine:
            rollout = engine.rollout(engine.tasks(MAZE, "train", limit=2))
            waiting = asyncio.create_task(anext(rollout))  # type: ignore[arg-type]
            await until(lambda: bool(engine.engine.permits.statistics().held))
        with pytest.raises(ActorDead):
            await waiting

    host(main)


def test_weights_are_swapped_from_asyncio() -> None:
    async def main() -> None:
        async with open_engine_asyncio(scripted(swap_seconds=0.01)) as engine:
            await engine.swap_weights(4, "elsewhere")
            tasks = engine.tasks(MAZE, "train", limit=2)
            records = [t async for t in engine.rollout(tasks)]
            assert {t.versions for t in records} == {(4, 4)}
        async with open_engine_asyncio("expert") as engine:
            with pytest.raises(ConfigError, match="no weights"):
                await engine.swap_weights(1, "x")

    host(main)


def test_an_error_in_the_block_closes_the_engine_and_goes_on_as_it_was() -> None:
    asking: list[asyncio.Task[Trajectory]] = []

    async def serve() -> None:
        limits = EngineSettings(shutdown_seconds=5.0)
        async with open_engine_asyncio(scripted(1000.0), settings=limits) as engine:
            rollout = engine.rollout(engine.tasks(MAZE, "train", limit=2))
            asking.append(asyncio.create_task(anext(rollout)))  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            raise KeyError("the host's own")

    async def main() -> None:
        with pytest.raises(KeyError, match="the host's own"):
            await serve()
        with pytest.raises(ActorDead):
            await asking[0]

    host(main)


def test_a_second_engine_on_the_same_loop_opens_when_the_first_has_closed() -> None:
    async def second() -> None:
        async with open_engine_asyncio("expert"):
            pytest.fail("it opened")

    async def main() -> None:
        for _ in range(2):
            async with open_engine_asyncio("expert") as engine:
                with pytest.raises(ConfigError, match="open in this thread already; share it"):
                    await second()
                tasks = engine.tasks(MAZE, "train", limit=2)
                records = [t async for t in engine.rollout(tasks)]
                assert {t.outcome for t in records} == {Outcome.SUCCESS}

    host(main)

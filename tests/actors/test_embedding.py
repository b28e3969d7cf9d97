"""The engine as others hold it: rollouts side by side, slow consumers, early ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import trio
from rollwave.actors.backends.latency import ConstantLatency, UniformLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import Engine, EngineSettings, open_engine
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.protocol import Generate, Sampling
from rollwave.engine.errors import ActorDead, ConfigError, DeadlineExceeded, RestartLimitExceeded
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Wrapper, wrap

MAZE = "maze-grid-v1?style=terse"
WORDS = ("up", "down", "left", "right")


def wander(request: Generate) -> str:
    return WORDS[request.seed % 4]


def scripted(make: Callable[[], ScriptedBackend] | None = None) -> PolicySource:
    def default() -> ScriptedBackend:
        return ScriptedBackend(UniformLatency(0.1, 2.0), answer=wander, takes_tokens=False)

    return PolicySource(
        kind="model", name="scripted", make_backend=lambda _v, _p: (make or default)()
    )


def test_a_rollout_yields_every_attempt_once_and_never_exceeds_its_permits() -> None:
    async def main() -> None:
        async with open_engine(scripted(), concurrency=5) as engine:
            rollout = engine.rollout(engine.tasks(MAZE, "dev", limit=10), attempts=3, wave=4)
            assert rollout.planned == 30
            records = [t async for t in rollout]
            expected = {f"w4/maze-grid_{4000 + n}/{k}" for n in range(10) for k in range(3)}
            assert {t.id for t in records} == expected
            assert len(records) == 30
            assert engine.permits.statistics().peak_held == 5
            assert engine.permits.statistics().held == 0
            snapshot = rollout.snapshot("done")
            assert (snapshot.episodes_done, snapshot.episodes_total) == (30, 30)
            assert snapshot.turns == sum(len(t.turns) for t in records)
            scored = [t for t in records if t.outcome.scored]
            assert snapshot.success_rate == sum(t.success for t in scored) / len(scored)
            with pytest.raises(StopAsyncIteration):  # also when asked again
                await anext(rollout)

    run_simulated(main)


def test_attempts_share_their_environment_and_differ_in_their_seeds() -> None:
    resets: list[int] = []

    class Noting(Wrapper):
        def reset(self, task: Any, seed: int) -> str:
            resets.append(seed)
            return self.inner.reset(task, seed)

    async def main() -> list[Trajectory]:
        async with open_engine("random") as engine:
            spec = engine.use(wrap(resolve(MAZE), Noting))
            return [t async for t in engine.rollout(spec.tasks("train", limit=2), attempts=3)]

    records = run_simulated(main)
    assert len({t.seed for t in records}) == 6
    assert len(resets) == 6
    assert len(set(resets)) == 2


def test_one_rollout_may_mix_environments() -> None:
    other = "wordle-fixed-v1"

    async def main() -> None:
        async with open_engine("expert") as engine:
            tasks = [*engine.tasks(MAZE, "train", limit=3), *engine.tasks(other, "train", limit=2)]
            records = [t async for t in engine.rollout(tasks)]
            assert sorted(t.env for t in records) == sorted(task.env for task in tasks)
            assert {t.outcome for t in records} == {Outcome.SUCCESS}

    run_simulated(main)


def test_two_rollouts_with_equal_ids_are_told_apart() -> None:
    async def main() -> None:
        async with open_engine(scripted(), concurrency=4) as engine:
            tasks = engine.tasks(MAZE, "train", limit=6)
            got: dict[int, list[Trajectory]] = {2: [], 5: []}

            async def play(limit: int) -> None:
                got[limit].extend([t async for t in engine.rollout(tasks, turn_limit=limit)])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(play, 2)
                nursery.start_soon(play, 5)
            for limit, records in got.items():
                assert len({t.id for t in records}) == 6
                assert max(len(t.turns) for t in records) == limit

    run_simulated(main)


def test_a_slow_consumer_slows_its_sessions_and_loses_nothing() -> None:
    live: list[int] = []

    async def main() -> None:
        async with open_engine("expert", concurrency=8) as engine:
            tasks = engine.tasks(MAZE, "train", limit=600)
            rollout = engine.rollout(tasks, attempts=2)
            seen = set()
            async for trajectory in rollout:
                seen.add(trajectory.id)
                await trio.sleep(1.0)
                done = rollout.snapshot().episodes_done
                live.append(done - len(seen))
            assert len(seen) == 1200

    run_simulated(main)
    assert 200 < max(live) <= 256 + 8


def test_a_rollout_that_nobody_takes_from_holds_up_no_other() -> None:
    async def main() -> None:
        async with open_engine("expert", concurrency=4) as engine:
            tasks = engine.tasks(MAZE, "train", limit=400)
            async with engine.rollout(tasks) as idle:
                await anext(idle)
                with trio.fail_after(3600):
                    records = [t async for t in engine.rollout(tasks)]
                assert len(records) == 400
                assert len([t async for t in idle]) == 399

    run_simulated(main)


def test_ready_gives_what_has_ended_without_waiting() -> None:
    async def main() -> None:
        async with open_engine("expert") as engine:
            rollout = engine.rollout(engine.tasks(MAZE, "train", limit=20))
            assert rollout.ready() == []
            first = await anext(rollout)
            await trio.sleep(1)
            rest = rollout.ready()
            assert len({first.id, *(t.id for t in rest)}) == 20
            assert rollout.ready() == []
            assert [t async for t in rollout] == []
            assert rollout.ready() == []

    run_simulated(main)


def test_what_is_skipped_is_not_played() -> None:
    async def main() -> None:
        async with open_engine("expert") as engine:
            tasks = engine.tasks(MAZE, "train", limit=2)
            skip = ["w0/maze-grid_0/0", "w0/maze-grid_1/1", "w9/elsewhere/0"]
            rollout = engine.rollout(tasks, attempts=2, skip=skip)
            assert rollout.planned == 2
            assert {t.id async for t in rollout} == {"w0/maze-grid_0/1", "w0/maze-grid_1/0"}
            everything = [f"w0/maze-grid_{n}/{k}" for n in (0, 1) for k in (0, 1)]
            assert [t async for t in engine.rollout(tasks, attempts=2, skip=everything)] == []

    run_simulated(main)


async def count_live(engine: Engine) -> int:
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()
    return engine.permits.statistics().held


@pytest.mark.parametrize("way", ["break", "error", "cancel"])
def test_leaving_a_rollout_early_cancels_what_still_runs(way: str) -> None:
    async def main() -> None:
        async with open_engine(scripted(), concurrency=16) as engine:
            tasks = engine.tasks(MAZE, "train", limit=100)
            began = trio.current_time()
            with trio.move_on_after(1e9) as scope:
                try:
                    async with engine.rollout(tasks) as rollout:
                        async for _ in rollout:
                            if way == "error":
                                raise KeyError("the consumer's own")
                            if way == "cancel":
                                scope.cancel()
                                await trio.sleep_forever()
                            break
                except KeyError:
                    assert way == "error"
            assert trio.current_time() - began < 30
            assert await count_live(engine) == 0
            assert engine.permits.statistics().granted < 40
            assert engine.ledger.books == {}
            # The engine goes on: the next rollout has all the permits.
            records = [t async for t in engine.rollout(tasks[:20], wave=1)]
            assert len(records) == 20
            assert all(t.outcome.scored for t in records)

    run_simulated(main)


def test_many_sessions_are_cancelled_at_once_not_one_by_one() -> None:
    async def main() -> None:
        slow = scripted(lambda: ScriptedBackend(ConstantLatency(100.0), takes_tokens=False))
        async with open_engine(slow, concurrency=500) as engine:
            async with engine.rollout(engine.tasks(MAZE, "train", limit=500)) as rollout:
                with trio.move_on_after(50):
                    await anext(rollout)
                assert rollout.snapshot().sessions_live == 500
                began = trio.current_time()
            assert trio.current_time() == began
            assert await count_live(engine) == 0

    run_simulated(main)


def test_a_rollout_that_is_cancelled_before_it_has_a_permit_ends() -> None:
    async def main() -> None:
        slow = scripted(lambda: ScriptedBackend(ConstantLatency(10.0), takes_tokens=False))
        async with open_engine(slow, concurrency=2) as engine:
            tasks = engine.tasks(MAZE, "train", limit=4)
            async with engine.rollout(tasks) as first, trio.open_nursery() as nursery:
                second = engine.rollout(tasks)
                nursery.start_soon(anext, first)
                await trio.sleep(1)

                @nursery.start_soon
                async def cancel() -> None:
                    await trio.sleep(1)
                    await engine.cancel(2)

                assert [t async for t in second] == []
                assert trio.current_time() == 2.0

    run_simulated(main)


def test_those_who_iterate_when_the_engine_closes_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []
    taken: list[Trajectory] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with open_engine(scripted(), concurrency=3) as engine:
                rollout = engine.rollout(engine.tasks(MAZE, "train", limit=50))

                @nursery.start_soon
                async def consume() -> None:
                    try:
                        async for trajectory in rollout:
                            taken.append(trajectory)
                    except ActorDead as error:
                        told.append(str(error))

                await trio.sleep(40.0)
            began = trio.current_time()
        assert trio.current_time() - began < 1
        with pytest.raises(ActorDead):
            await anext(engine.rollout(engine.tasks(MAZE, "train", limit=1)))

    run_simulated(main)
    assert told == ["the engine closed before the rollout had ended"]
    assert caplog.messages == []  # closing is no failure of anybody's
    assert taken


def test_a_backend_that_always_dies_ends_the_engine_and_everyone_in_it() -> None:
    class Dying(ScriptedBackend):
        def submit(self, request: Generate, done: Any) -> None:
            super().submit(request, done)
            self.die()

    async def main() -> None:
        async with open_engine(scripted(lambda: Dying(takes_tokens=False))) as engine:
            async for _ in engine.rollout(engine.tasks(MAZE, "train", limit=3)):
                pass

    with pytest.raises(RestartLimitExceeded, match="inference"):
        run_simulated(main)


def test_engines_live_side_by_side_and_share_nothing() -> None:
    async def main() -> None:
        async with open_engine("expert", seed=1) as one, open_engine("random", seed=2) as two:
            tasks = one.tasks(MAZE, "train", limit=5)
            first = [t async for t in one.rollout(tasks)]
            second = [t async for t in two.rollout(tasks)]
            assert {t.policy for t in first} == {"expert"}
            assert {t.policy for t in second} == {"random"}
            assert not {t.seed for t in first} & {t.seed for t in second}

    run_simulated(main)


def test_sampling_and_turn_limit_reach_the_episode() -> None:
    asked: list[Sampling] = []

    def note(request: Generate) -> str:
        asked.append(request.sampling)
        return "up"

    async def main() -> None:
        source = scripted(lambda: ScriptedBackend(answer=note, takes_tokens=False))
        async with open_engine(source) as engine:
            sampling = Sampling(0.3, 7, stop=("!",))
            tasks = engine.tasks(MAZE, "train", limit=1)
            (t,) = [t async for t in engine.rollout(tasks, sampling=sampling, turn_limit=2)]
            assert (t.temperature, len(t.turns), t.truncation) == (0.3, 2, "turns")

    run_simulated(main)
    assert asked == [Sampling(0.3, 7, stop=("!",))] * 2


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"turn_seconds": 0.0}, "turn_seconds"),
        ({"episode_seconds": float("nan")}, "episode_seconds"),
        ({"shutdown_seconds": -1.0}, "shutdown_seconds"),
    ],
)
def test_limits_that_cannot_work_name_their_key(kwargs: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        EngineSettings(**kwargs)


def test_a_rollout_that_nobody_begins_leaves_no_book() -> None:
    async def main() -> None:
        async with open_engine("expert") as engine:
            tasks = engine.tasks(MAZE, "train", limit=2)
            dropped = [engine.rollout(tasks) for _ in range(3)]
            begun = engine.rollout(tasks)
            await anext(begun)
            assert len(engine.ledger.books) == 4
            dropped.clear()
            gc.collect()
            assert list(engine.ledger.books) == [4]
            assert len([t async for t in begun]) == 1
            assert engine.ledger.books == {}

    run_simulated(main)


def test_rollouts_that_cannot_work_are_refused_before_they_begin() -> None:
    async def main() -> None:
        async with open_engine("expert") as engine:
            tasks = engine.tasks(MAZE, "train", limit=2)
            with pytest.raises(ConfigError, match="attempts"):
                engine.rollout(tasks, attempts=0)
            with pytest.raises(ConfigError, match="maze-grid_1 is given twice"):
                engine.rollout([*tasks, tasks[1]])
            with pytest.raises(ConfigError, match="no weights to swap"):
                await engine.swap_weights(1, "somewhere")
            assert engine.batch_fill() == 0.0

    run_simulated(main)


def test_a_backend_that_will_not_end_is_named_when_the_shutdown_is_over() -> None:
    class Stubborn(ScriptedBackend):
        async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
            try:
                await super().run(task_status=task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(100)

    async def main() -> None:
        source = scripted(lambda: Stubborn(takes_tokens=False))
        async with open_engine(source, settings=EngineSettings(shutdown_seconds=3.0)):
            pass

    with pytest.raises(DeadlineExceeded, match="longer than 3 s: inference"):
        run_simulated(main)

"""Whole rollouts in worker processes: the same records as without, whatever dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from rollwave.actors.embedding import EngineSettings, open_engine
from rollwave.engine.errors import ConfigError
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory
from rollwave.envs.base import EnvSpec
from rollwave.envs.hosting import InlineHost
from rollwave.envs.registry import resolve
from rollwave.envs.worker.host import WorkerHost
from rollwave.envs.worker.limits import WorkerLimits
from rollwave.envs.wrappers import Wrapper, wrap

IDS = ("maze-grid-v1", "textcraft-v1")


def deeds(records: Sequence[Trajectory]) -> list[object]:
    """What is in the records, without the times."""
    return sorted(
        (
            record.id,
            record.outcome.value,
            record.reward,
            record.final_observation,
            tuple((turn.observation, turn.action, turn.reward) for turn in record.turns),
        )
        for record in records
    )


async def played(workers: int, *, kill_at: Sequence[int] = ()) -> list[Trajectory]:
    settings = EngineSettings(workers=workers, concurrency=8, turn_seconds=60.0)
    async with open_engine("random", settings=settings) as engine:
        tasks = [task for id in IDS for task in engine.tasks(id, "test", limit=8)]
        records = []
        async for record in engine.rollout(tasks):
            records.append(record)
            if len(records) in kill_at:
                for host in (engine.host(engine.spec(id)) for id in IDS):
                    assert isinstance(host, WorkerHost)
                    for worker in host.workers:
                        if worker.pid:
                            os.kill(worker.pid, signal.SIGKILL)
        return records


async def test_a_rollout_in_workers_is_the_same_rollout_whatever_is_killed() -> None:
    here = await played(0)
    there = await played(1, kill_at=(2, 9))
    assert deeds(there) == deeds(here)
    assert not any(record.outcome is Outcome.FAULT for record in there)


async def test_leaving_an_engine_in_mid_rollout_ends_its_processes() -> None:
    pids: list[int] = []
    with trio.fail_after(30):
        async with open_engine("random", settings=EngineSettings(workers=2)) as engine:
            tasks = engine.tasks("textcraft-v1", "test")
            async with engine.rollout(tasks) as rollout:
                await rollout.__anext__()
                host = engine.host(engine.spec("textcraft-v1"))
                assert isinstance(host, WorkerHost)
                pids += [worker.pid for worker in host.workers if worker.pid]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def cost(spec: EnvSpec, cost: str, **limits: int) -> EnvSpec:
    return replace(spec, cost=cost, workers=WorkerLimits(**limits))  # type: ignore[arg-type]


async def test_the_cost_class_and_the_settings_choose_the_host() -> None:
    spec = resolve("maze-v1")
    async with open_engine("expert") as engine:
        assert isinstance(engine.host(spec), InlineHost)
        engine.use(cost(spec, "worker", workers=3))
        host = engine.host(engine.spec("maze-v1"))
        assert isinstance(host, WorkerHost)
        assert host.processes == 3
        assert host.workers == ()  # nothing is started before a session is wanted
    async with open_engine(settings=EngineSettings(workers=5)) as engine:
        host = engine.host(cost(spec, "inline", workers=3, memory_mib=77))
        assert isinstance(host, WorkerHost)
        assert (host.processes, host.limits.memory_mib) == (5, 77)


async def test_what_cannot_work_is_refused_when_the_rollout_is_made() -> None:
    async with open_engine("expert", concurrency=50) as engine:
        spec = engine.use(cost(resolve("maze-v1"), "worker", workers=2, sessions_per_worker=20))
        with pytest.raises(ConfigError, match="50 live sessions of maze-v1 do not fit in 2 work"):
            engine.rollout(spec.tasks("train"))
        engine.use(wrap(cost(spec, "worker"), lambda env: Wrapper(env)))
        with pytest.raises(ConfigError, match="maze-v1 cannot run in a worker process"):
            engine.rollout(spec.tasks("train"))
    with pytest.raises(ConfigError, match="workers must be 0 or more"):
        EngineSettings(workers=-1)


def test_on_virtual_time_there_are_no_processes() -> None:
    async def main() -> None:
        async with open_engine("expert", settings=EngineSettings(workers=2)) as engine:
            assert isinstance(engine.host(engine.spec("maze-v1")), InlineHost)

    run_simulated(main)

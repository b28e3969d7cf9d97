"""Every environment of the registry is the same world in a worker process."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from rollwave.engine.errors import EnvironmentFault
from rollwave.envs.base import Environment, StepResult, Task
from rollwave.envs.hosting import Hosted, InlineHost
from rollwave.envs.laws import broken, check
from rollwave.envs.registry import BUILT_IN, resolve
from rollwave.envs.worker.host import WorkerHost


async def transcript(session: Hosted, task: Task, seed: int) -> list[object]:
    """What a session says to a player that asks for everything and often errs."""
    chance = random.Random(seed)
    said: list[object] = [await session.reset(task, seed)]
    for _ in range(12):
        listed = list(await session.available_actions())
        said.append(listed)
        hint = await session.expert()
        said.append(hint)
        action = chance.choice([hint or "?", chance.choice(listed or ["?"]), "nonsense \x00é"])
        result = await session.step(action)
        said.append(result)
        if result.done:
            with pytest.raises(EnvironmentFault) as caught:
                await session.step(action)
            said.append(str(caught.value))
            break
    await session.close()
    return said


@pytest.mark.parametrize("id", sorted(BUILT_IN))
async def test_a_worker_answers_as_the_world_does_here(id: str, open_host: Any) -> None:
    spec = resolve(id)
    tasks = [spec.tasks(split)[0] for split in spec.splits]
    async with open_host(spec) as host:
        for seed, task in enumerate(tasks):
            there = await transcript(await host.open(), task, seed)
            assert there == await transcript(await InlineHost(spec.make).open(), task, seed)


class Through(Environment):
    """A session in a worker, as a plain object again, for a thread beside the loop."""

    def __init__(self, host: WorkerHost) -> None:
        self.session: Hosted = trio.from_thread.run(host.open)
        self.said = ""
        self.closed = False

    def reset(self, task: Task, seed: int) -> str:
        self.said = trio.from_thread.run(self.session.reset, task, seed)
        return self.said

    def step(self, action: str) -> StepResult:
        result: StepResult = trio.from_thread.run(self.session.step, action)
        self.said = result.observation
        return result

    def observation(self) -> str:
        if self.closed:
            raise EnvironmentFault("this session is closed")
        return self.said

    def available_actions(self) -> Sequence[str]:
        actions: Sequence[str] = trio.from_thread.run(self.session.available_actions)
        return actions

    def expert(self) -> str | None:
        hint: str | None = trio.from_thread.run(self.session.expert)
        return hint

    def close(self) -> None:
        self.closed = True
        trio.from_thread.run(self.session.close)


async def test_every_law_holds_through_a_worker(open_host: Any) -> None:
    spec = resolve("maze-grid-v1?size=3")
    async with open_host(spec) as host:
        make: Callable[[], Environment] = lambda: Through(host)  # noqa: E731
        through = replace(spec, make=make, cost="worker")
        results = await trio.to_thread.run_sync(lambda: check(through, examples=3, seed=1))
        assert results
        assert not broken(results)

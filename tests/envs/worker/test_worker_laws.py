"""Every environment of the registry is the same world in a worker process."""

from __future__ import annotations

import random
from typing import Any

import pytest
from rollwave.engine.errors import EnvironmentFault
from rollwave.envs.base import Task
from rollwave.envs.hosting import Hosted, InlineHost
from rollwave.envs.registry import BUILT_IN, resolve


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

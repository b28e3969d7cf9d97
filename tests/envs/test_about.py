"""What a world tells programs about its task arrives, whichever way the session is reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from rollwave.engine.errors import EnvironmentFault
from rollwave.envs.agentgym.dialects import DIALECTS
from rollwave.envs.agentgym.remote import remote_spec
from rollwave.envs.answers import require_facts
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.hosting import InlineHost
from rollwave.envs.registry import resolve
from rollwave.envs.through import Through, beside
from rollwave.envs.transports import TRANSPORTS, carried
from rollwave.envs.wrappers import TurnLimit, wrap

LOOK = {"task_type": "look_at_obj_in_light"}


def looking() -> Task:
    """The first of ALFWorld's tasks that wants something looked at in the light."""
    from rollwave.envs.alfworld.tasks import wanted

    return Task("alfworld-v1", next(n for n in range(2420) if wanted(n).kind == "look"))


def test_worlds_tell_nothing_unless_they_say_so() -> None:
    env = resolve("maze-v1").make()
    env.reset(Task("maze-v1", 3), 0)
    assert env.about() == {}


def test_a_wrapper_passes_it_on() -> None:
    env = wrap(resolve("alfworld-v1"), lambda inner: TurnLimit(inner, 5)).make()
    with pytest.raises(EnvironmentFault, match="not reset"):
        env.about()
    env.reset(looking(), 0)
    assert env.about() == LOOK


@pytest.mark.parametrize("over", sorted(TRANSPORTS))
def test_it_travels_over_every_transport(over: str) -> None:
    with carried(resolve("alfworld-v1"), over) as there:
        env = there.spec.make()
        env.reset(looking(), 0)
        assert env.about() == LOOK
        env.close()


async def test_on_the_loop_and_before_the_first_reset() -> None:
    session = await InlineHost(resolve("alfworld-v1").make).open()
    with pytest.raises(EnvironmentFault, match="not reset"):
        await session.about()
    await session.reset(looking(), 0)
    assert await session.about() == LOOK


class Odd(Environment):
    """Tells what cannot be sent."""

    facts: ClassVar[Mapping[str, Any]] = {"score": 0.5}

    def reset(self, task: Task, seed: int) -> str:
        return "Begin."

    def step(self, action: str) -> StepResult:
        return StepResult("", terminated=True)

    def observation(self) -> str:
        return ""

    def available_actions(self) -> list[str]:
        return []

    def about(self) -> Mapping[str, Any]:
        return self.facts


@pytest.mark.parametrize("value", [0.5, None, b"x", "half \ud800", ["list"], True])
def test_facts_are_texts_and_whole_numbers(value: Any) -> None:
    with pytest.raises(EnvironmentFault, match=r"about.s place"):
        require_facts({"place": value})
    assert require_facts({"place": "x", "count": 3}) == {"place": "x", "count": 3}


def test_a_server_that_tells_other_things_is_not_believed() -> None:
    from rollwave.envs.agentgym.conversation import Talk

    talk = Talk(DIALECTS["sciworld"], 0)
    flow = talk.reset(4)
    next(flow)
    answer = {"task_name": "boil", "var_num": [4], "task_description": "Boil.", "observation": "A"}
    with pytest.raises(StopIteration) as end:
        flow.send(answer)
    assert end.value.value == "Boil.\nA"
    assert talk.facts == {"task_name": "boil", "task_description": "Boil."}


def test_a_world_that_tells_what_cannot_be_sent_is_at_fault() -> None:
    spec = EnvSpec(id="alfworld-v1", make=Odd, splits={"test": range(3)})
    with carried(spec, "http") as there:
        env = there.spec.make()
        with pytest.raises(EnvironmentFault, match="about's score"):
            env.reset(Task(spec.id, 0), 0)


def test_a_session_of_a_server_refuses_to_tell_before_its_reset() -> None:
    env = remote_spec("http://127.0.0.1:9", "alfworld", tasks=3).make()
    with pytest.raises(EnvironmentFault, match="not on a task"):
        env.about()
    env.close()


def test_beside_a_loop() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[InlineHost]:
        yield InlineHost(resolve("alfworld-v1").make)

    with beside(opened) as (loop, host):
        env = Through(loop, host)
        env.reset(looking(), 0)
        assert env.about() == LOOK
        env.close()

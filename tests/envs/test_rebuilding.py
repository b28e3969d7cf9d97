"""A rebuilt session answers as if nothing had died, or says why it cannot go on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import EnvironmentFault, EnvironmentLost
from rollwave.engine.testing import run_simulated
from rollwave.envs.base import StepResult, Task
from rollwave.envs.hosting import Hosted
from rollwave.envs.rebuilding import MAX_LOSSES, MAX_LOSSES_OF_OTHERS, Rebuilding

TASK = Task("sum-v1", 4)


class Processes:
    """Where sessions run; the calls numbered in `deaths` die, before or after their effect."""

    def __init__(self, deaths: dict[int, bool] | None = None) -> None:
        self.deaths = deaths or {}
        """By number of the call, over all sessions: whether it is the session's own fault."""
        self.calls = 0
        self.opened: list[Sum] = []
        self.noise = 0

    async def open(self) -> Hosted:
        await self.live()
        self.opened.append(Sum(self))
        return self.opened[-1]

    async def live(self) -> None:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        if self.calls in self.deaths:
            raise EnvironmentLost("it died", blamed=self.deaths[self.calls])

    @property
    def left_open(self) -> int:
        return sum(not session.closed for session in self.opened)


class Sum(Hosted):
    """Adds up the lengths of its actions."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.total = -1
        self.closed = False

    async def reset(self, task: Task, seed: int) -> str:
        await self.processes.live()
        self.total = task.index + seed
        return str(self.total + self.processes.noise)

    async def step(self, action: str) -> StepResult:
        await self.processes.live()
        self.total += len(action)
        if action == "noise":
            return StepResult(str(len(self.processes.opened)))
        if action == "raise":
            raise ValueError(action)
        return StepResult(str(self.total), float(self.total))

    async def expert(self) -> str | None:
        await self.processes.live()
        return "x" * (self.total % 5)

    async def available_actions(self) -> Sequence[str]:
        await self.processes.live()
        return (str(self.total),)

    async def close(self) -> None:
        self.closed = True
        await self.processes.live()

    def abandon(self) -> None:
        self.closed = True


async def transcript(processes: Processes, script: Sequence[str]) -> list[object]:
    session = Rebuilding(processes.open, replay=True)
    await session.open()
    said: list[object] = [await session.reset(TASK, 7)]
    for word in script:
        if word == "?":
            said.append((await session.expert(), tuple(await session.available_actions())))
        elif word == "again":
            said.append(await session.reset(TASK, 8))
        else:
            said.append(await session.step(word))
    await session.close()
    return said


scripts = st.lists(st.sampled_from(["", "a", "longer", "?", "again"]), max_size=12)


@given(
    script=scripts,
    others=st.sets(st.integers(1, 60), max_size=12),
    own=st.sets(st.integers(1, 60), max_size=MAX_LOSSES - 1),
)
def test_losses_change_no_answer(script: list[str], others: set[int], own: set[int]) -> None:
    deaths = dict.fromkeys(others, False) | dict.fromkeys(own, True)
    processes = Processes(deaths)

    async def main() -> tuple[list[object], list[object]]:
        return await transcript(processes, script), await transcript(Processes(), script)

    lossy, calm = run_simulated(main)
    assert lossy == calm
    assert processes.left_open == 0


@given(script=scripts, deaths=st.dictionaries(st.integers(1, 40), st.booleans()))
def test_whatever_dies_it_ends_and_leaves_nothing_open(
    script: list[str], deaths: dict[int, bool]
) -> None:
    processes = Processes(deaths)

    async def main() -> None:
        session = Rebuilding(processes.open, replay=True)
        try:
            await session.reset(TASK, 7)
            for word in script:
                await session.step(word)
            await session.close()
        except EnvironmentLost:
            assert session.losses >= MAX_LOSSES
            session.abandon()

    run_simulated(main)
    assert processes.left_open == 0


async def test_a_call_that_always_dies_ends() -> None:
    for blamed, most in ((True, MAX_LOSSES), (False, MAX_LOSSES_OF_OTHERS)):
        processes = Processes()
        session = Rebuilding(processes.open, replay=True)
        await session.reset(TASK, 7)
        processes.deaths = dict.fromkeys(range(3, 10_000), blamed)
        with pytest.raises(EnvironmentLost, match=f"{most} processes died") as caught:
            await session.step("a")
        assert caught.value.blamed == blamed
        with pytest.raises(EnvironmentLost):
            await session.expert()
        processes.deaths = {}
        assert await session.reset(TASK, 8) == "12"  # another episode


async def test_other_answers_in_the_replay_are_named() -> None:
    for action, where in (("noise", "action 1"), ("x", "the reset")):
        processes = Processes()
        session = Rebuilding(processes.open, replay=True)
        await session.reset(TASK, 7)
        await session.step("a")
        await session.step(action)
        processes.noise = 1
        processes.deaths = {processes.calls + 1: False}
        if action == "noise":
            processes.noise = 0
        with pytest.raises(EnvironmentLost, match=f"{where}.* answered differently"):
            await session.step("a")
        await session.close()
        assert processes.left_open == 0


async def test_without_replay_only_what_was_not_answered_is_repeated() -> None:
    processes = Processes({1: True, 3: False})  # the opening, and the reset
    session = Rebuilding(processes.open, replay=False)
    assert await session.reset(TASK, 7) == "11"
    processes.deaths = {processes.calls + 1: False}
    with pytest.raises(EnvironmentLost, match="would not rebuild it"):
        await session.step("a")


async def test_what_the_world_raises_is_no_loss() -> None:
    processes = Processes()
    session = Rebuilding(processes.open, replay=True)
    await session.reset(TASK, 7)
    with pytest.raises(ValueError, match="raise"):
        await session.step("raise")
    assert len(processes.opened) == 1


async def test_closed_is_closed_and_a_loss_in_closing_is_none() -> None:
    processes = Processes()
    session = Rebuilding(processes.open, replay=True)
    await session.reset(TASK, 7)
    processes.deaths = {processes.calls + 1: True}
    await session.close()
    await session.close()
    with pytest.raises(EnvironmentFault, match="is closed"):
        await session.step("a")
    assert len(processes.opened) == 1

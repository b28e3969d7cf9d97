"""Synchronous sessions beside a loop: closed with it, and never waited for without an end."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from rollwave.engine.errors import DeadlineExceeded, EnvironmentFault
from rollwave.envs.base import StepResult, Task
from rollwave.envs.hosting import Host, Hosted
from rollwave.envs.through import Loop, Through, beside


class Echo(Hosted):
    """Answers with what was said; "wait" is never answered."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def reset(self, task: Task, seed: int) -> str:
        return f"{task.index} {seed}"

    async def step(self, action: str) -> StepResult:
        if action == "wait":
            await trio.sleep_forever()
        return StepResult(action)

    async def expert(self) -> str | None:
        return "advice"

    async def available_actions(self) -> Sequence[str]:
        return ("wait",)

    async def about(self) -> dict[str, str | int]:
        return {"of": "it"}

    async def close(self) -> None:
        self.log.append("closed")

    def abandon(self) -> None:
        self.log.append("abandoned")


class Echoes(Host):
    def __init__(self) -> None:
        self.log: list[str] = []

    async def open(self) -> Hosted:
        return Echo(self.log)


@asynccontextmanager
async def echoes(host: Echoes) -> AsyncIterator[Echoes]:
    try:
        yield host
    finally:
        host.log.append("host left")


def test_a_session_behind_a_loop_is_an_environment() -> None:
    host = Echoes()
    with beside(lambda: echoes(host)) as (loop, same):
        assert same is host
        env = Through(loop, host)
        with pytest.raises(EnvironmentFault, match="not on a task"):
            env.observation()
        assert env.reset(Task("echo-v1", 3), 7) == "3 7" == env.observation()
        assert env.step("x") == StepResult("x")
        assert (env.observation(), env.expert(), env.available_actions()) == (
            "x",
            "advice",
            ("wait",),
        )
        env.close()
        env.close()
        with pytest.raises(EnvironmentFault):
            env.observation()
    assert host.log == ["closed", "host left"]
    assert "rollwave loop" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(EnvironmentFault, match="has ended"):
        env.step("x")


def test_a_session_that_nobody_holds_is_abandoned_once() -> None:
    host = Echoes()
    with beside(lambda: echoes(host)) as (loop, _):
        Through(loop, host)
        gc.collect()
        loop.call(trio.lowlevel.checkpoint)
        assert host.log == ["abandoned"]
    assert host.log == ["abandoned", "host left"]


def test_a_call_has_a_deadline() -> None:
    host = Echoes()

    async def impatient() -> Loop:
        return Loop(trio.lowlevel.current_trio_token(), seconds=0.01)

    with beside(lambda: echoes(host)) as (loop, _):
        env = Through(loop.call(impatient), host)
        with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
            env.step("wait")
        assert env.step("x") == StepResult("x")


def test_what_cannot_be_opened_says_why() -> None:
    @asynccontextmanager
    async def refused() -> AsyncIterator[None]:
        async with trio.open_nursery():  # whose group is taken off
            raise EnvironmentFault("no room")
            yield

    with pytest.raises(EnvironmentFault, match="no room"), beside(refused):
        pytest.fail("it was not opened")


def test_a_loop_that_breaks_fails_the_call_and_tells_its_reason() -> None:
    broken = trio.Event()

    @asynccontextmanager
    async def breaking() -> AsyncIterator[Echoes]:
        async def break_() -> None:
            await broken.wait()
            raise OSError("the machine is on fire")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_)
            yield Echoes()

    def play() -> None:
        with beside(breaking) as (loop, host):
            env = Through(loop, host)
            loop.tell(broken.set)
            with pytest.raises(EnvironmentFault, match="has ended"):
                env.step("wait")
            raise EnvironmentFault("what came of it is not the reason")

    with pytest.raises(OSError, match="on fire"):
        play()


async def test_beside_a_loop_of_ones_own() -> None:
    host = Echoes()
    loop = Loop(trio.lowlevel.current_trio_token())

    def play() -> str:
        env = Through(loop, host)
        env.reset(Task("echo-v1", 0), 0)
        said = env.step("hello").observation
        env.close()
        return said

    assert await trio.to_thread.run_sync(play) == "hello"
    assert host.log == ["closed"]


@contextmanager
def interrupted_after(begun: threading.Event) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread once that has happened, by a real signal."""

    def raise_it(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.get_ident()

    def kill() -> None:
        begun.wait()
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        begun.set()
        killer.join()
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_call_does_not_go_on_beside_the_next_one() -> None:
    begun, log = threading.Event(), []

    async def first() -> None:
        try:
            begun.set()
            await trio.sleep_forever()
        finally:
            log.append("first ended")

    async def second() -> None:
        log.append("second")

    with beside(lambda: echoes(Echoes())) as (loop, _):
        with interrupted_after(begun):
            loop.call(first)
        loop.call(second)
    assert log == ["first ended", "second"]


def test_an_interrupt_while_it_is_opened_leaves_no_thread() -> None:
    begun, log = threading.Event(), []

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            begun.set()
            await trio.sleep_forever()
            yield
        finally:
            log.append("closed")

    with interrupted_after(begun), beside(slow):
        pytest.fail("it was opened")
    assert log == ["closed"]
    assert "rollwave loop" not in [thread.name for thread in threading.enumerate()]

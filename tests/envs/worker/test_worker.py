"""Sessions in real processes: answered as in this one, and rebuilt when a process dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio
from rollwave.engine.errors import (
    AskFailed,
    ConfigError,
    DeadlineExceeded,
    EnvironmentFault,
    EnvironmentLost,
    FaultKind,
    MessageTooLarge,
    classify,
)
from rollwave.envs.base import Task
from rollwave.envs.hosting import Host, Hosted, InlineHost
from rollwave.envs.registry import resolve
from rollwave.envs.worker.host import WorkerHost

TASK = Task("troubled-v1", 3, "train")


async def begun(host: WorkerHost, seed: int = 0) -> Hosted:
    session = await host.open()
    assert await session.reset(TASK, seed) == f"task 3 seed {seed}"
    return session


async def says(session: Hosted, action: str) -> str:
    return (await session.step(action)).observation


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (of another process)
        await trio.sleep(0.01)


# ---- answers -------------------------------------------------------------------------


async def test_many_sessions_share_one_process(troubled: Any, open_host: Any) -> None:
    answers: dict[int, list[str]] = {}

    async def play(host: WorkerHost, number: int) -> None:
        session = await begun(host, number)
        answers[number] = [await says(session, "x" * (number + turn)) for turn in range(5)]
        await session.close()

    async with open_host(troubled.spec()) as host:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(play, host, number)
        (only,) = host.workers
        assert (await only.census()).sessions == 0
        assert only.opened == 100
    for number, said in answers.items():
        assert said == [f"{t + 1}: {number + t} {120 * (number + t)}" for t in range(5)]


async def test_sessions_spread_over_processes(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), workers=2) as host:
        sessions = []
        async with trio.open_nursery() as nursery:

            async def add() -> None:
                sessions.append(await begun(host))

            for _ in range(6):
                nursery.start_soon(add)
        pids = {(await says(session, "pid")).split()[1] for session in sessions}
        assert len(pids) == 2
        assert sorted(worker.load for worker in host.workers) == [3, 3]


async def test_everything_a_session_can_be_asked(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await host.open()
        with pytest.raises(EnvironmentFault, match="reset the session first"):
            await session.step("count")
        with pytest.raises(ConfigError, match="no task 100"):
            await session.reset(Task("troubled-v1", 100), 0)
        await session.reset(TASK, 2**62)
        assert await session.expert() == "count"
        assert tuple(await session.available_actions()) == ("count", "more")
        assert await says(session, "torch") == "1: False"
        for turn in range(2, 10):
            result = await session.step("count")
            assert (result.terminated, result.success) == (turn == 9, turn == 9)
        await session.close()
        with pytest.raises(EnvironmentFault, match="is closed"):
            await session.step("count")


async def test_a_fault_reads_as_if_the_world_ran_here(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await begun(host)
        for action, text in [
            ("raise it", "ValueError: it"),
            ("raise half \udc80 of it", "ValueError: half ? of it"),
            ("script", "SystemExit: 3"),
            ("garbage", "EnvironmentFault: step answered int, not text"),
        ]:
            with pytest.raises((AskFailed, EnvironmentFault)) as caught:
                await session.step(action)
            assert classify(caught.value) == (FaultKind.ENVIRONMENT, text)
        with pytest.raises(EnvironmentFault, match="text that is not Unicode"):
            await session.step("half")
        assert await says(session, "count") == "6: 5 553"  # and it goes on


async def test_any_text_is_an_action(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await begun(host)
        texts = ["", "\x00", "\ud800", "a\udfffb", "\U0010ffff" * 999, "x" * 3_000_000]
        for turn, text in enumerate(texts, 1):
            assert await says(session, text) == f"{turn}: {len(text)} {sum(map(ord, text))}"
        with pytest.raises(MessageTooLarge, match="the other side accepts"):
            await session.step("x" * (65 << 20))
        with pytest.raises(MessageTooLarge):
            await session.step(f"big {65 << 20}")
        assert await says(session, "pid")


async def test_what_a_world_prints_harms_nothing(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await begun(host)
        for _ in range(3):
            assert (await says(session, "say \x93\xffhello")).endswith("say")
        with pytest.raises(EnvironmentLost, match=r"exit code 5; it said last: .*hello"):
            await session.step("exit 5")


async def test_a_process_that_a_world_forks_never_answers(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await begun(host)
        assert [await says(session, "fork") for _ in range(3)] == ["1: fork", "2: fork", "3: fork"]
        assert (await says(session, "pid")).split()[1] == str(host.workers[0].pid)
        assert (await host.workers[0].census()).sessions == 1


# ---- deaths --------------------------------------------------------------------------


async def test_a_killed_process_costs_nobody_anything(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        sessions = [await begun(host, seed) for seed in range(3)]
        for turn in range(1, 9):
            for session in sessions:
                assert await says(session, "abc") == f"{turn}: 3 294"
            if turn % 3 == 0:
                os.kill(host.workers[0].pid, signal.SIGKILL)
        for session in sessions:
            assert (await session.step("abc")).success
            await session.close()
        assert (await host.workers[0].census()).sessions == 0


@pytest.mark.parametrize(
    ("action", "how"),
    [("exit 7", "ended with exit code 7"), ("segfault", "was killed by SIGSEGV")],
)
async def test_an_action_that_kills_every_worker_ends(
    action: str, how: str, troubled: Any, open_host: Any
) -> None:
    async with open_host(troubled.spec()) as host:
        other, culprit = await begun(host), await begun(host)
        assert await says(other, "abc") == "1: 3 294"
        with pytest.raises(EnvironmentLost, match=how + r".*\(3 processes died in its calls\)"):
            await culprit.step(action)
        assert classify(EnvironmentLost("x"))[0] is FaultKind.ENVIRONMENT
        assert await says(other, "abc") == "2: 3 294"
        await culprit.close()


async def test_a_stuck_step_is_killed_and_named(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), step_seconds=0.5) as host:
        other, culprit = await begun(host), await begun(host)
        said: list[str] = []

        async def wait() -> None:
            with pytest.raises(
                DeadlineExceeded, match=r"step\('sleep '\) of troubled_3 took longer than 0.5 s"
            ):
                await culprit.step("sleep ")

        async def queue_behind() -> None:
            said.append(await says(other, "abc"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(lambda: host.workers[0].busy)
            nursery.start_soon(queue_behind)  # it waits for longer than a step may take
        assert said == ["1: 3 294"]


async def test_a_stopped_process_is_killed(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), step_seconds=0.2) as host:
        session = await begun(host)
        assert await says(session, "abc") == "1: 3 294"
        os.kill(host.workers[0].pid, signal.SIGSTOP)
        assert await says(session, "abc") == "2: 3 294"


async def test_what_is_not_deterministic_is_not_rebuilt(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(deterministic=False)) as host:
        early, late = await host.open(), await begun(host)
        os.kill(host.workers[0].pid, signal.SIGKILL)
        with pytest.raises(EnvironmentLost, match="would not rebuild"):
            await late.step("count")
        assert await early.reset(TASK, 1) == "task 3 seed 1"
        with pytest.raises(EnvironmentLost, match="would not rebuild"):
            await late.step("count")
        await late.close()


async def test_a_replay_with_other_answers_is_refused(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await begun(host)
        await session.step("pid")
        os.kill(host.workers[0].pid, signal.SIGKILL)
        with pytest.raises(EnvironmentLost, match=r"action 0 \('pid'\) was answered differently"):
            await session.step("count")
        await session.close()


async def test_kills_in_the_middle_change_no_answer(open_host: Any) -> None:
    """A world of the registry, several sessions, deaths while calls are under way."""
    spec = resolve("maze-grid")
    tasks = spec.tasks("test", limit=6)
    taken = 0

    async def play(host: Host, task: Task, tick: Callable[[], None]) -> list[object]:
        session = await host.open()
        record: list[object] = [await session.reset(task, 1)]
        result = None
        while result is None or not result.done:
            tick()
            result = await session.step(await session.expert() or "")
            record.append(result)
        await session.close()
        return record

    async def play_all(host: Host, tick: Callable[[], None]) -> dict[int, list[object]]:
        records: dict[int, list[object]] = {}

        async def one(task: Task) -> None:
            records[task.index] = await play(host, task, tick)

        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(one, task)
        return records

    async with open_host(spec) as host:

        def tick() -> None:
            nonlocal taken
            taken += 1
            if taken in (4, 11):  # before its call leaves; the others' are under way
                for worker in host.workers:
                    if worker.pid:
                        os.kill(worker.pid, signal.SIGKILL)

        there = await play_all(host, tick)
    assert taken > 11
    assert there == await play_all(InlineHost(spec.make), lambda: None)

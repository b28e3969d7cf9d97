"""The life of worker processes: started when wanted, recycled, given up, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.engine.errors import ConfigError, EnvironmentFault, EnvironmentLost
from rollwave.envs.base import Task
from rollwave.envs.hosting import Hosted
from rollwave.envs.worker import host as worker_host
from rollwave.envs.worker import process as worker_process
from rollwave.envs.worker.host import Owner, WorkerHost
from rollwave.envs.worker.limits import WorkerLimits

TASK = Task("troubled-v1", 3, "train")


async def begun(host: WorkerHost) -> Hosted:
    session = await host.open()
    await session.reset(TASK, 0)
    return session


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 (of another process)
            await trio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process of that number runs, or is a zombie that nobody reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# ---- start and end -------------------------------------------------------------------


async def test_no_process_before_a_session_and_none_after_the_system(
    troubled: Any, open_host: Any
) -> None:
    before = len(descriptors())
    async with open_host(troubled.spec(), workers=3) as host:
        assert host.workers == ()
        sessions = [await begun(host) for _ in range(3)]
        pids = [worker.pid for worker in host.workers]
        assert len(set(pids)) == 3
        await sessions[0].close()
    assert not any(map(alive, pids))
    assert len(descriptors()) <= before + 1  # trio keeps one for its threads
    with pytest.raises(EnvironmentFault, match="engine is closing"):
        await sessions[1].step("count")


async def test_a_process_that_does_not_end_is_killed(
    troubled: Any, open_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "CLOSE_SECONDS", 0.05)
    async with open_host(troubled.spec()) as host, trio.open_nursery() as nursery:
        session = await begun(host)
        nursery.start_soon(session.step, "sleep")
        await until(lambda: host.workers[0].busy)
        pid = host.workers[0].pid
        nursery.cancel_scope.cancel()
    assert not alive(pid)


async def test_what_a_world_started_ends_with_its_worker(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        session = await begun(host)
        await session.step("stray")
        group = host.workers[0].pid
        assert alive(-group)
        await session.close()

    def members() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True

    await until(lambda: not members())


PARENT = """
import sys, trio
from rollwave.engine.child import ChildSpec
from rollwave.engine.system import ActorSystem
from rollwave.envs.registry import resolve
from rollwave.envs.worker.host import Owner, WorkerHost

async def main():
    async with ActorSystem() as system:
        owner = Owner()
        await system.start(ChildSpec("workers", owner.actor))
        host = WorkerHost(owner, resolve("maze"))
        await host.open()
        print(host.workers[0].pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with its call")
async def test_a_worker_does_not_outlive_a_killed_engine() -> None:
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.receive_some(100))
    parent.kill()
    await parent.wait()
    await parent.stdout.aclose()

    def ended() -> bool:
        # Nobody may be there to reap it: a zombie has ended too.
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(") ")[2][0] == "Z"

    await until(ended)


# ---- sessions that are given up ------------------------------------------------------


async def test_an_abandoned_session_is_closed_when_its_call_returns(
    troubled: Any, open_host: Any
) -> None:
    async with open_host(troubled.spec()) as host:
        given_up, other = await begun(host), await begun(host)
        with trio.move_on_after(0.01):
            await given_up.step("big 1000000")
        given_up.abandon()
        given_up.abandon()
        assert (await other.step("closed")).observation == "1: 1"
        assert (await host.workers[0].census()).sessions == 1
        assert host.workers[0].load == 1
        with pytest.raises(EnvironmentFault, match="is closed"):
            await given_up.step("count")


async def test_opening_that_is_cancelled_leaves_nothing(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec()) as host:
        with trio.move_on_after(0.001) as scope:  # while the process starts
            await host.open()
        assert scope.cancelled_caught
        session = await begun(host)
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.open()
        assert (await host.workers[0].census()).sessions == 1
        assert host.workers[0].load == 1
        await session.close()


async def test_a_session_waits_for_a_seat(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), sessions_per_worker=2) as host:
        assert host.seats == 2
        first, _second = await begun(host), await begun(host)
        third: list[Hosted] = []

        async def wait() -> None:
            third.append(await begun(host))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not third
            await first.close()
        assert (await third[0].step("count")).reward == 0.25


# ---- recycling -----------------------------------------------------------------------


async def test_a_worker_is_recycled_after_its_episodes(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), episodes_per_worker=2) as host:
        first, second = await begun(host), await begun(host)
        old = host.workers[0]
        assert old.draining
        third = await begun(host)  # the successor takes it, while the old one drains
        (new,) = (worker for worker in host.workers if worker is not old)
        assert (old.load, new.load) == (2, 1)
        await first.close()
        assert (await second.step("count")).observation.startswith("1:")
        await second.close()
        assert old not in host.workers
        await until(lambda: not alive(old.pid))
        assert (await third.step("count")).observation.startswith("1:")


async def test_a_worker_above_its_memory_is_drained(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), memory_mib=150, step_seconds=0.5) as host:
        leaky = await begun(host)
        await leaky.step("leak 200")
        old = host.workers[0]
        await until(lambda: old.draining)
        other = await begun(host)
        assert old.load == 1
        await leaky.close()
        assert old not in host.workers
        await other.close()


async def test_a_step_without_bound_on_memory_is_refused(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(), memory_mib=200) as host:
        session = await begun(host)
        with pytest.raises((EnvironmentFault, Exception)) as caught:
            await session.step("grow")
        assert "MemoryError" in str(caught.value) or isinstance(caught.value, EnvironmentLost)
        session.abandon()
        fresh = await begun(host)
        assert (await fresh.step("count")).reward == 0.25


# ---- worlds that cannot be ------------------------------------------------------------


class Poison:
    """Kills whatever imports it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)

    def __call__(self) -> Any:
        raise NotImplementedError


class Unloadable(Poison):
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("no_such_module",)


async def test_a_world_that_kills_every_process_is_given_up(
    troubled: Any, open_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_host, "INTENSITY", worker_host.RestartIntensity(2, 60.0))
    monkeypatch.setattr(worker_host, "PAUSE_SECONDS", 0.5)
    async with open_host(troubled.spec(make=Poison())) as host:
        async with trio.open_nursery() as nursery:
            for _ in range(3):

                async def refused() -> None:
                    with pytest.raises(EnvironmentFault, match=r"given up: .*exit code 9"):
                        await host.open()

                nursery.start_soon(refused)
        with pytest.raises(EnvironmentFault, match="given up"):
            await host.open()  # at once: no process is started
        assert host.workers == ()


async def test_the_pause_after_giving_up_has_an_end(
    troubled: Any, open_host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker_host, "INTENSITY", worker_host.RestartIntensity(0, 60.0))
    monkeypatch.setattr(worker_host, "PAUSE_SECONDS", 0.0)
    async with open_host(troubled.spec(make=troubled.OnceBroken(str(tmp_path)))) as host:
        session = None
        while session is None:
            try:
                session = await begun(host)
            except EnvironmentFault as error:
                assert "given up" in str(error)  # noqa: PT017
        assert (await session.step("count")).reward == 0.25
    assert (tmp_path / "broken").exists()


class Slow(Poison):
    """Takes for ever to import."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (1e6,)


async def test_a_world_that_is_never_imported_is_given_up(
    troubled: Any, open_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_host, "INTENSITY", worker_host.RestartIntensity(0, 60.0))
    async with open_host(troubled.spec(make=Slow()), start_seconds=0.3) as host:
        with pytest.raises(EnvironmentFault, match=r"the start of .*took longer than 0.3 s"):
            await host.open()
        assert host.workers == ()


async def test_what_cannot_be_imported_there_is_refused_clearly(
    troubled: Any, open_host: Any
) -> None:
    async with open_host(troubled.spec(make=Unloadable())) as host:
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"ModuleNotFoundError.*'no_such_module'.*check"):
                await host.open()


async def test_two_hosts_of_one_environment(troubled: Any, open_host: Any) -> None:
    """As when an engine is given another spec for an id while sessions of the first live."""
    async with open_host(troubled.spec()) as first:
        second = WorkerHost(first._owner, troubled.spec(), WorkerLimits(workers=1))
        sessions = [await begun(first), await begun(second)]
        assert len({(await session.step("pid")).observation for session in sessions}) == 2


async def test_no_owner_no_worker(troubled: Any) -> None:
    with pytest.raises(EnvironmentFault, match="the engine has not started"):
        await WorkerHost(Owner(), troubled.spec()).open()


@pytest.mark.parametrize(
    "limits",
    [
        {"workers": -1},
        {"sessions_per_worker": 0},
        {"step_seconds": 0.0},
        {"step_seconds": float("inf")},
        {"memory_mib": 0},
        {"episodes_per_worker": 0},
        {"niceness": 20},
        {"start_seconds": float("nan")},
    ],
)
def test_limits_are_finite(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        WorkerLimits(**limits)


async def test_signals_find_their_names(troubled: Any, open_host: Any) -> None:
    async with open_host(troubled.spec(deterministic=False)) as host:
        session = await begun(host)
        os.kill(host.workers[0].pid, signal.SIGTERM)
        with pytest.raises(EnvironmentLost, match="was killed by SIGTERM"):
            await session.step("count")

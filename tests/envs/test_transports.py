"""The laws over every transport: sound worlds keep them there, and broken carriage is found."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from rollwave.engine.errors import ConfigError
from rollwave.envs import transports
from rollwave.envs.base import EnvSpec, StepResult, Task
from rollwave.envs.hosting import Host, Hosted, InlineHost
from rollwave.envs.laws import CARRIED, LAWS, LawResult, broken, check
from rollwave.envs.registry import resolve
from rollwave.envs.transports import TRANSPORTS, carried
from rollwave.envs.wrappers import Wrapper, wrap

OVER = sorted(TRANSPORTS)


def by_law(results: Sequence[LawResult]) -> dict[str, LawResult]:
    return {result.law: result for result in results}


@pytest.mark.parametrize("over", OVER)
def test_a_sound_world_keeps_every_law_over_every_transport(over: str) -> None:
    found = by_law(check("maze-grid-v1?size=3", examples=3, over=over))
    assert [str(result) for result in broken(found.values())] == []
    assert set(found) == {*LAWS, CARRIED}
    assert {law for law in found if found[law].skipped} == {
        "tells no secret",  # there is none
        "snapshot equals replay",  # no transport carries snapshots
    }


def test_on_agentgyms_wire_some_laws_do_not_apply_and_say_why() -> None:
    found = by_law(check("textcraft-v1", examples=2, over="http"))
    assert not broken(found.values())
    assert "count on from 0" in found["splits are disjoint"].skipped


@pytest.mark.parametrize("id", ["textcraft-v1", "wordle-v1"])
def test_on_our_own_wire_no_number_stands_for_another_task(id: str) -> None:
    found = by_law(check(id, examples=1, over="batched", only=()))
    assert found["splits are disjoint"].held
    assert not found["splits are disjoint"].skipped


def test_each_task_of_wordle_shows_its_own_words_over_the_wire() -> None:
    spec = resolve("wordle-v1")
    with carried(spec, "http") as there:
        env, here = there.spec.make(), there.here.make()
        for split in ("train", "unseen"):  # whose words differ
            task = spec.tasks(split)[0]
            assert env.reset(task, 0) == here.reset(task, 0)
        env.close()


def test_the_secrets_of_a_world_are_looked_for_over_the_wire_too() -> None:
    found = by_law(check("wordle-fixed-v1", examples=2, over="batched", only={"tells no secret"}))
    assert not found["tells no secret"].skipped


class Half(Wrapper):
    """Pays half for a solved task."""

    def step(self, action: str) -> StepResult:
        result = self.inner.step(action)
        return StepResult(
            result.observation, result.reward / 2, result.terminated, success=result.success
        )


@pytest.mark.parametrize("over", ["http", "batched"])
def test_success_that_pays_less_than_one_is_carried(over: str) -> None:
    spec = wrap(resolve("maze-grid-v1?size=3"), Half)
    found = check(spec, examples=3, over=over, only={"expert keeps its word"})
    assert [str(result) for result in broken(found)] == []


class Halved(Hosted):
    """Whose wire loses every second letter."""

    def __init__(self, inner: Hosted) -> None:
        self.inner = inner

    async def reset(self, task: Task, seed: int) -> str:
        return await self.inner.reset(task, seed)

    async def step(self, action: str) -> StepResult:
        result = await self.inner.step(action)
        return StepResult(result.observation[::2], result.reward, result.terminated)

    async def expert(self) -> str | None:
        return await self.inner.expert()

    async def available_actions(self) -> Sequence[str]:
        return await self.inner.available_actions()

    async def close(self) -> None:
        await self.inner.close()

    def abandon(self) -> None:
        self.inner.abandon()


class Losing(InlineHost):
    async def open(self) -> Hosted:
        return Halved(await super().open())


def test_a_transport_that_changes_answers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def opened(spec: EnvSpec) -> AsyncIterator[Host]:
        yield Losing(spec.make)

    lossy = replace(TRANSPORTS["worker"], name="lossy", open=opened)
    monkeypatch.setattr(transports, "TRANSPORTS", {"lossy": lossy})
    found = by_law(check("maze-grid-v1?size=3", examples=5, over="lossy", only={"deterministic"}))
    assert found["deterministic"].held
    failure = found[CARRIED].failure
    assert "over lossy" in failure
    assert failure.endswith("seed 0\n  actions: ['move up']")  # the fewest there can be


def test_sessions_that_only_a_cycle_holds_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the laws would use up the seats of a world, which nobody gives back."""
    monkeypatch.setattr(transports, "_MANY", 3)
    opened: list[Host] = []

    @asynccontextmanager
    async def watched(spec: EnvSpec) -> AsyncIterator[Host]:
        host = InlineHost(spec.make)
        opened.append(host)
        yield host

    transport = replace(TRANSPORTS["worker"], name="watched", open=watched)
    monkeypatch.setattr(transports, "TRANSPORTS", {"watched": transport})
    with carried(resolve("maze-v1"), "watched") as there:
        alive = []
        for _ in range(20):
            env = there.spec.make()
            env.itself = env  # type: ignore[attr-defined]
            alive.append(env._leave)  # type: ignore[attr-defined]
            del env
        assert sum(leave.alive for leave in alive) <= 5


def test_the_twin_of_a_session_that_nobody_holds_is_closed() -> None:
    closed: list[str] = []

    class Closing(Wrapper):
        def close(self) -> None:
            closed.append("one")
            super().close()

    with carried(wrap(resolve("wordle-fixed-v1"), Closing), "batched") as there:
        env = there.spec.make()
        env.reset(there.spec.tasks("train", limit=1)[0], 0)
        assert env.secrets()
        assert closed == []
        del env
        gc.collect()
        assert "one" in closed


def test_what_cannot_be_carried_is_named() -> None:
    with pytest.raises(ConfigError, match="there are: in-process, worker, http, batched"):
        check("maze-v1", over="pigeon")
    with pytest.raises(ConfigError, match="on a server already"):
        check("http://127.0.0.1:1/maze?tasks=26", over="http")
    local = EnvSpec(id="local-v1", make=lambda: resolve("maze-v1").make(), splits={"test": [0]})
    with pytest.raises(ConfigError, match="top of a module"):
        check(local, over="worker")


async def test_beside_a_loop_that_runs_already() -> None:
    """The laws are synchronous; in a thread they do their work beside any loop."""
    results = await trio.to_thread.run_sync(
        lambda: check("maze-grid-v1?size=3", examples=1, over="batched", only={"isolated"})
    )
    assert not broken(results)

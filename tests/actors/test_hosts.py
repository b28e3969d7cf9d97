"""Who made a host closes it: after an engine on a server nothing of it is left there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from rollwave.actors.embedding import open_engine
from rollwave.engine.errors import MissingDependency
from rollwave.envs.agentgym.client import AgentGymHost
from rollwave.envs.agentgym.listener import Listener, open_listeners
from rollwave.envs.agentgym.server import WireServer
from rollwave.envs.agentgym.sessions import Served
from rollwave.envs.base import StepResult
from rollwave.envs.hosting import Host, InlineHost, closing
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Wrapper, wrap


class Trodden(Wrapper):
    """Says when somebody acts."""

    acted = trio.Event()

    def step(self, action: str) -> StepResult:
        self.acted.set()
        return self.inner.step(action)


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """A real server; gives the address of its world, and sees that nothing is left of us."""
    wire = WireServer([wrap(resolve("maze-grid-v1"), Trodden)])
    listener = Listener(wire)
    sockets = await open_listeners("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, sockets)
        yield f"http://127.0.0.1:{sockets[0].socket.getsockname()[1]}/maze-grid?tasks=9"
        assert wire.sessions.counts.opened.total() > 0
        assert wire.sessions.counts.ended == {"closed": wire.sessions.counts.opened.total()}
        with trio.fail_after(10):
            while len(listener):  # what we closed, the server hears of in its own time
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_an_engine_plays_a_server_by_its_address_and_leaves_nothing_there() -> None:
    async with serving() as env, open_engine("random", concurrency=4) as engine:
        tasks = engine.tasks(env, "test")
        ended = [one async for one in engine.rollout(tasks, turn_limit=4)]
        assert [one.fault for one in ended] == [None] * 9
        assert {len(one.turns) for one in ended} <= {1, 2, 3, 4}


async def test_an_engine_that_is_cancelled_in_the_middle_leaves_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trodden, "acted", trio.Event())
    async with serving() as env:
        with trio.CancelScope() as scope:
            async with (
                open_engine("random", concurrency=1) as engine,
                trio.open_nursery() as nursery,
            ):

                async def play() -> None:
                    async for _ in engine.rollout(engine.tasks(env, "test")):
                        pass

                nursery.start_soon(play)
                await Trodden.acted.wait()
                scope.cancel()
        assert scope.cancelled_caught


async def test_a_session_whose_close_was_cancelled_is_closed_with_its_host() -> None:
    async with serving() as env:
        spec = resolve(env)
        assert spec.host is not None
        host = spec.host()
        assert isinstance(host, AgentGymHost)
        async with closing([host]):
            session = await host.open()
            with trio.CancelScope() as scope:
                scope.cancel()
                await session.close()
            assert scope.cancelled_caught


class Broken(InlineHost):
    """Cannot be closed."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(resolve("maze-v1").make)
        self.log = log

    async def aclose(self) -> None:
        self.log.append("closed")
        raise OSError("it would not close")


async def test_a_host_is_closed_by_who_made_it_and_by_nobody_else() -> None:
    given, made = list[str](), list[str]()
    spec = replace(resolve("maze-v1"), host=lambda: Broken(made))
    async with open_engine("random") as engine:
        engine.use(spec, Broken(given))
        engine.host(spec)

    async def play() -> None:
        async with open_engine("random") as engine:
            for id in ("one-v1", "two-v1"):
                hosts: set[Host] = {engine.host(engine.use(replace(spec, id=id))) for _ in "ab"}
                assert len(hosts) == 2  # who uses a spec anew has a new host, and both are closed

    with pytest.raises(OSError, match="would not close"):
        await play()
    assert (len(given), len(made)) == (0, 4)


def test_what_the_machine_lacks_is_said_before_the_first_episode() -> None:
    """In an episode it would only be a fault, and a run of nothing but faults."""

    def lacking() -> None:
        raise MissingDependency("install a java")

    spec = replace(resolve("maze-v1"), needs=lacking)

    async def played() -> None:
        async with open_engine("expert") as engine:
            engine.use(spec)
            async with engine.rollout(spec.tasks("train", limit=1)) as rollout:
                async for _ in rollout:
                    pytest.fail("an episode was played")

    with pytest.raises(MissingDependency, match="install a java"):
        trio.run(played)
    with pytest.raises(MissingDependency, match="install a java"):
        Served.of(spec, trio.CapacityLimiter(1))

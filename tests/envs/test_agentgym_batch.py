"""The batched wire: the same worlds, many calls in a request, and answers that get lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from rollwave.engine.codec import Decoder, encode
from rollwave.engine.errors import ConfigError, EnvironmentFault, EnvironmentLost
from rollwave.engine.http_transport import TrioTransport
from rollwave.engine.testing import run_simulated
from rollwave.envs.agentgym.asgi import Application
from rollwave.envs.agentgym.batch import (
    MAX_CALLS,
    PATH,
    Answers,
    Ask,
    Batch,
    Close,
    Closed,
    Failed,
    Open,
    Opened,
    Reset,
    Said,
    Step,
    Told,
)
from rollwave.envs.agentgym.batch_client import BatchHost, open_batches
from rollwave.envs.agentgym.listener import Listener, open_listeners
from rollwave.envs.agentgym.server import Request, WireServer
from rollwave.envs.base import Task
from rollwave.envs.registry import resolve

MAZE = resolve("maze-v1")
CRAFT = resolve("textcraft-v1")


async def send(wire: WireServer, *calls: object) -> list[object]:
    body = encode(Batch(tuple(calls)))  # type: ignore[arg-type]
    reply = await wire.answer(Request(b"POST", PATH.encode(), b"", body))
    assert reply.status == 200, reply.body
    return list(Decoder(Answers).decode(reply.body).replies)


async def test_an_episode_and_its_mistakes() -> None:
    wire = WireServer([MAZE])
    assert await send(wire, Open(""), Open("maze"), Open("chess")) == [
        Opened(0),
        Opened(1),
        Failed("world", "no world 'chess' here; there are: maze"),
    ]
    first, second = await send(wire, Reset(0, 3), Reset(1, 99))
    assert isinstance(first, Said)
    assert isinstance(second, Failed)
    assert second.kind == "task"
    (expert,) = await send(wire, Ask(0, True))
    (actions,) = await send(wire, Ask(0, False))
    assert isinstance(expert, Told)
    assert isinstance(actions, Told)
    assert expert.expert in actions.actions
    said, never = await send(wire, Step(0, 0, str(expert.expert)), Step(1, 0, "x"))
    assert isinstance(said, Said)
    assert isinstance(never, Failed)
    assert await send(wire, Step(0, 0, "move down")) == [said]  # the same step again
    assert await send(wire, Close(0), Close(1)) == [Closed(), Closed()]
    assert await send(wire, Close(0)) == [Closed()]
    assert len(wire.sessions) == 0


async def test_what_is_no_batch_is_refused() -> None:
    wire = WireServer([MAZE])
    twice = encode(Batch((Step(0, 0, ""), Close(0))))
    many = encode(Batch(tuple(Close(n) for n in range(MAX_CALLS + 1))))
    for body in (b"", b"\x90", b"\xff" * 9, twice, many, encode(Close(1))):
        reply = await wire.answer(Request(b"POST", PATH.encode(), b"", body))
        assert reply.status == 422


@asynccontextmanager
async def host(wire: WireServer, **options: object) -> AsyncIterator[BatchHost]:
    transport = httpx.ASGITransport(Application(wire))
    async with open_batches("http://s", transport=transport, **options) as opened:  # type: ignore[arg-type]
        yield opened


async def test_many_sessions_share_few_requests_and_play_as_at_home() -> None:
    wire = WireServer([CRAFT])

    async def play(opened: BatchHost, index: int) -> None:
        session, local = await opened.open(), CRAFT.make()
        task = Task(CRAFT.id, index)
        assert await session.reset(task, 0) == local.reset(task, 0)
        for _ in range(60):
            action = await session.expert()
            assert action == local.expert()
            assert action is not None
            assert tuple(await session.available_actions()) == tuple(local.available_actions())
            result = await session.step(action)
            assert result == local.step(action)
            if result.done:
                break
        assert result.success
        with pytest.raises(EnvironmentFault):
            await session.step("inventory")
        await session.close()
        with pytest.raises(EnvironmentFault, match="closed"):
            await session.step("inventory")

    async with host(wire, env="textcraft", connections=2) as opened:
        async with trio.open_nursery() as nursery:
            for index in range(0, 560, 14):
                nursery.start_soon(play, opened, index)
        calls = wire.sessions.counts.steps.total() * 3
        assert opened.requests < calls / 5
    assert len(wire.sessions) == 0


class Losing(httpx.ASGITransport):
    """Delivers every request, and loses the answers whose numbers are given."""

    def __init__(self, wire: WireServer, *lost: int) -> None:
        super().__init__(Application(wire))
        self.lost = set(lost)
        self.number = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        number, self.number = self.number, self.number + 1
        response = await super().handle_async_request(request)
        if number in self.lost:
            raise httpx.ReadError("injected: the answer was lost")
        return response


def test_a_lost_answer_is_given_again_without_acting_twice() -> None:
    async def main() -> None:
        wire = WireServer([CRAFT])
        losing = Losing(wire, 1, 3, 4, 6)
        async with open_batches("http://s", transport=losing) as opened:
            session = await opened.open()
            await session.reset(Task(CRAFT.id, 3), 0)
            for count in (1, 2):
                await session.step("get 1 birch logs")
                said = await session.step("inventory")
                assert said.observation == f"Inventory: [birch logs] ({count})"
        assert wire.sessions.counts.steps.total() == 4
        assert losing.number > 6

    run_simulated(main)


def test_a_server_that_does_not_come_back_loses_the_sessions() -> None:
    async def main() -> None:
        losing = Losing(WireServer([CRAFT]), *range(1, 99))
        async with open_batches("http://s", transport=losing, rebuild=False) as opened:
            session = await opened.open()
            with pytest.raises(EnvironmentLost, match="is the server running"):
                await session.reset(Task(CRAFT.id, 3), 0)

    run_simulated(main)


async def test_a_session_that_the_server_lost_goes_on_in_another_one() -> None:
    wire = WireServer([MAZE])
    async with host(wire) as opened:
        session = await opened.open()
        await session.reset(Task(MAZE.id, 3), 0)
        first = await session.step("move up")
        wire.sessions.close_all()  # as after a restart
        local = MAZE.make()
        local.reset(Task(MAZE.id, 3), 0)
        assert local.step("move up") == first
        assert await session.step("move up") == local.step("move up")
        assert wire.sessions.counts.opened.total() == 2


async def test_a_session_that_nobody_waits_for_any_more_is_not_left_behind() -> None:
    wire = WireServer([MAZE])

    class Gate(httpx.ASGITransport):
        opened = trio.Event()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            await self.opened.wait()
            return response

    gate = Gate(Application(wire))
    async with open_batches("http://s", transport=gate, connections=1) as opened:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.open)
            await trio.testing.wait_all_tasks_blocked()
            assert len(wire.sessions) == 1
            nursery.start_soon(opened.open)  # waits for its turn
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        gate.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(wire.sessions) == 0
        assert wire.sessions.counts.opened.total() == 1


async def test_refusals_have_their_reasons() -> None:
    wire = WireServer([MAZE], token="t")
    async with host(wire, env="maze") as opened:
        with pytest.raises(ConfigError, match="401"):
            await opened.open()
    async with host(wire, env="chess", token="t") as opened:
        with pytest.raises(ConfigError, match="no world 'chess'"):
            await opened.open()
    async with host(wire, token="t") as opened:
        session = await opened.open()
        with pytest.raises(ConfigError):
            await session.reset(Task(MAZE.id, 99), 0)
        await session.reset(Task(MAZE.id, 1), 0)
        await session.step("half a character: \ud800")
        session.abandon()
        await trio.testing.wait_all_tasks_blocked()
    assert len(wire.sessions) == 0
    with pytest.raises(ConfigError, match="connections"):
        async with open_batches("http://s", connections=0):
            pass


async def test_over_real_sockets() -> None:
    wire = WireServer([MAZE])
    listener = Listener(wire)
    sockets = await open_listeners("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, sockets)
        url = f"http://127.0.0.1:{sockets[0].socket.getsockname()[1]}"
        async with open_batches(url, "maze", connections=2) as opened:
            session = await opened.open()
            assert await session.reset(Task(MAZE.id, 3), 0)
            await session.close()
        nursery.cancel_scope.cancel()
    assert len(listener) == 0


async def test_hypercorn_serves_the_same() -> None:
    hypercorn = pytest.importorskip("hypercorn.trio")
    from hypercorn.config import Config

    wire = WireServer([CRAFT])
    config = Config()
    config.bind = ["127.0.0.1:0"]
    ended = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.serve(
                Application(wire), config, shutdown_trigger=ended.wait, task_status=task_status
            )

        (url,) = await nursery.start(serve)
        async with httpx.AsyncClient(base_url=url, transport=TrioTransport()) as client:
            made = (await client.post("/create", json={})).json()
            done = await client.post("/step", json={"id": made["id"], "action": "inventory"})
            assert done.json()["observation"] == "Inventory: You are not carrying anything."
            assert (await client.post("/step", content=b"x" * (2 << 20))).status_code == 413
            assert (await client.get("/step")).headers["allow"] == "POST"
        ended.set()
    assert len(wire.sessions) == 0

"""Our client: every dialect against our own server, and servers that behave badly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from rollwave.engine.errors import (
    ConfigError,
    DeadlineExceeded,
    EnvironmentFault,
    EnvironmentLost,
)
from rollwave.engine.http_transport import TrioTransport
from rollwave.engine.testing import run_simulated
from rollwave.envs.agentgym.asgi import Application
from rollwave.envs.agentgym.client import AgentGymHost, address
from rollwave.envs.agentgym.dialects import DIALECTS, Dialect
from rollwave.envs.agentgym.remote import RemoteEnvironment, remote_spec
from rollwave.envs.agentgym.server import WireServer
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.registry import resolve


class Countdown(Environment):
    """Task n is solved by action n, counted from 0."""

    def reset(self, task: Task, seed: int) -> str:
        self.left = task.index + 1
        return "Task.\nBegin."

    def step(self, action: str) -> StepResult:
        self.left -= 1
        over = not self.left
        return StepResult(f"You said {action}.", float(over), over, success=over)

    def observation(self) -> str:
        return ""

    def available_actions(self) -> list[str]:
        return ["s h i r e", "g i v e s"]


def server(dialect: Dialect) -> WireServer:
    name = dialect.world or dialect.name
    spec = EnvSpec(id=f"{name}-v1", make=Countdown, splits={"test": range(9)})
    return WireServer([spec])


def reached(wire: WireServer) -> httpx.ASGITransport:
    return httpx.ASGITransport(Application(wire))


@pytest.mark.parametrize("name", DIALECTS)
async def test_an_episode_in_every_dialect(name: str) -> None:
    dialect = DIALECTS[name]
    wire = server(dialect)
    url = f"http://server{dialect.prefix}"
    async with AgentGymHost(url, dialect, transport=reached(wire)) as host:
        session = await host.open()
        for index in (1, 0):
            first = await session.reset(Task("x", index), 0)
            assert first.endswith("Begin.") or name in ("wordle", "alfworld")
            rewards = []
            for _ in range(index + 1):
                result = await session.step("say: a, b!")
                rewards.append(result.reward)
            assert result.done
            assert result.success
            assert sum(rewards) == 1
            said = "say a, b" if dialect.cleans else "say: a, b!"
            assert result.observation == f"You said {said}."
            with pytest.raises(EnvironmentFault, match="reset it first"):
                await session.step("more")
        await session.close()
        await session.close()
        with pytest.raises(EnvironmentFault, match="closed"):
            await session.reset(Task("x", 0), 0)
    assert len(wire.sessions) == (0 if dialect.closes else 1)


async def test_ids_are_used_again_where_there_is_no_close() -> None:
    dialect = DIALECTS["webshop"]
    wire = server(dialect)
    async with AgentGymHost("http://server", dialect, transport=reached(wire)) as host:
        for _ in range(5):
            first, second = await host.open(), await host.open()
            await first.reset(Task("x", 0), 0)
            await first.close()
            second.abandon()
    assert wire.sessions.counts.opened.total() == 2


async def test_what_was_abandoned_is_closed_with_the_next_call() -> None:
    wire = server(DIALECTS["textcraft"])
    async with AgentGymHost("http://server", "textcraft", transport=reached(wire)) as host:
        session = await host.open()
        session.abandon()
        await host.open()
        assert wire.sessions.counts.opened.total() == 2
        assert len(wire.sessions) == 1


async def test_first_observations_are_worded_as_agentgyms_client_does() -> None:
    maze = resolve("maze-v1")
    local = maze.make().reset(Task("maze-v1", 3), 0)
    transport = reached(WireServer([maze]))
    async with AgentGymHost("http://s/maze", "maze", transport=transport) as host:
        session = await host.open()
        assert await session.reset(Task("maze-v1", 3), 0) == local
        assert "move up" in await session.available_actions()


async def test_wordles_first_observation_lists_the_words() -> None:
    spec = resolve("wordle-v1?words=30")
    local = spec.make().reset(Task("wordle-v1", 3), 0)
    async with AgentGymHost(
        "http://s/wordle", "wordle", transport=reached(WireServer([spec]))
    ) as host:
        session = await host.open()
        assert await session.reset(Task("wordle-v1", 3), 0) == local


class Scripted(httpx.AsyncBaseTransport):
    """Answers as a list says: a status with a body, or an error to raise."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            return httpx.Response(answer[0], content=answer[1])
        return httpx.Response(200, content=json.dumps(answer).encode())


BEGUN = [{"id": 4, "observation": ""}, {"id": 4, "observation": "begin"}]


def scripted(
    *answers: object, rebuild: bool = False, dialect: str = "textcraft"
) -> tuple[Scripted, AgentGymHost]:
    transport = Scripted(*answers)
    return transport, AgentGymHost("http://s", dialect, transport=transport, rebuild=rebuild)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ({"error": "KeyError: 'x'"}, EnvironmentFault, "KeyError"),
        ({"error": "The id 4 is not valid."}, EnvironmentLost, "not valid"),
        ({"error": "The task with environment 4 has been deleted."}, EnvironmentLost, "deleted"),
        ((500, b"Internal Server Error"), EnvironmentFault, "answered 500 and no JSON"),
        ((401, b'{"error": "Show the token", "kind": "token"}'), ConfigError, "Show the token"),
        ((422, b'{"detail": []}'), EnvironmentFault, "answered 422"),
        ((200, b"\xff"), EnvironmentFault, "no JSON"),
        ((200, b"[" * 10_000), EnvironmentFault, "no JSON"),
        ([], EnvironmentFault, "no object"),
        ({"observation": "x", "done": False}, EnvironmentFault, "the reward None"),
        ({"observation": "x", "reward": True, "done": False}, EnvironmentFault, "True"),
        ((200, b'{"observation": "x", "reward": 1e999, "done": false}'), EnvironmentFault, "JSON"),
        ({"observation": 5, "reward": 0, "done": False}, EnvironmentFault, "int, not text"),
        ({"observation": "x", "reward": 0, "done": 0}, EnvironmentFault, "not a bool"),
        (httpx.ReadTimeout("late"), DeadlineExceeded, "late"),
    ],
    ids=range(15),
)
async def test_errors_that_a_server_hides_are_found(
    answer: object, error: type[Exception], text: str
) -> None:
    _, host = scripted(*BEGUN, answer)
    session = await host.open()
    await session.reset(Task("x", 0), 0)
    with pytest.raises(error, match=text):
        await session.step("x")


async def test_a_site_that_was_not_reached_is_no_observation() -> None:
    _, host = scripted({"env_idx": 0}, {"observation": "TimeoutError"}, dialect="webarena")
    session = await host.open()
    with pytest.raises(EnvironmentFault, match="not reached"):
        await session.reset(Task("x", 0), 0)


def test_a_step_is_never_sent_twice_and_what_is_harmless_is() -> None:
    async def main() -> None:
        lost = httpx.ReadError("gone")
        transport, host = scripted(lost, BEGUN[0], (503, b""), BEGUN[1], lost)
        session = await host.open()
        await session.reset(Task("x", 0), 0)
        with pytest.raises(EnvironmentLost, match="was lost"):
            await session.step("x")
        assert transport.asked == ["/create", "/create", "/reset", "/reset", "/step"]
        assert trio.current_time() == pytest.approx(0.2)  # two pauses

    run_simulated(main)


def test_a_step_that_cannot_have_arrived_is_sent_again() -> None:
    async def main() -> None:
        refused = httpx.ConnectError("refused")
        done = {"observation": "x", "reward": 0, "done": False}
        transport, host = scripted(*BEGUN, refused, done, *[refused] * 4)
        session = await host.open()
        await session.reset(Task("x", 0), 0)
        assert (await session.step("x")).observation == "x"
        with pytest.raises(EnvironmentFault, match="is the server running"):
            await session.step("x")
        assert transport.asked.count("/step") == 6

    run_simulated(main)


async def test_a_lost_session_goes_on_in_another_one_only_where_that_was_asked_for() -> None:
    said = {"observation": "one", "reward": 0, "done": False}
    after = {"observation": "two", "reward": 1, "done": True}
    again = [True, {"id": 5, "observation": ""}, {"id": 5, "observation": "begin"}, said, after]
    transport, host = scripted(*BEGUN, said, httpx.ReadError("gone"), *again, rebuild=True)
    session = await host.open()
    await session.reset(Task("x", 0), 0)
    await session.step("a")
    assert (await session.step("b")).observation == "two"
    assert transport.asked[-4:] == ["/create", "/reset", "/step", "/step"]
    assert "/close" in transport.asked  # of the one that was lost, as far as it exists


async def test_a_server_that_bears_one_call_gets_one_at_a_time() -> None:
    class Counting(httpx.AsyncBaseTransport):
        inside = most = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.inside += 1
            self.most = max(self.most, self.inside)
            await trio.lowlevel.checkpoint()
            self.inside -= 1
            return httpx.Response(200, content=b"0")

    transport = Counting()
    host = AgentGymHost("http://s", "todo", transport=transport)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(host.open)
    assert transport.most == 1


def test_no_more_sessions_than_a_server_can_tell_apart() -> None:
    async def main() -> None:
        wire = server(DIALECTS["sqlgym"])
        host = AgentGymHost("http://s", "sqlgym", transport=reached(wire))
        sessions = [await host.open() for _ in range(8)]
        with trio.move_on_after(60) as scope:
            await host.open()
        assert scope.cancelled_caught
        await sessions[0].close()
        await host.open()
        assert wire.sessions.counts.opened.total() == 8

    run_simulated(main)


Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A server of one handler on a free port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = b'{"id": 1, "observation": "begin", "reward": 0, "done": false}'


def sized(body: bytes) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    "ending",
    [
        b"",  # hangs up without a word
        HEAD[:30],
        HEAD + b"content-length: 500\r\n\r\n{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 two hundred\r\n\r\n",
    ],
)
async def test_a_server_that_dies_in_the_middle_loses_the_step_and_no_socket(
    ending: bytes,
) -> None:
    steps = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal steps
        while data := await stream.receive_some():
            if data.startswith(b"POST /step"):
                steps += 1
                await stream.send_all(ending)
                return
            await stream.send_all(sized(WHOLE))

    transport = TrioTransport()
    async with (
        listening(handler) as url,
        AgentGymHost(url, "textcraft", transport=transport) as host,
    ):
        session = await host.open()
        await session.reset(Task("x", 0), 0)
        with pytest.raises(EnvironmentLost, match="was lost"):
            await session.step("x")
        assert steps == 1
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_a_connection_that_was_closed_while_idle_costs_a_reset_nothing() -> None:
    """The server hangs up after each answer, without having said so."""
    served = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal served
        if await stream.receive_some():
            served += 1
            await stream.send_all(sized(WHOLE))

    async with listening(handler) as url, AgentGymHost(url, "textcraft") as host:
        session = await host.open()
        for _ in range(3):
            await session.reset(Task("x", 0), 0)
    assert served >= 4


async def test_chunked_answers_are_read() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await stream.send_all(HEAD + b"transfer-encoding: chunked\r\n\r\n")
            for part in (WHOLE[:7], WHOLE[7:]):
                await stream.send_all(b"%x\r\n%s\r\n" % (len(part), part))
            await stream.send_all(b"0\r\n\r\n")

    async with listening(handler) as url, AgentGymHost(url, "textcraft") as host:
        session = await host.open()
        assert await session.reset(Task("x", 0), 0) == "begin"


async def test_cancelling_leaves_no_connection_behind() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep_forever()

    transport = TrioTransport()
    async with listening(handler) as url:
        host = AgentGymHost(url, "textcraft", transport=transport)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(host.open)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert transport.statistics()["open"] == 0


def test_the_synchronous_session_makes_the_same_calls() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path} {request.content.decode()}")
        done = request.url.path == "/step"
        body = {"id": 1, "observation": "here", "reward": 1, "done": done}
        return httpx.Response(200, content=b"true" if "close" in asked[-1] else json.dumps(body))

    env = RemoteEnvironment("http://s", "textcraft", transport=httpx.MockTransport(answer))
    with pytest.raises(EnvironmentFault):
        env.observation()
    assert env.reset(Task("x", 7), 0) == "here"
    result = env.step("get 1 oak log;")
    assert (result.reward, result.success, env.observation()) == (1, True, "here")
    assert env.available_actions() == ()
    env.close()
    env.close()
    assert asked == [
        "POST /create {}",
        'POST /reset {"id":1,"data_idx":7}',
        'POST /step {"id":1,"action":"get 1 oak log"}',
        'POST /close {"id":1}',
    ]
    with pytest.raises(EnvironmentFault):
        env.step("x")


def test_the_spec_of_a_server_takes_what_our_world_of_that_kind_has() -> None:
    spec = remote_spec("http://h:1", "textcraft", tasks=5)
    ours = resolve("textcraft-v1")
    assert (spec.prompt, spec.turn_limit) == (ours.prompt, ours.turn_limit)
    assert [task.index for task in spec.tasks("test")] == [0, 1, 2, 3, 4]
    assert spec.tasks("test")[3].id == "textcraft-remote_3"
    shop = remote_spec("http://h:1", "webshop", tasks=[7], turn_limit=6)
    assert (shop.prompt, shop.turn_limit) == ((), 6)
    for url, dialect, tasks in (
        ("ftp://h", "textcraft", 1),
        ("h:1", "textcraft", 1),
        ("http://h", "chess", 1),
        ("http://h", "maze", 0),
    ):
        with pytest.raises(ConfigError):
            remote_spec(url, dialect, tasks=tasks)


def test_the_tasks_of_a_server_fall_into_splits_that_share_none() -> None:
    spec = resolve("http://h:1/webshop?tasks=10&dev=4-5&test=8-9")
    assert {name: list(members) for name, members in spec.splits.items()} == {
        "train": [0, 1, 2, 3, 6, 7],
        "dev": [4, 5],
        "test": [8, 9],
    }
    assert list(resolve("http://h:1/webshop?tasks=3&test=0-2").splits) == ["test"]
    for spans, named in (
        ("dev=4-5&test=5-6", "task 5"),
        ("dev=9-10", "no task 10"),
        ("dev=4-40000000000000", "no task 40000000000000"),
        ("dev=5-4", "'5-4'"),
        ("test=3", "'3'"),
        ("test=-3", "'-3'"),
        ("test=a-b", "'a-b'"),
        ("train=1-2", "no option 'train'"),
    ):
        with pytest.raises(ConfigError, match=named):
            resolve(f"http://h:1/webshop?tasks=10&{spans}")


def test_a_password_in_the_address_is_shown_and_not_kept_in_it() -> None:
    url, headers = address("http://me:secret@host:8000/maze/")
    assert url == "http://host:8000/maze"
    assert headers["authorization"] == "Basic bWU6c2VjcmV0"


def test_an_address_alone_is_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLWAVE_TOKEN", "t")
    spec = resolve("http://127.0.0.1:1/maze?tasks=26")
    assert (spec.id, len(spec.splits["test"])) == ("http://127.0.0.1:1/maze?tasks=26", 26)
    assert spec.tasks("test")[3].id == "remote_3"
    assert spec.host is not None
    opened = spec.host()
    assert isinstance(opened, AgentGymHost)
    assert (opened.url, opened.dialect.name) == ("http://127.0.0.1:1/maze", "maze")
    other = resolve("http://h:1?dialect=textcraft&tasks=5&deterministic=true&turn_limit=9")
    assert (other.deterministic, other.turn_limit) == (True, 9)
    ours = resolve("http://h:1/maze-grid?tasks=5")  # AgentGym has none; a server of ours may
    assert ours.host is not None
    opened = ours.host()
    assert isinstance(opened, AgentGymHost)
    assert (opened.dialect.name, opened.dialect.closes) == ("maze-grid", True)
    assert ours.prompt == resolve("maze-grid").prompt
    for wrong, text in (
        ("http://h:1?tasks=5", "no dialect"),
        ("http://h:1/some/where?tasks=5", "no dialect"),
        ("http://h:1/maze?dialect=chess&tasks=5", "no dialect"),
        ("http://h:1/maze", "how many tasks"),
        ("http://h:1/maze?tasks=-1", "how many tasks"),
        ("http://h:1/maze?tasks=5&speed=2", "no option 'speed'"),
        ("http://x:secret@h:1/maze?tasks=5", "ROLLWAVE_TOKEN"),
    ):
        with pytest.raises(ConfigError, match=text):
            resolve(wrong)

"""What a server keeps for its clients: leases, limits, order, and worlds that misbehave."""

from __future__ import annotations

import base64
import json

import pytest
import trio
from rollwave.engine.errors import ConfigError
from rollwave.engine.testing import run_simulated
from rollwave.envs.agentgym.server import Request, WireServer
from rollwave.envs.agentgym.sessions import MAX_WAITING, Limits, Refused
from rollwave.envs.base import EnvSpec, StepResult, Task
from rollwave.envs.hosting import Host, Hosted
from rollwave.envs.registry import resolve


class Slow(Hosted):
    """A world whose calls take virtual seconds, and that says how it was treated."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.inside = 0

    async def reset(self, task: Task, seed: int) -> str:
        return "begin"

    async def step(self, action: str) -> StepResult:
        self.inside += 1
        assert self.inside == 1  # one call at a time
        await trio.sleep(float(action))
        self.inside -= 1
        self.log.append(action)
        return StepResult(action, 1.0)

    async def expert(self) -> str | None:
        return None

    async def available_actions(self) -> list[str]:
        return []

    async def close(self) -> None:
        self.log.append("closed")

    def abandon(self) -> None:
        self.log.append("abandoned")


class SlowHost(Host):
    def __init__(self) -> None:
        self.log: list[str] = []

    async def open(self) -> Hosted:
        return Slow(self.log)


SPEC = EnvSpec(id="slow-v1", make=lambda: None, splits={"test": range(5)})  # type: ignore[arg-type,return-value]


def slow(**limits: float) -> tuple[WireServer, SlowHost]:
    host = SlowHost()
    return WireServer([SPEC], limits=Limits(**limits), hosts={"slow-v1": host}), host  # type: ignore[arg-type]


async def post(wire: WireServer, path: str, **body: object) -> object:
    reply = await wire.answer(Request(b"POST", path.encode(), b"", json.dumps(body).encode()))
    return json.loads(reply.body) | {"status": reply.status} if reply.body[:1] == b"{" else None


def test_calls_on_one_session_follow_each_other_and_others_do_not_wait() -> None:
    async def main() -> None:
        wire, host = slow()
        for id in (0, 1):
            await post(wire, "/create")
            await post(wire, "/reset", id=id, data_idx=0)
        async with trio.open_nursery() as nursery:
            for action in ("3", "1", "2"):
                nursery.start_soon(lambda a=action: post(wire, "/step", id=0, action=a))
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda: post(wire, "/step", id=1, action="0.5"))
        assert host.log == ["0.5", "3", "1", "2"]

    run_simulated(main)


def test_too_many_calls_on_one_session_are_refused() -> None:
    async def main() -> None:
        wire, _ = slow()
        await post(wire, "/create")
        await post(wire, "/reset", id=0, data_idx=0)
        answers: list[object] = []

        async def step() -> None:
            answers.append(await post(wire, "/step", id=0, action="1"))

        async with trio.open_nursery() as nursery:
            for _ in range(MAX_WAITING + 3):
                nursery.start_soon(step)
        refused = [a for a in answers if a.get("kind") == "busy"]  # type: ignore[attr-defined]
        assert len(refused) == 2
        assert {a["status"] for a in refused} == {429}  # type: ignore[index]

    run_simulated(main)


def test_an_idle_session_is_closed_when_its_lease_is_over_and_a_busy_one_is_not() -> None:
    async def main() -> None:
        wire, host = slow(lease_seconds=10, call_seconds=100)
        for id in (0, 1):
            await post(wire, "/create")
            await post(wire, "/reset", id=id, data_idx=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: post(wire, "/step", id=1, action="20"))
            await trio.sleep(11)
            assert wire.sessions.sweep() == 1
            assert host.log == ["abandoned"]
        assert wire.sessions.sweep() == 0  # it was used just now
        answer = await post(wire, "/step", id=0, action="1")
        assert answer["error"] == "The task with environment 0 has been deleted."  # type: ignore[index]
        assert wire.sessions.counts.ended == {"expired": 1}

    run_simulated(main)


def test_a_late_world_is_given_up_with_its_session() -> None:
    async def main() -> None:
        wire, host = slow(call_seconds=5)
        await post(wire, "/create")
        await post(wire, "/reset", id=0, data_idx=0)
        answer = await post(wire, "/step", id=0, action="1000")
        assert answer["kind"] == "late"  # type: ignore[index]
        assert trio.current_time() == 5
        assert host.log == ["abandoned"]
        assert len(wire.sessions) == 0

    run_simulated(main)


def test_a_client_that_leaves_in_the_middle_takes_its_session_along() -> None:
    async def main() -> None:
        wire, host = slow()
        await post(wire, "/create")
        await post(wire, "/reset", id=0, data_idx=0)
        with trio.move_on_after(1):
            await post(wire, "/step", id=0, action="50")
        assert host.log == ["abandoned"]
        assert len(wire.sessions) == 0

    run_simulated(main)


async def test_no_more_sessions_than_allowed_and_closing_makes_room() -> None:
    wire = WireServer([resolve("maze-v1")], limits=Limits(sessions=2))
    for _ in range(2):
        await post(wire, "/maze/create")
    answer = await post(wire, "/maze/create")
    assert (answer["status"], answer["kind"]) == (503, "overloaded")  # type: ignore[index]
    await post(wire, "/maze/close", id=0)
    assert (await post(wire, "/maze/create"))["id"] == 2  # type: ignore[index]


async def test_a_world_that_raises_or_talks_garbage_is_an_error_and_not_a_crash() -> None:
    for trouble in (
        RuntimeError("boom"),
        "no result",
        StepResult("\ud800"),
        StepResult("", float("nan")),
    ):

        class Bad(Slow):
            async def step(self, action: str, trouble: object = trouble) -> StepResult:
                if isinstance(trouble, Exception):
                    raise trouble
                return trouble  # type: ignore[return-value]

        class BadHost(Host):
            async def open(self, bad: type[Bad] = Bad) -> Hosted:
                return bad([])

        wire = WireServer([SPEC], hosts={"slow-v1": BadHost()})
        await post(wire, "/create")
        await post(wire, "/reset", id=0, data_idx=0)
        answer = await post(wire, "/step", id=0, action="x")
        assert (answer["status"], answer["kind"]) == (200, "broken")  # type: ignore[index]
        assert len(wire.sessions) == 0


async def test_the_token_is_asked_for_everywhere_but_health() -> None:
    wire = WireServer([resolve("maze-v1")], token="s3cret")

    async def status(path: bytes, authorization: bytes = b"") -> int:
        return (await wire.answer(Request(b"GET", path, b"", b"", authorization))).status

    assert await status(b"/health") == 200
    for wrong in (b"", b"Bearer", b"Bearer s3cre", b"Bearer s3cret2", b"Basic !", b"Digest s3cret"):
        assert await status(b"/metrics", wrong) == 401
        assert await status(b"/nowhere", wrong) == 401
    assert await status(b"/metrics", b"bearer s3cret") == 200
    assert await status(b"/", b"Basic " + base64.b64encode(b"anyone:s3cret")) == 200
    with pytest.raises(ConfigError, match="printable"):
        WireServer([resolve("maze-v1")], token="two words")


async def test_a_web_page_is_not_served() -> None:
    wire = WireServer([resolve("maze-v1")])
    reply = await wire.answer(Request(b"POST", b"/maze/create", origin=b"http://evil.example"))
    assert reply.status == 403
    assert len(wire.sessions) == 0


async def test_health_and_metrics_tell_what_happens() -> None:
    wire = WireServer([resolve("maze-v1")])
    await post(wire, "/maze/create")
    await post(wire, "/maze/reset", id=0, game=1)
    await post(wire, "/maze/step", id=0, action="move up")
    await post(wire, "/maze/step", id=9, action="move up")
    await wire.answer(Request(b"GET", b"/anything/\xff"))
    text = (await wire.answer(Request(b"GET", b"/metrics"))).body.decode()
    for line in (
        "rollwave_sessions 1",
        'rollwave_sessions_opened_total{env="maze-v1"} 1',
        'rollwave_steps_total{env="maze-v1"} 1',
        'rollwave_refused_total{kind="unknown"} 1',
        'rollwave_requests_total{path="/maze/step",status="200"} 2',
        'rollwave_requests_total{path="other",status="404"} 1',
    ):
        assert line in text.splitlines()
    wire.sessions.draining = True
    assert (await wire.answer(Request(b"GET", b"/health"))).status == 503
    answer = await post(wire, "/maze/create")
    assert answer["kind"] == "overloaded"  # type: ignore[index]


async def test_closing_everything_closes_each_world_once() -> None:
    wire, host = slow()
    for _ in range(3):
        await post(wire, "/create")
    await post(wire, "/close", id=1)
    wire.sessions.close_all()
    wire.sessions.close_all()
    assert host.log == ["closed", "abandoned", "abandoned"]


async def test_a_step_that_is_numbered_acts_once() -> None:
    wire = WireServer([resolve("maze-v1")])
    session = await wire.sessions.open(wire.served[0])
    await wire.sessions.reset(session, 3)
    await wire.sessions.step(session, "move up", 0)
    first = session.observation
    await wire.sessions.step(session, "move down", 0)  # the same step again
    assert (session.observation, session.steps) == (first, 1)
    for number in (3, 7):
        with pytest.raises(Refused, match="does not follow"):
            await wire.sessions.step(session, "move up", number)


def test_limits_are_checked() -> None:
    for wrong in ({"sessions": 0}, {"lease_seconds": 0}, {"call_seconds": float("nan")}):
        with pytest.raises(ConfigError):
            Limits(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one"):
        WireServer([])

"""Supervision, fact by fact: strategies, kinds, order, starting, backoff and escalation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest
import trio
import trio.lowlevel
import trio.testing
from rollwave.engine.actor import Actor
from rollwave.engine.codec import Message
from rollwave.engine.errors import (
    ActorDead,
    ConfigError,
    DeadlineExceeded,
    RestartLimitExceeded,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.restart import (
    NO_BACKOFF,
    Backoff,
    Restart,
    RestartIntensity,
    Strategy,
)
from rollwave.engine.supervisor import ChildSpec, Exit, LifecycleEvent
from rollwave.engine.system import ActorSystem
from rollwave.engine.testing import EventLog
from trio.testing import MockClock


class Do(Message, frozen=True):
    what: Literal["work", "crash", "end"]
    seconds: float = 0.0


class Done(Message, frozen=True):
    by: str


class Member(Actor):
    """Logs its start and stop; works, crashes or ends as told; may fail to start."""

    receives = (Do,)
    mailbox_capacity = 4

    def __init__(self, log: EventLog, starts_badly: list[int] | None = None) -> None:
        self.log = log
        self.starts_badly = starts_badly if starts_badly is not None else []

    async def on_start(self) -> None:
        self.log("start", self.context.name)
        await trio.sleep(0.01)
        if self.context.incarnation in self.starts_badly:
            raise OSError("cannot start")

    async def on_stop(self) -> None:
        self.log("stop", self.context.name)

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        await trio.sleep(message.seconds)
        if message.what == "crash":
            raise ValueError("as told")
        if message.what == "end":
            self.stop()
        return Done(self.context.name)


@dataclass
class Family:
    """A system whose root supervises members named a, b, c …"""

    system: ActorSystem
    log: EventLog
    events: list[LifecycleEvent]
    exits: list[Exit] = field(default_factory=list)
    refs: dict[str, ActorRef] = field(default_factory=dict)

    async def start(self, names: str, restart: Restart = Restart.PERMANENT) -> None:
        for name in names:
            self.refs[name] = await self.system.start(
                ChildSpec(name, lambda: Member(self.log), restart), on_exit=self.exits.append
            )

    def happened(self, *kinds: str) -> list[str]:
        """The log since the last call, as `start a`, `stop b` …"""
        lines = [f"{kind} {name}" for _, kind, name in self.log]
        self.log.clear()
        return [line for line in lines if not kinds or line.split()[0] in kinds]


@asynccontextmanager
async def family(
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    *,
    intensity: RestartIntensity | None = None,
    backoff: Backoff = NO_BACKOFF,
    seed: int = 0,
) -> AsyncIterator[Family]:
    events: list[LifecycleEvent] = []
    async with ActorSystem(
        seed=seed, strategy=strategy, intensity=intensity, backoff=backoff, observe=events.append
    ) as system:
        yield Family(system, EventLog(), events)


# -- strategies -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.ONE_FOR_ONE, ["start b"]),
        (Strategy.REST_FOR_ONE, ["stop d", "stop c", "start b", "start c", "start d"]),
        (
            Strategy.ONE_FOR_ALL,
            ["stop d", "stop c", "stop a", "start a", "start b", "start c", "start d"],
        ),
    ],
)
async def test_what_restarts_with_a_failed_child(
    autojump_clock: MockClock, strategy: Strategy, expected: list[str]
) -> None:
    async with family(strategy) as members:
        await members.start("abcd")
        members.happened()
        await members.refs["b"].tell(Do("crash"))
        await trio.sleep(1)
        assert members.happened() == expected
        for name, ref in members.refs.items():
            assert await ref.ask(Do("work"), Done) == Done(name)
        assert members.exits == []
    assert members.happened() == ["stop d", "stop c", "stop b", "stop a"]


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_a_group_restart_keeps_queues_and_lets_temporary_members_go(
    autojump_clock: MockClock, strategy: Strategy
) -> None:
    async with family(strategy) as members:
        await members.start("ab")
        await members.start("t", Restart.TEMPORARY)
        await members.start("c")
        async with trio.open_nursery() as nursery:
            answers: list[Message] = []

            async def ask(name: str) -> None:
                answers.append(await members.refs[name].ask(Do("work"), Done))

            await members.refs["c"].tell(Do("work", 2))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, "c")  # queued behind it, answered by the next incarnation
            await members.refs["b"].tell(Do("crash"))
            await trio.sleep(10)
            assert answers == [Done("c")]
        assert [(end.name, end.error, end.cancelled) for end in members.exits] == [
            ("t", None, False)
        ]
        assert [ref.name for ref in members.system.root.children] == ["a", "b", "c"]


async def test_a_member_that_fails_to_start_again_takes_the_group_down_again(
    autojump_clock: MockClock,
) -> None:
    async with family(Strategy.REST_FOR_ONE) as members:
        await members.start("a")
        log = members.log
        await members.system.start(ChildSpec("b", lambda: Member(log)))
        await members.system.start(ChildSpec("bad", lambda: Member(log, [1, 2])))
        await members.system.start(ChildSpec("d", lambda: Member(log)))
        members.happened()
        await members.system.root.children[1].tell(Do("crash"))
        await trio.sleep(1)
        assert members.happened("start") == [
            *("start b", "start bad", "start bad", "start bad", "start d"),
        ]
        assert members.system.root.restarts == 3


# -- kinds ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["crash", "end"])
@pytest.mark.parametrize("kind", Restart)
async def test_who_comes_back(
    autojump_clock: MockClock, kind: Restart, what: Literal["crash", "end"]
) -> None:
    async with family() as members:
        await members.start("a", kind)
        await members.refs["a"].tell(Do(what))
        await trio.sleep(1)
        back = kind.wanted(failed=what == "crash")
        assert members.refs["a"].alive is back
        assert [end.name for end in members.exits] == ([] if back else ["a"])
        if not back:
            assert (members.exits[0].error is not None) == (what == "crash")


# -- order and deadlines ------------------------------------------------------------


async def test_children_stop_one_after_the_other_and_temporary_ones_together(
    autojump_clock: MockClock,
) -> None:
    async with family() as members:
        await members.start("ab")
        await members.start("tuv", Restart.TEMPORARY)
        await members.start("c")
        for ref in members.refs.values():
            ref.tell_nowait(Do("work", 2))
        await trio.testing.wait_all_tasks_blocked()
        members.log.clear()
        start = trio.current_time()
        await members.system.root.stop()
    # c, then t, u, v in the same 2 s (begun together with everyone's work), then b, a.
    assert trio.current_time() - start == 2
    stops = [name for _, kind, name in members.log if kind == "stop"]
    assert stops[0] == "c"
    assert set(stops[1:4]) == set("tuv")
    assert stops[4:] == ["b", "a"]


async def test_stop_child_waits_for_its_end_and_is_final(autojump_clock: MockClock) -> None:
    async with family() as members:
        await members.start("ab")
        root = members.system.root
        members.refs["a"].tell_nowait(Do("work", 3))
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await root.stop_child(members.refs["a"])
        assert trio.current_time() - start == 3
        await root.stop_child(members.refs["a"])  # it has exited: nothing to do
        assert members.exits == [Exit("a", None, cancelled=False)]
        assert root.children == (members.refs["b"],)
        await members.start("a")  # the name is free again
        async with family() as others:
            await others.start("x")
            with pytest.raises(ConfigError, match="x is not a child"):
                await root.stop_child(others.refs["x"])


async def test_a_child_that_does_not_stop_is_cancelled_after_its_timeout(
    autojump_clock: MockClock,
) -> None:
    async with family() as members:
        await members.start("a")
        members.refs["a"].tell_nowait(Do("work", 1000))
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await members.system.root.stop_child(members.refs["a"])
        assert trio.current_time() - start == 5
        assert members.exits == [Exit("a", None, cancelled=True)]


# -- starting -----------------------------------------------------------------------


async def test_a_first_start_that_fails_is_raised_to_whoever_starts(
    autojump_clock: MockClock,
) -> None:
    async with family() as members:
        spec = ChildSpec("bad", lambda: Member(members.log, [0]))
        with pytest.raises(OSError, match="cannot start"):
            await members.system.start(spec, on_exit=members.exits.append)
        assert [(end.name, str(end.error)) for end in members.exits] == [("bad", "cannot start")]
        assert members.system.root.children == ()
        # Started without waiting, it is a failure like any other.
        ref = members.system.root.start_child_nowait(spec)
        assert await ref.ask(Do("work"), Done) == Done("bad")
        assert ref.statistics().restarts == 1


async def test_a_constructor_that_fails_is_raised_at_once(autojump_clock: MockClock) -> None:
    def broken() -> Actor:
        raise TypeError("no such setting")

    async with family() as members:
        with pytest.raises(TypeError, match="no such setting"):
            members.system.root.start_child_nowait(ChildSpec("broken", broken))
        assert members.system.root.children == ()


async def test_a_start_that_is_cancelled_takes_the_child_with_it(
    autojump_clock: MockClock,
) -> None:
    class Slow(Member):
        async def on_start(self) -> None:
            await trio.sleep_forever()

    async with family() as members:
        with trio.move_on_after(1) as scope:
            await members.system.start(
                ChildSpec("slow", lambda: Slow(members.log)), on_exit=members.exits.append
            )
        assert scope.cancelled_caught
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert members.exits == [Exit("slow", None, cancelled=True)]
        # Stopped by somebody else while it starts, it says so.
        async with trio.open_nursery() as nursery:

            async def stop_it() -> None:
                await trio.testing.wait_all_tasks_blocked()
                members.system.root.children[0].stop()

            nursery.start_soon(stop_it)
            with pytest.raises(ActorDead, match="slow was stopped while it started"):
                await members.system.start(ChildSpec("slow", lambda: Slow(members.log)))


async def test_siblings_have_different_names_and_a_stopped_supervisor_starts_nobody(
    autojump_clock: MockClock,
) -> None:
    async with family() as members:
        await members.start("a")
        with pytest.raises(ConfigError, match="a child named a is living already"):
            await members.start("a")
    with pytest.raises(ActorDead, match="cannot start b"):
        await members.start("b")
    await members.system.root.stop()  # once more does no harm


@pytest.mark.parametrize("name", ["stop_timeout", "start_timeout"])
def test_a_timeout_is_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} of a"):
        ChildSpec("a", lambda: Member(EventLog()), **{name: -1.0})  # type: ignore[arg-type]


async def test_a_start_may_have_a_deadline(autojump_clock: MockClock) -> None:
    class Slow(Member):
        async def on_start(self) -> None:
            await trio.sleep(0 if self.context.incarnation == 2 else 100)

        async def on_stop(self) -> None:
            pass

    async with family() as members:
        spec = ChildSpec("slow", lambda: Slow(members.log), start_timeout=3.0)
        with pytest.raises(DeadlineExceeded, match="the start of slow took longer than 3 s"):
            await members.system.start(spec)
        start = trio.current_time()
        ref = members.system.root.start_child_nowait(spec)
        assert await ref.ask(Do("work"), Done) == Done("slow")  # the third attempt is quick
        assert trio.current_time() - start == 6


async def test_a_failure_that_nobody_is_told_of_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with family() as members:
        ref = await members.system.start(
            ChildSpec("a", lambda: Member(members.log), Restart.TEMPORARY)
        )
        await ref.tell(Do("crash"))
        await trio.sleep(1)
    assert "a failed and is not restarted: ValueError('as told')" in caplog.text


async def test_an_on_exit_that_raises_is_not_swallowed(autojump_clock: MockClock) -> None:
    def broken(end: Exit) -> None:
        raise ZeroDivisionError(end.name)

    async def stop_one() -> None:
        async with family() as members:
            await members.system.start(
                ChildSpec("a", lambda: Member(members.log), Restart.TEMPORARY), on_exit=broken
            )
            members.system.root.children[0].stop()
            await trio.sleep(1)

    with pytest.raises(ZeroDivisionError, match="a"):
        await stop_one()


# -- how soon, how often -------------------------------------------------------------


async def test_restarts_back_off_on_the_clock_and_start_anew_after_a_good_run(
    autojump_clock: MockClock,
) -> None:
    backoff = Backoff(first=1.0, factor=2.0, limit=3.0, jitter=0.0)
    async with family(backoff=backoff, intensity=RestartIntensity(10, 60)) as members:
        await members.start("a")
        delays = []
        for wait in (0, 0, 0, 100, 0):
            await trio.sleep(wait)
            members.log.clear()
            before = trio.current_time()
            await members.refs["a"].tell(Do("crash"))
            await members.refs["a"].ask(Do("work"), Done)
            delays.append(round(trio.current_time() - before - 0.01, 6))
        assert delays == [1.0, 2.0, 3.0, 1.0, 2.0]
        assert [e.detail for e in members.events if e.kind == "restarting"][:2] == [
            "in 1.000 s",
            "in 2.000 s",
        ]


async def test_the_jitter_follows_the_seed(autojump_clock: MockClock) -> None:
    async def delays(seed: int) -> list[str]:
        async with family(backoff=Backoff(jitter=0.5), seed=seed) as members:
            await members.start("ab")
            for name in "abab":
                await members.refs[name].tell(Do("crash"))
                await trio.sleep(1)
        return [e.detail for e in members.events if e.kind == "restarting"]

    assert await delays(1) == await delays(1)
    assert await delays(1) != await delays(2)


async def test_stopping_a_child_that_waits_for_its_restart_does_not_wait_with_it(
    autojump_clock: MockClock,
) -> None:
    for strategy in Strategy:
        async with family(strategy, backoff=Backoff(first=30.0, jitter=0.0)) as members:
            await members.start("a")
            members.refs["a"].tell_nowait(Do("crash"))
            await trio.testing.wait_all_tasks_blocked()
            assert members.refs["a"].alive
            start = trio.current_time()
            await members.system.root.stop_child(members.refs["a"])
            assert trio.current_time() == start
            assert members.exits == [Exit("a", None, cancelled=False)]


@pytest.mark.parametrize("strategy", Strategy)
async def test_one_restart_too_many_stops_all_in_reverse_and_fails_upwards(
    autojump_clock: MockClock, strategy: Strategy
) -> None:
    families: list[Family] = []

    async def crash_too_often() -> None:
        async with family(strategy, intensity=RestartIntensity(2, 60)) as members:
            families.append(members)
            await members.start("abc")
            for _ in range(3):
                await members.refs["b"].tell(Do("crash"))
                await trio.sleep(1)
            pytest.fail("the block goes on after its root gave up")

    with pytest.raises(RestartLimitExceeded, match="b failed once more after 2 restarts") as gone:
        await crash_too_often()
    assert isinstance(gone.value.__cause__, ValueError)
    (members,) = families
    assert [end.name for end in members.exits] == ["b", "c", "a"]
    assert [e.kind for e in members.events].count("escalated") == 1
    assert not any(ref.alive for ref in members.refs.values())


async def test_failures_spread_over_more_than_the_window_do_not_escalate(
    autojump_clock: MockClock,
) -> None:
    async with family(intensity=RestartIntensity(1, 10)) as members:
        await members.start("a")
        for _ in range(5):
            await members.refs["a"].tell(Do("crash"))
            await trio.sleep(10.1)
        assert members.refs["a"].statistics().restarts == 5

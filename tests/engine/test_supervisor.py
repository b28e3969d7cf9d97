"""Supervision: strategies, order, intensity and escalation, over any life a supervisor may have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.actor import Actor
from rollwave.engine.codec import Message
from rollwave.engine.errors import (
    ActorDead,
    ActorError,
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
from rollwave.engine.testing import EventLog, event_digest, run_simulated
from trio.testing import MockClock


class Do(Message, frozen=True):
    what: Literal["work", "crash", "end", "nest"]
    seconds: float = 0.0


class Done(Message, frozen=True):
    by: str


class Book(EventLog):
    """The members' log, and who is up: never two incarnations of one member."""

    def __init__(self) -> None:
        self.up: set[str] = set()

    def enter(self, name: str) -> None:
        assert name not in self.up, f"two incarnations of {name} at once"
        self.up.add(name)
        self("start", name)


class Member(Actor):
    """Logs its start and stop; works, crashes or ends as told; may fail to start."""

    receives = (Do,)
    mailbox_capacity = 4

    def __init__(self, log: Book, starts_badly: list[int] | None = None) -> None:
        self.log = log
        self.starts_badly = starts_badly if starts_badly is not None else []

    async def on_start(self) -> None:
        self.log.enter(self.context.name)
        try:
            await trio.sleep(0.01)
            if self.context.incarnation in self.starts_badly:
                raise OSError("cannot start")
        except BaseException:
            self.log.up.remove(self.context.name)
            raise

    async def on_stop(self) -> None:
        self.log("stop", self.context.name)
        self.log.up.remove(self.context.name)

    async def on_failure(self, error: BaseException) -> None:
        self.log.up.discard(self.context.name)

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
    log: Book
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
        yield Family(system, Book(), events)


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
        ChildSpec("a", lambda: Member(Book()), **{name: -1.0})  # type: ignore[arg-type]


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
    async def crash_too_often() -> None:
        nonlocal members
        async with family(strategy, intensity=RestartIntensity(2, 60)) as members:
            await members.start("abc")
            for _ in range(3):
                await members.refs["b"].tell(Do("crash"))
                await trio.sleep(1)
            pytest.fail("the block goes on after its root gave up")

    members: Family
    with pytest.raises(RestartLimitExceeded, match="b failed once more after 2 restarts") as gone:
        await crash_too_often()
    assert isinstance(gone.value.__cause__, ValueError)
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


# -- any life of a supervisor ---------------------------------------------------------

KINDS = {"p": Restart.PERMANENT, "t": Restart.TRANSIENT, "x": Restart.TEMPORARY}

steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "crash", "crash", "end", "work", "stop", "ref stop", "wait"]),
        st.sampled_from("abcde"),
        st.sampled_from("ptx"),
        st.floats(0, 3),
    ),
    max_size=30,
)


def reversed_in_blocks(started: list[tuple[str, bool]], ended: list[object]) -> list[object]:
    """The order in which these must end: reversed, temporary neighbours in any order."""
    order: list[object] = []
    for temporary, block in groupby(reversed(started), key=lambda child: child[1]):
        names: list[object] = [name for name, _ in block]
        order += sorted(names, key=ended.index) if temporary else names
    return order


async def any_life(
    plan: list[tuple[str, str, str, float]],
    strategy: Strategy,
    intensity: RestartIntensity,
    seed: int,
    leave: str,
) -> str:
    """Live through the plan; check what must hold for every life; give its digest."""
    log, exits, asked, ended = Book(), EventLog(), 0, 0
    at_the_end: list[tuple[str, bool]] = []
    events: list[LifecycleEvent] = []
    started: list[str] = []
    refs: dict[str, ActorRef] = {}
    specs: dict[str, ChildSpec] = {}

    async def ask(ref: ActorRef, message: Do) -> None:
        nonlocal ended
        try:
            with trio.move_on_after(20):
                await ref.ask(message, Done)
        except ActorError:
            pass
        finally:
            ended += 1

    def escalating() -> bool:
        return any(event.kind == "escalated" for event in events)

    escalated = False
    async with trio.open_nursery() as asking:
        try:
            with trio.CancelScope() as scope:
                async with ActorSystem(
                    seed=seed,
                    strategy=strategy,
                    intensity=intensity,
                    backoff=Backoff(first=0.5, limit=4.0),
                    observe=events.append,
                ) as system:
                    root = system.root
                    for number, (step, name, kind, seconds) in enumerate(plan):
                        living = {ref.name.split("-")[0]: ref for ref in root.children}
                        if step == "start" and name not in living:
                            full = f"{name}-{number}"
                            if escalating():
                                break  # it starts nobody any more; the block is about to end
                            started.append(full)
                            specs[full] = ChildSpec(full, lambda: Member(log), KINDS[kind], 2.0)
                            refs[full] = root.start_child_nowait(
                                specs[full],
                                on_exit=lambda end: exits("exit", end.name, end.cancelled),
                            )
                        elif step in ("crash", "end", "work") and name in living:
                            asked += 1
                            asking.start_soon(ask, living[name], Do(step, seconds))  # type: ignore[arg-type]
                        elif step == "stop" and name in living:
                            await root.stop_child(living[name])
                        elif step == "ref stop" and name in living:
                            living[name].stop()
                        else:
                            await trio.sleep(seconds)
                    if leave == "settled":
                        await trio.sleep(60)
                    at_the_end = [
                        (ref.name, specs[ref.name].restart is Restart.TEMPORARY)
                        for ref in root.children
                    ]
                    if leave == "cancelled":
                        scope.cancel()
                        await trio.sleep(1)
        except RestartLimitExceeded:
            escalated = True
        # Nobody is left, and every child has exited exactly once.
        assert root.children == ()
        assert sorted(name for _, _, name, _ in exits) == sorted(started)
        assert not any(ref.alive for ref in refs.values())
        if leave == "cancelled":  # a cancellation from outside outruns the error
            assert escalating() or not escalated
        else:
            assert escalated == escalating()
        # Never more restarts within a window than allowed.
        times = [event.time for event in events if event.kind == "restarting"]
        for start in times:
            inside = [t for t in times if start <= t < start + intensity.window_seconds]
            assert len(inside) <= intensity.max_restarts
        assert log.up == set()
        # Nobody starts after it has exited.
        gone = {name: time for time, _, name, _ in exits}
        assert all(time <= gone[name] for time, _, name in log)
        if leave == "settled" and not escalated:
            in_order = [name for _, _, name, _ in exits][len(exits) - len(at_the_end) :]
            assert in_order == reversed_in_blocks(at_the_end, in_order)
    assert ended == asked  # every ask has ended
    return event_digest([log, exits, [(e.time, e.kind, e.path) for e in events]])


@settings(max_examples=300, deadline=None)
@given(
    plan=steps,
    strategy=st.sampled_from(Strategy),
    most=st.integers(0, 4),
    seed=st.integers(0, 2**32),
    leave=st.sampled_from(["at once", "settled", "cancelled"]),
)
def test_any_life_of_a_supervisor(
    plan: list[tuple[str, str, str, float]],
    strategy: Strategy,
    most: int,
    seed: int,
    leave: str,
) -> None:
    async def scenario() -> str:
        return await any_life(plan, strategy, RestartIntensity(most, 5.0), seed, leave)

    digest = run_simulated(scenario, seed=seed)
    assert digest == run_simulated(scenario, seed=seed)  # same seed, same run

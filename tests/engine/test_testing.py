"""The test kit itself: pinned schedules, digests, fault plans and probes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import Message
from rollwave.engine.errors import (
    ActorDead,
    ActorRestarted,
    AskFailed,
    ConfigError,
    FaultKind,
    MissingDependency,
    classify,
)
from rollwave.engine.restart import NO_BACKOFF
from rollwave.engine.supervisor import ChildSpec
from rollwave.engine.system import ActorSystem
from rollwave.engine.testing import (
    EventLog,
    InjectedFault,
    MessageFaults,
    ProbeActor,
    event_digest,
    pinned_scheduler,
    run_simulated,
)
from trio.testing import MockClock


class Ping(Message, frozen=True):
    n: int


class Pong(Message, frozen=True):
    n: int


# -- the schedule -----------------------------------------------------------------


async def trace(tasks: int = 6, steps: int = 10) -> list[tuple[int, int]]:
    """The order in which equal tasks get their turns."""
    order: list[tuple[int, int]] = []

    async def step(task: int) -> None:
        for number in range(steps):
            order.append((task, number))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(step, task)
    return order


def test_a_seed_is_a_schedule() -> None:
    runs = {seed: run_simulated(trace, seed=seed) for seed in range(5)}
    assert all(run_simulated(trace, seed=seed) == run for seed, run in runs.items())
    assert len({tuple(run) for run in runs.values()}) == 5


def test_pinning_leaves_trio_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trio._core._run
    monkeypatch.setattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING", False)
    state = run._r.getstate()
    with contextlib.suppress(ZeroDivisionError), pinned_scheduler(3):
        assert run._ALLOW_DETERMINISTIC_SCHEDULING
        raise ZeroDivisionError  # also after an error
    assert run._r.getstate() == state
    assert run._ALLOW_DETERMINISTIC_SCHEDULING is False


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING"])
def test_another_trio_is_refused_clearly(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(trio._core._run, name)
    with pytest.raises(MissingDependency, match="no scheduler generator to pin"):
        run_simulated(trace)


def test_the_result_and_the_errors_of_a_scenario_come_through() -> None:
    async def add(a: int, b: int) -> int:
        await trio.sleep(3600)
        return a + b

    async def fail() -> None:
        raise KeyError("mine")

    assert run_simulated(add, 2, 3) == 5
    with pytest.raises(KeyError, match="mine"):
        run_simulated(fail)


# -- digests ----------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    name: str
    time: float


def test_a_digest_sees_every_field_and_the_order() -> None:
    events: list[object] = [(0.0, "a", 1), Event("b", 1.5), Ping(3), None, [1, 2]]
    assert event_digest(events) == event_digest(list(events))
    assert len(event_digest([])) == 32
    changed = [[*events[:i], *events[i + 1 :]] for i in range(len(events))]
    changed += [events[::-1], [(0.0, "a", 2), *events[1:]]]
    digests = {event_digest(each) for each in [events, *changed]}
    assert len(digests) == len(changed) + 1


async def test_a_log_dates_its_events(autojump_clock: MockClock) -> None:
    log, start = EventLog(), trio.current_time()
    log("first", 1)
    await trio.sleep(2)
    log("second")
    assert log == [(start, "first", 1), (start + 2, "second")]
    assert log.digest() == event_digest(log)


# -- faults -----------------------------------------------------------------------


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**63 - 1),
    raises=st.floats(0, 0.3),
    delays=st.floats(0, 0.3),
    drops=st.floats(0, 0.3),
)
def test_a_plan_follows_its_seed(seed: int, raises: float, delays: float, drops: float) -> None:
    def plan() -> MessageFaults:
        return MessageFaults(seed, raises=raises, delays=delays, drops=drops, at={3: "drop"})

    one, other = plan(), plan()
    faults = [one.next() for _ in range(50)]
    assert faults == [other.next() for _ in range(50)]
    assert faults[3] == "drop"
    assert one.struck == [(n, fault) for n, fault in enumerate(faults) if fault is not None]
    assert one.count == 50


def test_the_shares_of_a_plan_are_kept() -> None:
    plan = MessageFaults(5, raises=0.1, delays=0.2, drops=0.3)
    faults = [plan.next() for _ in range(5000)]
    for name, share in (("raise", 0.1), ("delay", 0.2), ("drop", 0.3)):
        assert abs(faults.count(name) / 5000 - share) < 0.03  # type: ignore[arg-type]


async def test_a_plan_strikes_in_its_three_ways(autojump_clock: MockClock) -> None:
    plan = MessageFaults(at={1: "raise", 2: "delay", 3: "drop"}, delay_seconds=4.0)
    start = trio.current_time()
    assert await plan.strike() is True
    with pytest.raises(InjectedFault, match="injected at event 1") as fault:
        await plan.strike()
    assert classify(fault.value)[0] is FaultKind.INTERNAL  # as a foreign error would be
    assert await plan.strike() is True
    assert trio.current_time() - start == 4
    assert await plan.strike() is False
    own = MessageFaults(at={0: "raise"}, error=lambda n: OSError(f"disk {n}"))
    with pytest.raises(OSError, match="disk 0"):
        await own.strike()


@pytest.mark.parametrize("shares", [{"raises": -0.1}, {"raises": 0.6, "drops": 0.6}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="fault shares"):
        MessageFaults(0, **shares)  # type: ignore[arg-type]


# -- probes -----------------------------------------------------------------------


async def test_a_probe_records_and_answers_by_script(autojump_clock: MockClock) -> None:
    log = EventLog()
    probe = ProbeActor.of(Ping, Pong, capacity=3)
    made: list[ProbeActor] = []

    def make() -> ProbeActor:
        made.append(
            probe(
                log,
                answers={Ping: lambda ping: Pong(ping.n + 1)},
                faults=faults,
                seconds=0.5,
            )
        )
        return made[-1]

    faults = MessageFaults(at={2: "raise"})  # shared: it strikes the third message, once
    async with ActorSystem(backoff=NO_BACKOFF) as system:
        ref = await system.start(ChildSpec("probe", make))
        assert ref.statistics().mailbox.capacity == 3
        assert await ref.ask(Ping(1), Pong) == Pong(2)
        assert await ref.ask(Pong(7), Pong) == Pong(7)  # no script: the message itself
        with pytest.raises(ActorRestarted):
            await ref.ask(Ping(2), Pong)
        assert await ref.ask(Ping(3), Pong) == Pong(4)
    assert [probe.received for probe in made] == [[Ping(1), Pong(7), Ping(2)], [Ping(3)]]
    assert [fields[1:] for fields in log] == [
        ("start", "probe"),
        ("message", "probe", "Ping"),
        ("message", "probe", "Pong"),
        ("message", "probe", "Ping"),
        ("failure", "probe", "InjectedFault"),
        ("start", "probe"),
        ("message", "probe", "Ping"),
        ("stop", "probe"),
    ]


async def test_a_probe_may_raise_by_script_and_drop_by_plan(autojump_clock: MockClock) -> None:
    faults = MessageFaults(at={1: "drop"})
    async with ActorSystem() as system, trio.open_nursery() as nursery:
        ref = await system.start(
            ChildSpec(
                "probe",
                lambda: ProbeActor.of(Ping)(
                    EventLog(), answers={Ping: AskFailed("backend", "scripted")}, faults=faults
                ),
            )
        )
        with pytest.raises(AskFailed, match="scripted"):
            await ref.ask(Ping(1), Pong)

        async def dropped() -> None:
            with pytest.raises(ActorDead):
                await ref.ask(Ping(2), Pong)

        nursery.start_soon(dropped)
        await trio.sleep(1)
        ref.stop()

"""Which live sessions are kept, over a machinery that only counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollwave.engine.errors import ConfigError, EnvironmentFault, EnvironmentLost
from rollwave.envs.sciworld import pool as subject
from rollwave.envs.sciworld.pool import Simulator, Simulators
from rollwave.envs.sciworld.simulator import Moved


class Tally:
    """A live session: adds up what it hears, and tells the sum."""

    def __init__(self, task: str, variation: int) -> None:
        self.heard = [f"{task}{variation}"]
        self.description = f"do {task} {variation}"


class Machine:
    """In place of `Machinery`: as many steps as it has left, then it is gone."""

    def __init__(self) -> None:
        self.jvm = SimpleNamespace(close=self.closed, pid=1, version="1")
        self.open: set[Tally] = set()
        self.dead = False
        self.steps = self.loads = 0
        self.dies_at = -1
        self.free = 1000.0
        self.collected = 1000.0

    def closed(self) -> None:
        self.dead = True
        self.open.clear()

    def load(self, task: str, variation: int, simplifications: str) -> Tally:
        self.loads += 1
        if variation > 9:
            raise ConfigError("no such variation")
        live = Tally(task, variation)
        self.open.add(live)
        return live

    def forget(self, live: Tally) -> None:
        self.open.remove(live)

    def free_mib(self, *, collect: bool = False) -> float:
        return self.collected if collect else self.free


def step(machine: Machine, live: Tally, action: str) -> Moved:
    assert live in machine.open
    machine.steps += 1
    if machine.steps == machine.dies_at:
        raise EnvironmentLost("died")
    if action == "fail":
        live.heard.append("half")
        raise EnvironmentFault("failed")
    live.heard.append(action)
    return Moved(" ".join(live.heard), len(live.heard), False, len(live.heard))


def expected(task: str, actions: list[str]) -> Moved:
    heard = [task, *actions]
    return Moved(" ".join(heard), len(heard), False, len(heard))


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    made: list[Machine] = []
    replace(monkeypatch.setattr, made)
    return made


def replace(put: Callable[..., None], made: list[Machine]) -> None:
    def machine(jvm: Any) -> Machine:
        made.append(Machine())
        return made[-1]

    put(subject, "Jvm", lambda heap_mib: None)
    put(subject, "Machinery", machine)
    put(subject.simulator, "step", step)


class Sessions(RuleBasedStateMachine):
    """Any order of calls, evictions and deaths is answered as an undisturbed session would."""

    @initialize(live=st.integers(1, 4))
    def start(self, live: int) -> None:
        self.machines: list[Machine] = []
        self.patch = pytest.MonkeyPatch()
        replace(self.patch.setattr, self.machines)
        self.pool = Simulators(live=live)
        self.open: list[tuple[Simulator, str, list[str]]] = []

    @rule(variation=st.integers(0, 9))
    def opens(self, variation: int) -> None:
        session = self.pool.open()
        session.load("t", variation)
        self.open.append((session, f"t{variation}", []))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), action=st.sampled_from("abc"))
    def steps(self, data: st.DataObject, action: str) -> None:
        session, task, actions = data.draw(st.sampled_from(self.open))
        assert session.step(action) == expected(task, [*actions, action])
        actions.append(action)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fails_and_goes_on(self, data: st.DataObject) -> None:
        session, task, actions = data.draw(st.sampled_from(self.open))
        with pytest.raises(EnvironmentFault, match="failed"):
            session.step("fail")
        assert session.step("a") == expected(task, [*actions, "a"])
        actions.append("a")

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def dies_in_a_call(self, data: st.DataObject) -> None:
        session, _, _ = data.draw(st.sampled_from(self.open))
        session.task_description()  # so that there is a process
        losses = self.pool.losses
        self.machines[-1].dies_at = self.machines[-1].steps + 1
        with pytest.raises(EnvironmentLost):
            session.step("a")
        assert self.pool.losses == losses + 1
        assert self.machines[-1].dead
        assert self.pool.pid is None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def begins_anew(self, data: st.DataObject) -> None:
        session, task, actions = data.draw(st.sampled_from(self.open))
        session.load("t", int(task[1:]))
        actions.clear()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def closes(self, data: st.DataObject) -> None:
        session, task, actions = data.draw(st.sampled_from(self.open))
        self.open.remove((session, task, actions))
        session.close()
        session.close()
        with pytest.raises(EnvironmentFault, match="closed"):
            session.step("a")

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.held <= min(self.pool.live, len(self.open))
            live = self.machines[-1] if self.machines else Machine()
            assert len(live.open) == self.pool.held

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
            self.patch.undo()


Sessions.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSessions = Sessions.TestCase


@pytest.mark.parametrize(("share", "most"), [(0.5, 0.65), (0.9, 0.2)])
def test_sessions_called_in_turn_are_not_all_made_again(
    machines: list[Machine], share: float, most: float
) -> None:
    """The oldest would be the next to be called: by age every call would be a rebuild."""
    count, rounds = 200, 20
    pool = Simulators(live=int(count * share))
    sessions = [pool.open() for _ in range(count)]
    for session in sessions:
        session.load("t", 0)
    for _ in range(rounds):
        for session in sessions:
            session.step("a")
    assert 0 < pool.rebuilt < most * count * rounds
    assert pool.evicted >= pool.rebuilt
    assert machines[0].loads == count + pool.rebuilt


def test_long_sessions_that_nobody_calls_make_way(machines: list[Machine]) -> None:
    pool = Simulators(live=20)
    idle = [pool.open() for _ in range(20)]
    for session in idle:
        session.load("t", 0)
        for _ in range(50):
            session.step("a")
    busy = [pool.open() for _ in range(15)]
    for session in busy:
        session.load("t", 1)
    for _ in range(100):
        for session in busy:
            session.step("b")
    before = pool.rebuilt
    for _ in range(10):
        for session in busy:
            session.step("b")
    assert pool.rebuilt - before < 0.5 * 150


def test_a_heap_that_is_short_holds_fewer(machines: list[Machine]) -> None:
    pool = Simulators(heap_mib=1000, live=500)
    sessions = [pool.open() for _ in range(100)]
    for session in sessions:
        session.load("t", 0)
    machine = machines[0]
    assert pool.held == 100
    machine.free = 100.0  # of which all but this is garbage
    for session in sessions[:40]:
        session.load("t", 0)
    assert pool.held == 100
    machine.collected = 200.0
    for session in sessions[:32]:
        session.load("t", 0)
    assert pool.held < 90  # of 100 a quarter went, and those of them that were called came back
    assert sessions[50].step("a") == expected("t0", ["a"])


def test_one_that_answers_otherwise_is_a_fault_that_says_where(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Simulators(live=1)
    one, other = pool.open(), pool.open()
    one.load("t", 0)
    one.step("a")
    one.step("b")
    other.load("t", 0)

    def odd(machine: Machine, live: Tally, action: str) -> Moved:
        return step(machine, live, "x" if action == "b" else action)

    monkeypatch.setattr(subject.simulator, "step", odd)
    with pytest.raises(EnvironmentFault, match=r"action 1 \('b'\) of t 0 differently"):
        one.step("c")
    assert pool.held == 0


def test_nothing_loaded_is_said(machines: list[Machine]) -> None:
    pool = Simulators()
    session = pool.open()
    for call in (session.task_description, session.look, session.gold_path):
        with pytest.raises(EnvironmentFault, match="load a task first"):
            call()
    assert machines == []
    session.load("t", 0)
    with pytest.raises(ConfigError):
        session.load("t", 10)
    with pytest.raises(EnvironmentFault, match="load a task first"):
        session.step("a")
    session.load("t", 1)
    assert session.task_description() == "do t 1"


def test_closed_while_another_is_called_it_is_let_go_later(machines: list[Machine]) -> None:
    pool = Simulators()
    session, other = pool.open(), pool.open()
    session.load("t", 0)
    with pool.lock:
        closing = threading.Thread(target=session.close)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
    assert pool.held == 1
    other.load("t", 0)
    assert cast(Any, pool)._held.keys() == {other}


@pytest.mark.parametrize("when", ["before the room is made", "while it is loaded"])
def test_closed_while_it_is_made_again_it_is_not_held(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    pool = Simulators(live=1)
    session, other = pool.open(), pool.open()
    session.load("t", 0)
    other.load("t", 1)  # in its place

    def closing(call: Callable[..., Any]) -> Callable[..., Any]:
        def closes(*arguments: Any) -> Any:
            thread = threading.Thread(target=session.close)
            thread.start()
            thread.join(30)
            return call(*arguments)

        return closes

    target, name = (Simulators, "get") if when.startswith("before") else (Machine, "load")
    with monkeypatch.context() as patch:
        patch.setattr(target, name, closing(getattr(target, name)))
        with pytest.raises(EnvironmentFault, match="closed"):
            session.step("a")
    assert pool.held == len(machines[0].open) == 0


def test_an_interrupted_step_is_not_half_done(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Simulators().open()
    session.load("t", 0)

    def interrupted(machine: Machine, live: Tally, action: str) -> Moved:
        step(machine, live, action)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subject.simulator, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step("a")
    assert session.step("b") == expected("t0", ["b"])


def test_a_forked_child_goes_on_in_a_process_of_its_own(machines: list[Machine]) -> None:
    """What a fork has it do, without one; `test_sciworld_simulator` forks."""
    pool = Simulators()
    session = pool.open()
    session.load("t", 0)
    session.step("a")
    taken, done = threading.Event(), threading.Event()

    def holds() -> None:
        with pool.lock:
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=holds)
    thread.start()
    taken.wait(30)
    pool.leave()
    free = pool.lock.acquire(blocking=False)
    done.set()
    thread.join(30)
    assert free
    pool.lock.release()
    assert session.step("b") == expected("t0", ["a", "b"])
    assert len(machines) == 2
    assert not machines[0].dead
    assert machines[0].steps == 1

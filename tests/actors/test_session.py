"""One episode against worlds and models that misbehave: one record, and it says what happened."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.testing
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import EngineSettings, open_engine
from rollwave.actors.policy_source import PolicySource
from rollwave.engine.errors import EnvironmentFault, FaultKind
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Wrapper

MAZE = resolve("maze-grid-v1?style=terse")


def play(
    spec: EnvSpec, policy: str | PolicySource = "expert", *, tasks: int = 1, **limits: Any
) -> list[Trajectory]:
    """Play the first training tasks under the virtual clock; every record is sound."""

    async def main() -> list[Trajectory]:
        async with open_engine(policy, settings=EngineSettings(**limits)) as engine:
            engine.use(spec)
            return [t async for t in engine.rollout(spec.tasks("train", limit=tasks))]

    records = run_simulated(main)
    assert len(records) == tasks
    for record in records:
        record.check()
    return records


def says(text: str, seconds: float = 0.0) -> PolicySource:
    """A model that always writes this, after so long."""

    def make(_version: int, _path: str) -> ScriptedBackend:
        return ScriptedBackend(ConstantLatency(seconds), answer=lambda _: text, takes_tokens=False)

    return PolicySource(kind="model", name="scripted", make_backend=make)


@dataclass
class Script:
    """What a world does instead of answering, by the name of the call, and what it went through."""

    does: dict[str, Callable[[], Any]]
    calls: list[str] = field(default_factory=list)
    opened: int = 0
    closed: int = 0

    def spec(self, **changes: Any) -> EnvSpec:
        def make() -> Environment:
            self.note("make")
            self.opened += 1
            return Troubled(MAZE.make(), self)

        return replace(MAZE, make=make, **changes)

    def note(self, call: str) -> Any:
        self.calls.append(call)
        return self.does[call]() if call in self.does else None


class Troubled(Wrapper):
    def __init__(self, inner: Environment, script: Script) -> None:
        super().__init__(inner)
        self.script = script

    def reset(self, task: Task, seed: int) -> str:
        answer = self.inner.reset(task, seed)
        return self.script.note("reset") if "reset" in self.script.does else answer

    def step(self, action: str) -> StepResult:
        return self.script.note("step") if "step" in self.script.does else self.inner.step(action)

    def expert(self) -> str | None:
        return self.script.note("expert") if "expert" in self.script.does else self.inner.expert()

    def close(self) -> None:
        self.script.closed += 1
        self.script.note("close")
        self.inner.close()


def test_the_record_of_an_episode_tells_it_turn_by_turn() -> None:
    script = Script({})
    (t,) = play(script.spec())
    assert t.outcome is Outcome.SUCCESS
    assert (t.reward, t.terminated, t.truncation, t.fault) == (1.0, True, "", None)
    assert (t.policy, t.env, t.split, t.temperature) == ("expert", MAZE.id, "train", 0.0)
    assert sum(turn.reward for turn in t.turns) == t.reward
    world = MAZE.make()
    seen = world.reset(MAZE.tasks("train", limit=1)[0], 0)
    for turn in t.turns:
        assert turn.observation == seen
        seen = world.step(turn.action).observation
    assert t.final_observation == seen
    assert script.closed == 1


def raises(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


@pytest.mark.parametrize("cost", ["inline", "thread"])
@pytest.mark.parametrize("where", ["make", "reset", "step", "close", "expert"])
def test_whatever_the_world_raises_is_a_fault_of_the_environment(where: str, cost: str) -> None:
    script = Script({where: raises(KeyError("no such room"))})

    async def main() -> list[Trajectory]:  # on the real clock: threads take real time
        async with open_engine() as engine:
            spec = engine.use(script.spec(cost=cost))
            return [t async for t in engine.rollout(spec.tasks("train", limit=1))]

    (t,) = trio.run(main)
    assert (t.outcome, t.reward) == (Outcome.FAULT, None)
    assert t.fault is not None
    assert t.fault.kind is FaultKind.ENVIRONMENT
    assert "no such room" in t.fault.text
    # The turn that broke the world is kept, with the action that did it.
    assert len(t.turns) == {"step": 1, "close": t.fault.turn + 1}.get(where, 0)
    assert t.final_observation == "" or where == "close"
    assert script.opened == (where != "make")
    # A world that is left behind in a thread is closed by a thread that nobody waits for.
    until = time.monotonic() + 10
    while script.closed < script.opened and time.monotonic() < until:
        time.sleep(0.001)
    assert script.closed >= script.opened


def test_a_world_that_calls_sys_exit_takes_nobody_with_it() -> None:
    (t,) = play(Script({"step": lambda: sys.exit("goodbye")}).spec())
    assert t.fault is not None
    assert t.fault.kind is FaultKind.ENVIRONMENT
    assert t.fault.text == "SystemExit: goodbye"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (None, "step answered NoneType"),
        ("words alone", "step answered str"),
        (StepResult(17), "step answered int, not text"),  # type: ignore[arg-type]
        (StepResult("half \ud800"), "not Unicode"),
        (StepResult("x", float("nan")), "the reward nan"),
        (StepResult("x", float("-inf")), "the reward -inf"),
        (StepResult("x", "much"), "the reward 'much'"),  # type: ignore[arg-type]
        (StepResult("x", 10**400), "int too large"),
        (StepResult("x", terminated="no"), "the flag 'no'"),  # type: ignore[arg-type]
        (StepResult("x", terminated=True, success=1), "the flag 1"),  # type: ignore[arg-type]
        (StepResult("x", 1.5, terminated=True), "reward 1.5 is outside [0.0, 1.0]"),
        (StepResult("x", -0.5, truncated=True), "reward -0.5 is outside"),
        (StepResult("x", 0.5), "reward 6.0 is outside"),  # twelve turns, then our own limit
    ],
)
def test_garbage_is_refused_before_it_becomes_a_reward(answer: Any, complaint: str) -> None:
    (t,) = play(Script({"step": lambda: answer, "expert": lambda: "up"}).spec())
    assert (t.outcome, t.reward) == (Outcome.FAULT, None)
    assert t.fault is not None
    assert t.fault.kind is FaultKind.ENVIRONMENT
    assert complaint in t.fault.text


@pytest.mark.parametrize("where", ["reset", "expert"])
@pytest.mark.parametrize("answer", [17, b"bytes", "half \udfff"])
def test_what_is_no_text_is_a_fault_wherever_the_world_says_it(where: str, answer: object) -> None:
    (t,) = play(Script({where: lambda: answer}).spec())
    assert t.fault is not None
    assert t.fault.kind is FaultKind.ENVIRONMENT
    assert t.fault.text.startswith(f"EnvironmentFault: {where} answered")


@pytest.mark.parametrize("reward", [True, 1])
def test_a_reward_that_is_a_whole_number_is_that_number(reward: int) -> None:
    # A bool would be encoded as one, and then not be a message of ours.
    (t,) = play(Script({"step": lambda: StepResult("x", reward, True, False, True)}).spec())
    assert (t.outcome, t.reward) == (Outcome.SUCCESS, 1.0)
    assert type(t.turns[0].reward) is float


def test_an_expert_at_a_loss_is_the_environments_fault() -> None:
    (t,) = play(Script({"expert": lambda: None}).spec())
    assert t.fault is not None
    assert "no action from here" in t.fault.text


def test_turns_without_an_action_are_told_to_the_model_and_not_to_the_world() -> None:
    script = Script({"step": raises(AssertionError("stepped"))})
    (t,) = play(script.spec(), says("  "))
    assert (t.outcome, t.truncation, t.reward) == (Outcome.TRUNCATED, "turns", 0.0)
    assert len(t.turns) == MAZE.turn_limit
    assert all(turn.format_error and turn.action == "" for turn in t.turns)
    assert t.turns[1].observation.startswith("Error: the response is empty")


def test_a_limit_of_the_environments_own_is_named() -> None:
    (t,) = play(Script({"step": lambda: StepResult("time is up", 0.25, truncated=True)}).spec())
    assert (t.outcome, t.truncation, t.reward) == (Outcome.TRUNCATED, "environment", 0.25)
    assert not t.terminated


def test_the_end_of_the_environment_without_success_is_a_failure() -> None:
    (t,) = play(Script({"step": lambda: StepResult("fell", 0.0, terminated=True)}).spec())
    assert (t.outcome, t.terminated, t.reward) == (Outcome.FAILURE, True, 0.0)


@pytest.mark.parametrize(
    ("limits", "stage"),
    [
        ({"turn_seconds": 3.0}, "turn 0 of w0/maze-grid_0/0 took longer than 3 s"),
        ({"turn_seconds": 30.0, "episode_seconds": 12.0}, "episode w0/maze-grid_0/0 took longer"),
    ],
)
def test_a_late_completion_is_a_fault_that_names_its_stage(
    limits: dict[str, float], stage: str
) -> None:
    (t,) = play(MAZE, says("up", seconds=5.0), **limits)
    assert t.fault is not None
    assert t.fault.kind is FaultKind.DEADLINE
    assert stage in t.fault.text
    assert t.seconds == limits.get("episode_seconds", limits["turn_seconds"])
    assert len(t.turns) == (2 if "episode_seconds" in limits else 0)


def test_a_cancelled_episode_keeps_its_turns_and_closes_its_world() -> None:
    script = Script({})

    async def main() -> list[Trajectory]:
        async with open_engine(says("nowhere", seconds=2.0)) as engine:
            spec = engine.use(script.spec())
            rollout = engine.rollout(spec.tasks("train", limit=1))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def cancel() -> None:
                    await trio.sleep(5.0)
                    await engine.cancel(1)

                return [t async for t in rollout]

    (t,) = run_simulated(main)
    assert (t.outcome, t.reward, len(t.turns)) == (Outcome.CANCELLED, None, 2)
    assert script.closed == 1
    t.check()


# -- worlds in threads that hang ----------------------------------------------------


@dataclass
class Gate:
    """Where threads are held, as by a world that hangs."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    released: threading.Event = field(default_factory=threading.Event)
    passed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def hold(self) -> None:
        self.entered.release()
        self.released.wait(60)
        self.passed.release()


def play_late(script: Script, gate: Gate, tasks: int = 1, hung: int = 1) -> list[Trajectory]:
    """Play in threads; once `hung` of them hang and the others ended, the deadline passes."""
    clock = trio.testing.MockClock()  # stands still until it is told to jump
    records: list[Trajectory] = []

    async def main() -> list[Trajectory]:
        async with open_engine() as engine:
            spec = engine.use(script.spec(cost="thread"))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def time_passes() -> None:
                    for _ in range(hung):
                        await trio.to_thread.run_sync(
                            gate.entered.acquire, limiter=trio.CapacityLimiter(1)
                        )
                    while len(records) < tasks - hung:
                        await trio.to_thread.run_sync(time.sleep, 0.001)
                    clock.jump(EngineSettings().turn_seconds + 1)

                async for trajectory in engine.rollout(spec.tasks("train", limit=tasks)):
                    records.append(trajectory)
                return records

    try:
        return trio.run(main, clock=clock)
    finally:
        gate.released.set()


@pytest.mark.parametrize(
    ("where", "stage"),
    [("make", "reset of"), ("reset", "reset of"), ("step", "turn 0 of"), ("close", "close of")],
)
def test_a_world_that_hangs_is_left_behind_and_named(where: str, stage: str) -> None:
    gate = Gate()
    script = Script({where: gate.hold})
    (t,) = play_late(script, gate)
    assert (t.outcome, t.reward) == (Outcome.FAULT, None)
    assert t.fault is not None
    assert t.fault.kind is FaultKind.DEADLINE
    assert t.fault.text.startswith(f"DeadlineExceeded: {stage} w0/maze-grid_0/0")


def test_a_world_that_is_made_too_late_is_closed() -> None:
    gate, closed = Gate(), threading.Event()
    script = Script({"make": gate.hold, "close": closed.set})
    play_late(script, gate)
    assert closed.wait(30)


def test_worlds_that_hang_keep_no_thread_from_others() -> None:
    # More than trio's default limiter has tokens: with those, the last one would wait for ever.
    gate = Gate()
    script = Script({})
    hanging = 45

    ticket = itertools.count()  # threads draw from it, each another number

    def reset() -> str:
        if next(ticket) < hanging:
            gate.hold()
        return "goal 0 0 pos 0 0 walls none"

    script.does["reset"] = reset
    records = play_late(script, gate, tasks=hanging + 1, hung=hanging)
    assert sorted(t.outcome is Outcome.FAULT for t in records) == [False] + [True] * hanging


def test_nobody_waits_for_a_world_to_close_that_is_left_behind() -> None:
    gate = Gate()
    script = Script({"step": raises(EnvironmentFault("broken")), "close": gate.hold})

    async def main() -> list[Trajectory]:
        async with open_engine() as engine:
            spec = engine.use(script.spec(cost="thread"))
            return [t async for t in engine.rollout(spec.tasks("train", limit=1))]

    (t,) = trio.run(main)
    assert t.fault is not None
    assert t.fault.text == "EnvironmentFault: broken"
    assert gate.entered.acquire(timeout=30)
    gate.released.set()
    assert gate.passed.acquire(timeout=30)

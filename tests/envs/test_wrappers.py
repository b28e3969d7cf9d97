"""Wrappers: limits cut, recorders remember, faults strike where they should and nowhere else."""

from __future__ import annotations

import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.base import Environment, StepResult, Task
from rollwave.envs.laws import broken, check
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Flaky, Recorder, Trouble, TurnLimit, Wrapper, wrap

SPEC = resolve("maze-grid?style=terse")
TASK = SPEC.tasks("train")[5]


def far() -> Task:
    """A task that takes the expert at least five moves."""
    env = SPEC.make()
    for task in SPEC.tasks("train"):
        env.reset(task, 0)
        moves = 0
        while (advice := env.expert()) is not None:
            env.step(advice)
            moves += 1
        if moves >= 5:
            return task
    raise AssertionError


@pytest.mark.parametrize(
    "wrapper",
    [Wrapper, Recorder, lambda env: TurnLimit(env, 3), lambda env: TurnLimit(env, 50), Flaky],
    ids=["Wrapper", "Recorder", "TurnLimit 3", "TurnLimit 50", "Flaky at rest"],
)
def test_a_wrapped_world_keeps_the_laws(wrapper: type[Wrapper]) -> None:
    results = check(wrap(SPEC, wrapper), examples=20)
    assert [r.law for r in broken(results) if r.law != "expert keeps its word"] == []


@given(limit=st.integers(1, 6))
def test_a_turn_limit_truncates_with_its_last_step(limit: int) -> None:
    env = TurnLimit(SPEC.make(), limit)
    for _ in range(2):  # a reset starts the count again
        env.reset(far(), 0)
        for step in range(1, limit + 1):
            result = env.step("sideways")
            assert result.truncated == (step == limit)
        assert not result.terminated
        assert env.available_actions() == ()
        assert env.expert() is None
        with pytest.raises(EnvironmentFault, match="turn limit"):
            env.step("up")


def test_the_end_goes_before_the_limit() -> None:
    task = far()
    env: Environment = SPEC.make()
    env.reset(task, 0)
    actions = []
    while (advice := env.expert()) is not None:
        actions.append(advice)
        env.step(advice)
    env = TurnLimit(SPEC.make(), len(actions))
    env.reset(task, 0)
    last = [env.step(action) for action in actions][-1]
    assert last.success
    assert not last.truncated


def test_a_snapshot_remembers_the_count() -> None:
    env = TurnLimit(SPEC.make(), 3)
    env.reset(far(), 0)
    env.step("x")
    state = env.snapshot()
    env.step("x")
    other = TurnLimit(SPEC.make(), 3)
    other.restore(state)
    assert not other.step("x").done
    assert other.step("x").truncated
    with pytest.raises(EnvironmentFault, match="not a snapshot"):
        other.restore(b"")


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        TurnLimit(SPEC.make(), 0)


def test_a_recorder_keeps_what_was_said() -> None:
    env = Recorder(SPEC.make())
    first = env.reset(TASK, 7)
    answers = [env.step(action) for action in ("up", "nonsense", "left")]
    recording = env.recordings[0]
    assert (recording.task, recording.seed, recording.first) == (TASK, 7, first)
    assert recording.actions == ["up", "nonsense", "left"]
    assert [result for _, result in recording.steps] == answers
    assert recording.reward == sum(answer.reward for answer in answers)
    env.reset(TASK, 8)
    assert len(env.recordings) == 2
    restored = Recorder(SPEC.make())
    restored.restore(env.snapshot())
    restored.step("up")
    assert restored.recordings == []


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_fault_strikes_at_its_step_of_every_episode(at: int) -> None:
    env = Flaky(SPEC.make(), {at: Trouble.RAISE})
    for _ in range(2):
        for step in range(at):
            _ = env.step("x") if step else env.reset(far(), 0)
        with pytest.raises(RuntimeError, match=f"injected fault: raise at step {at}"):
            _ = env.step("x") if at else env.reset(far(), 0)
    assert env.injected == [(at, Trouble.RAISE)] * 2


def test_garbage_is_no_sound_answer() -> None:
    """What Flaky says is found out by the laws, whichever piece of garbage it is."""
    for seed in range(12):
        spec = wrap(SPEC, lambda env, seed=seed: Flaky(env, {1: Trouble.GARBAGE}, seed=seed))
        assert "answers any text" in [result.law for result in broken(check(spec, examples=5))]


def faults(seed: int, episode: int, before: int) -> list[tuple[int, Trouble]]:
    """Faults of one episode at a rate of a third, with other episodes before it."""
    env = Flaky(SPEC.make(), rate=0.3, kinds=[Trouble.RAISE, Trouble.GARBAGE], seed=seed)
    for number in [*range(100, 100 + before), episode]:
        env.injected.clear()
        for step in range(12):
            try:
                _ = env.step("x") if step else env.reset(far(), number)
            except RuntimeError:
                if step == 0:  # reset failed: the world inside has no task yet
                    break
            except EnvironmentFault:
                break
    return env.injected


@given(seed=st.integers(0, 99), episode=st.integers(0, 99), before=st.integers(0, 2))
def test_a_share_of_faults_depends_on_the_episode_alone(
    seed: int, episode: int, before: int
) -> None:
    # Where a reset was garbage, the used world goes on with its last task and may get
    # further than the fresh one: so far as both got, they agree.
    fresh = faults(seed, episode, 0)
    used = faults(seed, episode, before)
    assert fresh[: len(used)] == used[: len(fresh)]


def test_the_share_of_faults_is_about_the_rate() -> None:
    counted = 0
    for seed in range(50):
        env = Flaky(SPEC.make(), rate=0.2, kinds=[Trouble.GARBAGE], seed=seed)
        env.inner.reset(far(), 0)
        for _ in range(20):
            env.step("x")
        counted += len(env.injected)
    assert 150 < counted < 250


@pytest.mark.parametrize("wrong", [{"rate": 1.5}, {"rate": -0.1}, {"kinds": []}])
def test_a_rate_is_a_share(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="share"):
        Flaky(SPEC.make(), **wrong)  # type: ignore[arg-type]


async def test_a_hang_lasts_until_close() -> None:
    """The thread that steps is stuck; closing from the loop frees it."""
    env = Flaky(SPEC.make(), {1: Trouble.HANG}, hang_seconds=200)
    env.reset(TASK, 0)
    entered = threading.Event()
    said: list[BaseException | StepResult] = []

    def step() -> None:
        entered.set()
        try:
            said.append(env.step("up"))
        except RuntimeError as error:
            said.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, step)
        await trio.to_thread.run_sync(entered.wait)
        assert said == []
        env.close()
    assert isinstance(said[0], RuntimeError)
    assert env.injected == [(1, Trouble.HANG)]

"""The laws find holes that published environments have had, re-created as small worlds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.laws import LAWS, broken, check
from rollwave.envs.registry import resolve


class Corridor(Environment):
    """A sound world: five steps to a door, whose word the agent must find and say."""

    length: ClassVar[int] = 5

    def __init__(self) -> None:
        self.place = -1
        self.word = ""
        self.said = ""
        self.over = False
        self.closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self.closed:
            raise EnvironmentFault("closed")
        if task.index not in range(4):
            raise ConfigError(f"tasks are 0 to 3, not {task.index}")
        self.word = ("plover", "xyzzy", "sesame", "mellon")[task.index]
        self.place, self.over = 0, False
        self.said = "A corridor."
        return self.said

    def step(self, action: str) -> StepResult:
        self.live()
        if self.over:
            raise EnvironmentFault("over")
        if action == "north":
            self.place = min(self.place + 1, self.length)
        elif action == "south":
            self.place = max(self.place - 1, 0)
        self.over = self.opens(action)
        self.said = self.describe()
        return StepResult(self.said, self.pay(action), self.over, success=self.over)

    def opens(self, action: str) -> bool:
        return self.place == self.length and action == self.word

    def describe(self) -> str:
        return f"You are at {self.place}." if not self.over else "It opens."

    def pay(self, action: str) -> float:
        return float(self.over)

    def observation(self) -> str:
        self.live()
        return self.said

    def available_actions(self) -> Sequence[str]:
        self.live()
        return () if self.over else ("north", "south", self.word)

    def expert(self) -> str | None:
        self.live()
        return None if self.over else "north" if self.place < self.length else self.word

    def secrets(self) -> Sequence[str]:
        return (self.word,)

    def close(self) -> None:
        self.closed = True

    def live(self) -> None:
        if self.closed or self.place < 0:
            raise EnvironmentFault("closed, or never reset")


SOUND = EnvSpec(
    id="corridor-v1", make=Corridor, splits={"test": range(4)}, action_format="raw", turn_limit=20
)


def the_broken(make: Callable[[], Environment], law: str, **changes: object) -> str:
    results = check(replace(SOUND, make=make, **changes), examples=100, only={law})  # type: ignore[arg-type]
    found = [result for result in broken(results) if result.law == law]
    return found[0].failure if found else ""


def test_the_sound_world_keeps_all_that_apply() -> None:
    results = check(SOUND, examples=60)
    assert [str(result) for result in broken(results)] == []
    assert {result.law for result in results} == set(LAWS)
    assert [r.law for r in results if r.skipped] == ["snapshot equals replay"]


class ShowsTheAnswer(Corridor):
    """As a server that hands the gold answer over with the observation."""

    def describe(self) -> str:
        hint = f" (answer: {self.word.upper()})" if self.place == 2 else ""
        return super().describe() + hint


def test_an_answer_in_an_observation_is_found() -> None:
    failure = the_broken(ShowsTheAnswer, "tells no secret")
    assert "the observation gives away 'plover'" in failure
    assert "actions: ['north', 'north']" in failure  # the fewest that show it


def test_a_word_that_the_agent_said_first_is_no_secret() -> None:
    class Echoes(Corridor):
        def step(self, action: str) -> StepResult:
            result = super().step(action)
            self.said = f"You said {action[:20]!r}. {result.observation}"
            return StepResult(self.said, result.reward, result.terminated, success=result.success)

    assert the_broken(Echoes, "tells no secret") == ""


def test_a_world_that_hides_nothing_is_skipped() -> None:
    class Open(Corridor):
        def secrets(self) -> Sequence[str]:
            return ()

    results = check(replace(SOUND, make=Open), examples=5, only={"tells no secret"})
    assert [r.skipped for r in results if r.law == "tells no secret"] == [
        "it says that it hides nothing"
    ]


def test_wordle_hides_its_word() -> None:
    results = check("wordle-fixed-v1", examples=40, only={"tells no secret"})
    assert [(r.held, r.skipped) for r in results] == [(True, ""), (True, "")]


class PaysForComingBack(Corridor):
    """As a server whose score adds up whatever is done again: any progress is paid anew."""

    def pay(self, action: str) -> float:
        return 0.001 if action == "north" and self.place == 1 else 0.0


def test_a_reward_pump_is_found() -> None:
    failure = the_broken(PaysForComingBack, "pays no cycle")
    assert "said 100 times more, still raise the return (to 0.1" in failure
    assert failure.count("'north'") + failure.count("'south'") <= 6


def test_what_is_paid_once_is_no_pump() -> None:
    class PaysOnce(Corridor):
        best = 0

        def reset(self, task: Task, seed: int) -> str:
            self.best = 0
            return super().reset(task, seed)

        def pay(self, action: str) -> float:
            gain, self.best = max(0, self.place - self.best), max(self.best, self.place)
            return 0.1 * gain

    assert the_broken(PaysOnce, "pays no cycle") == ""


class LateSuccess(Corridor):
    """As BabyAI behind AgentGym: a late success does not end the episode, and pays again."""

    def opens(self, action: str) -> bool:
        return False

    def pay(self, action: str) -> float:
        return 0.3 if self.place == self.length and action == self.word else 0.0


def test_a_late_success_that_pays_again_is_found() -> None:
    failure = the_broken(LateSuccess, "answers any text")
    assert "outside reward_range 0 to 1" in failure


class OneAccount(Corridor):
    """As the todo server: every session writes to one account."""

    account: ClassVar[list[str]] = []

    def reset(self, task: Task, seed: int) -> str:
        self.account.clear()
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        self.account.append(action)
        return super().step(action)

    def describe(self) -> str:
        return f"{len(self.account)} entries. " + super().describe()


def test_a_shared_account_is_found() -> None:
    OneAccount.account.clear()
    assert "the answer to action" in the_broken(OneAccount, "isolated")


class AnyProgressIsAll(Corridor):
    """As the weather server: whatever progress there is, the reward is raised to 1."""

    def pay(self, action: str) -> float:
        return 1.0 if self.place else 0.0


def test_progress_that_is_paid_in_full_each_time_is_found() -> None:
    assert "outside reward_range 0 to 1" in the_broken(AnyProgressIsAll, "answers any text")


class Slow(Corridor):
    work: ClassVar[bytes] = bytes(30_000_000)

    def step(self, action: str) -> StepResult:
        zlib.crc32(self.work)
        return super().step(action)


class Leaky(Corridor):
    kept: ClassVar[list[bytearray]] = []

    def reset(self, task: Task, seed: int) -> str:
        self.kept.append(bytearray(100_000))
        return super().reset(task, seed)


def test_a_step_too_slow_for_its_cost_class_is_found() -> None:
    failure = the_broken(Slow, "costs what it says")
    assert "ms of CPU on average, and cost='inline' allows 2" in failure
    assert the_broken(Slow, "costs what it says", cost="worker") == ""


def test_an_episode_that_leaves_memory_behind_is_found() -> None:
    try:
        assert "KiB behind after close" in the_broken(Leaky, "costs what it says", cost="worker")
    finally:
        Leaky.kept.clear()


@pytest.mark.parametrize("id", ["maze-v1", "textcraft-v1", "maze-grid-v1?size=9"])
def test_the_new_laws_hold_for_built_in_worlds(id: str) -> None:
    only = {"tells no secret", "pays no cycle", "costs what it says"}
    assert [str(r) for r in broken(check(resolve(id), examples=20, only=only))] == []

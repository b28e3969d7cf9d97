"""Gymnasium environments as ours: text in, text out, and every law that applies."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import pytest
from gymnasium import spaces
from rollwave.engine.errors import ConfigError, EnvironmentFault, MissingDependency
from rollwave.envs.base import EnvSpec, Task
from rollwave.envs.gymnasium import gymnasium_family
from rollwave.envs.laws import broken, check
from rollwave.envs.registry import Registry

MOVES = ("left", "down", "right", "up")


def frozen_lake(**options: Any) -> EnvSpec:
    registry = Registry()
    registry.register(
        gymnasium_family(
            "frozen-lake-v1",
            lambda: gymnasium.make("FrozenLake-v1", is_slippery=True),
            describe=lambda place: f"You stand on field {place} of 16.",
            words=MOVES,
            **options,
        )
    )
    return registry.resolve("frozen-lake")


class Letters(gymnasium.Env[str, str]):
    """Say the word backwards; a Text space, seeded words, success told in `info`."""

    action_space = spaces.Text(8)
    observation_space = spaces.Text(40)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "".join("abcdefgh"[n] for n in self.np_random.integers(0, 8, 5))
        self.tries = 0
        return f"Say {self.word} backwards.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.tries += 1
        right = action == self.word[::-1]
        said = "Yes." if right else "No."
        return said, 0.5 * right, right, self.tries == 6, {"right": right}


def letters(**options: Any) -> EnvSpec:
    family = gymnasium_family(
        "letters-v1",
        Letters,
        expert=lambda env: env.word[::-1],
        solved=lambda _, info: info["right"],
        splits={"train": range(20), "test": range(20, 30)},
        action_format="raw",
        **options,
    )
    return family.build(id=family.id)


@pytest.mark.parametrize("spec", [frozen_lake(), letters()], ids=["numbers", "text"])
def test_every_law_holds(spec: EnvSpec) -> None:
    assert [str(result) for result in broken(check(spec, examples=8))] == []


def test_an_episode_goes_as_gymnasiums_own() -> None:
    spec = frozen_lake()
    ours, theirs = spec.make(), gymnasium.make("FrozenLake-v1", is_slippery=True)
    assert (
        ours.reset(Task(spec.id, 17), seed=3)
        == f"You stand on field {theirs.reset(seed=17)[0]} of 16."
    )
    assert ours.available_actions() == MOVES
    for _ in range(100):
        observation, reward, terminated, truncated, _ = theirs.step(2)
        answer = ours.step(" RIGHT ")
        assert answer.observation == f"You stand on field {observation} of 16."
        assert (answer.reward, answer.terminated, answer.truncated) == (
            reward,
            terminated,
            truncated and not terminated,
        )
        if answer.done:
            break
    assert answer.done
    with pytest.raises(EnvironmentFault, match="reset"):
        ours.step("left")


def test_text_that_is_no_action_does_not_step() -> None:
    spec = frozen_lake()
    env = spec.make()
    first = env.reset(Task(spec.id, 0), 0)
    assert env.step("fly").observation == "Not an action. There are: left, down, right, up."
    assert env.step("2").observation.startswith("Not an action.")  # named actions have names only
    assert env.step("left").observation == first


def test_numbers_serve_where_there_are_no_names() -> None:
    family = gymnasium_family("lake-v1", "FrozenLake-v1", describe=str)
    env = family.build(id=family.id).make()
    env.reset(Task("lake-v1", 0), 0)
    assert env.available_actions() == ("0", "1", "2", "3")
    assert env.step("3").observation.isdigit()
    for text in ("4", "-1", "²", "1" * 5000, "left"):
        assert env.step(text).observation.startswith("Not an action.")


def test_success_is_the_users_rule_and_the_expert_too() -> None:
    spec = letters()
    env = spec.make()
    env.reset(Task(spec.id, 4), 0)
    assert env.available_actions() == ()
    assert env.step("123456789").observation == "Not an action. Write another."  # too long for it
    answer = env.step(env.expert() or "")
    assert (answer.success, answer.reward, answer.observation) == (True, 0.5, "Yes.")
    assert env.expert() is None


def test_a_session_before_its_reset_and_after_its_end_is_none() -> None:
    spec = letters()
    env = spec.make()
    with pytest.raises(EnvironmentFault, match="reset"):
        env.observation()
    with pytest.raises(ConfigError, match="tasks 0 to 29"):
        env.reset(Task(spec.id, 30), 0)
    env.close()
    env.close()
    with pytest.raises(EnvironmentFault, match="closed"):
        env.reset(Task(spec.id, 0), 0)


def test_what_cannot_be_text_says_what_to_do() -> None:
    family = gymnasium_family("pendulum-v1", "FrozenLake-v1")
    with pytest.raises(EnvironmentFault, match="describe"):
        family.build(id=family.id).make().reset(Task("pendulum-v1", 0), 0)

    class Continuous(Letters):
        action_space = spaces.Box(0, 1)  # type: ignore[assignment]

    odd = gymnasium_family("odd-v1", Continuous)
    env = odd.build(id=odd.id).make()
    env.reset(Task("odd-v1", 0), 0)
    with pytest.raises(ConfigError, match="Discrete or Text"):
        env.step("0.5")


def test_an_unknown_name_or_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    family = gymnasium_family("none-v1", "NoSuchThing-v0")
    with pytest.raises(ConfigError, match="NoSuchThing"):
        family.build(id=family.id).make().reset(Task("none-v1", 0), 0)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingDependency, match=r"rollwave\[gymnasium\]"):
        family.build(id=family.id).make().reset(Task("none-v1", 0), 0)

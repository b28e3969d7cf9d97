"""Recorded actions in an environment of today: solved, or nothing."""

from __future__ import annotations

import pytest
from rollwave.engine.errors import EnvironmentFault, EnvironmentLost, MissingDependency
from rollwave.engine.trajectory import Turn
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.rehearsal import rehearse


class Corridor(Environment):
    """Three steps east; "fall" breaks it."""

    closed = 0
    _at = 0

    def reset(self, task: Task, seed: int) -> str:
        if task.index == 99:
            raise MissingDependency("a corridor needs carpets")
        assert seed == 0
        self._at = 0
        return self.observation()

    def step(self, action: str) -> StepResult:
        if action == "fall":
            raise EnvironmentFault("the floor gave way")
        if action == "drown":
            raise EnvironmentLost("the server is gone")
        self._at += action == "east"
        done = self._at == 3 or action == "leave"
        won = done and self._at == 3
        return StepResult(self.observation(), 1.0 * won, terminated=done, success=won)

    def observation(self) -> str:
        return f"at {self._at}"

    def available_actions(self) -> tuple[str, ...]:
        return ("east",)

    def close(self) -> None:
        Corridor.closed += 1
        if self._at == 3:
            raise EnvironmentFault("the door is stuck")


SPEC = EnvSpec(
    id="corridor-v1", make=Corridor, splits={"train": (0, 99)}, action_format="react", turn_limit=5
)
TASK = Task("corridor-v1", 0, "train")


def turns(*actions: str) -> list[Turn]:
    return [Turn("as others saw it", f"I say {a}", a, 7.0, format_error=not a) for a in actions]


def test_the_observations_and_rewards_are_those_of_this_environment() -> None:
    found = rehearse(SPEC, TASK, turns("east", "", "east", "east"))
    assert found is not None
    played, final = found
    assert [turn.observation for turn in played] == ["at 0", "at 1", played[2].observation, "at 2"]
    assert played[2].observation not in {"at 1", ""}  # what a broken format is told
    assert [turn.reward for turn in played] == [0.0, 0.0, 0.0, 1.0]
    assert [turn.completion for turn in played] == [
        f"I say {a}" for a in ("east", "", "east", "east")
    ]
    assert final == "at 3"


def test_turns_behind_the_end_are_left_out() -> None:
    found = rehearse(SPEC, TASK, turns("east", "east", "east", "fall"))
    assert found is not None
    assert len(found[0]) == 3


@pytest.mark.parametrize(
    ("actions", "limit"),
    [
        (["east", "east"], 0),
        (["leave"], 0),
        (["fall"], 0),
        ([], 0),
        (["wait"] * 3 + ["east"] * 3, 0),  # above the environment's own limit
        (["east", "east", "east"], 2),
    ],
)
def test_what_does_not_solve_the_task_is_nothing_and_is_closed(
    actions: list[str], limit: int
) -> None:
    before = Corridor.closed
    assert rehearse(SPEC, TASK, turns(*actions), turn_limit=limit) is None
    assert Corridor.closed == before + 1


def test_what_is_not_installed_is_no_fault_of_the_record() -> None:
    with pytest.raises(MissingDependency):
        rehearse(SPEC, Task("corridor-v1", 99, "train"), turns("east"))


def test_a_world_that_is_gone_says_nothing_about_the_record() -> None:
    before = Corridor.closed
    with pytest.raises(EnvironmentLost, match="the server is gone"):
        rehearse(SPEC, TASK, turns("east", "drown", "east"))
    assert Corridor.closed == before + 1

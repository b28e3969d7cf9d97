"""Which of our tasks a recorded episode is of."""

from __future__ import annotations

import pytest
from rollwave.envs.agentgym.identity import own_text, same_world, task_index
from rollwave.envs.base import Task
from rollwave.envs.registry import resolve


@pytest.mark.parametrize(
    ("name", "env", "same"),
    [
        ("textcraft", "textcraft-v1", True),
        ("lmrlgym_maze", "maze-v1", True),
        ("maze", "maze-v1", True),
        ("maze", "maze-grid-v1", False),
        ("wordle", "wordle-fixed-v1", False),
        ("maze-grid", "maze-grid-v1?size=3&style=terse", True),
        # A full id means its own options, in whatever order they are written.
        ("maze-grid-v1?style=terse&size=3", "maze-grid-v1?size=3&style=terse", True),
        ("maze-grid-v1?size=4", "maze-grid-v1?size=3", False),
        ("babyai-v1", "babyai-v1?scoring=agentgym", False),
        ("babyai-v7", "babyai-v1", False),
        ("babyai-v1?colour=blue", "babyai-v1", False),
        ("my-world-v1", "my-world-v1", True),
        ("http://127.0.0.1:1/maze?tasks=26", "maze-v1", False),
        ("webshop", "http://h:1/webshop?tasks=9", True),
        ("textcraft", "http://h:1?dialect=textcraft&tasks=9", True),
        ("webshop", "http://h:1/maze?tasks=9", False),
        ("maze-v1", "http://h:1/maze?tasks=9", False),
        ("unknown", "maze-v1", False),
    ],
)
def test_a_files_name_for_a_world(name: str, env: str, same: bool) -> None:
    assert same_world(name, env) is same


@pytest.mark.parametrize(
    ("task", "number"),
    [("babyai_17", 17), ("lmrlgym_babyai_3", 3), ("maze_17", None), ("babyai", None), ("17", None)],
)
def test_numbers_are_those_of_their_world(task: str, number: int | None) -> None:
    assert task_index("babyai-v1?scoring=agentgym", task, "You see a door.") == number


def test_a_servers_numbers_are_those_of_published_files_but_for_textcraft() -> None:
    assert task_index("http://h:1/webshop?tasks=9", "webshop_7", "Instruction") == 7
    for env in ("http://h:1/webshop?tasks=9", "http://h:1/textcraft?tasks=9", "http://h-v1:1/maze"):
        assert task_index(env, Task(env, 7).id, "") == 7  # a run on that server
    first = resolve("textcraft-v1").make()
    seen = first.reset(resolve("textcraft-v1").numbered([300])[0], 0)
    assert task_index("http://h:1/textcraft?tasks=9", "textcraft_7", seen) is None


def test_a_textcraft_task_is_its_goal() -> None:
    spec = resolve("textcraft-v1")
    session = spec.make()
    first = session.reset(spec.numbered([300])[0], 0)
    assert task_index("textcraft-v1", "textcraft_12", first) == 300
    assert task_index("textcraft-v1", "textcraft_12", f"Instruction:\n{first}") == 300
    assert task_index("textcraft-v1", "textcraft_12", "look around") is None
    other = first.rpartition("Goal: craft ")[0] + "Goal: craft a house."
    assert task_index("textcraft-v1", "textcraft_12", other) is None
    assert own_text("textcraft-v1", f"Instruction:\n{first}") == first
    assert own_text("maze-v1", "Instruction:\nx") == "Instruction:\nx"

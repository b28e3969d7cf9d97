"""The files that `rollwave envs new` writes: a world that keeps every law, and its test.

Invariant: what is written passes `rollwave envs check` and its own test as it is.

Not here: the command (`envs`).
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Final

from ..engine.errors import ConfigError, storage_error

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:-[a-z][a-z0-9]*)*")

_WORLD: Final = Template('''\
"""$title: count up to the task's number, and say so. Change everything but the shape."""

from __future__ import annotations

from collections.abc import Sequence

from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.base import Environment, EnvFamily, EnvSpec, StepResult, Task

SPLITS = {"train": range(1, 61), "dev": range(61, 71), "test": range(71, 101)}


class $type(Environment):
    """One session. Whatever is random comes from the `seed` of `reset`, or the task's number."""

    def __init__(self, step: int) -> None:
        self._step = step  # the option of the family below
        self._goal = 0  # 0: not reset yet
        self._count = 0
        self._over = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this session is closed; make a new one")
        if not any(task.index in members for members in SPLITS.values()):
            raise ConfigError(f"tasks are 1 to 100, not {task.index}")
        self._goal, self._count, self._over = task.index, 0, False
        return self.observation()

    def step(self, action: str) -> StepResult:
        self._live()
        if self._over:
            raise EnvironmentFault("the episode is over; reset the session first")
        # Any text is legal: a bad action is answered in words, never with an exception.
        if action == "up":
            self._count = min(self._count + self._step, self._goal)
        self._over = action == "stop"
        success = self._over and self._count == self._goal
        return StepResult(self.observation(), float(success), self._over, success=success)

    def observation(self) -> str:
        self._live()
        return f"count {self._count} goal {self._goal}" + (" stopped" if self._over else "")

    def available_actions(self) -> Sequence[str]:
        self._live()
        return () if self._over else ("up", "stop")

    def expert(self) -> str | None:
        self._live()
        return None if self._over else "up" if self._count < self._goal else "stop"

    def close(self) -> None:
        self._closed = True

    def _live(self) -> None:
        if self._closed or not self._goal:
            raise EnvironmentFault("reset the session first, and do not use it after close")


def build(*, id: str, step: int) -> EnvSpec:
    """Settle the options into what the engine needs."""
    if not 1 <= step <= 100:
        raise ConfigError(f"$name: step is 1 to 100, not {step}")
    return EnvSpec(
        id=id,
        make=lambda: $type(step),
        splits=SPLITS,
        action_format="raw",  # the whole completion is the action; "react" has a thought first
        turn_limit=100 // step + 2,
    )


FAMILY = EnvFamily(
    id="$name-v1", summary="count up to a number", build=build, options={"step": 10}
)
''')

_TEST: Final = Template('''\
"""The world keeps every law, with each of its options."""

from __future__ import annotations

import pytest
from rollwave.envs.laws import broken, check

from $module import FAMILY


@pytest.mark.parametrize("step", [1, 10, 100])
def test_the_laws_hold(step: int) -> None:
    results = check(FAMILY.build(id=FAMILY.id, step=step), examples=50, seed=1)
    assert [str(result) for result in broken(results)] == []
''')


def write(name: str, directory: Path) -> list[Path]:
    """Write the world and its test; gives their paths.

    Raises:
        ConfigError: the name is no lower-case name, or a file is there already.
        StorageFailed: the disk refused.
    """
    if not _NAME.fullmatch(name) or name.endswith("-v1"):
        raise ConfigError(
            f"a name is lower-case words joined by hyphens, without a version, not {name!r}: "
            "rollwave envs new my-world"
        )
    module = name.replace("-", "_")
    words = {
        "name": name,
        "module": module,
        "type": "".join(word.capitalize() for word in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
    }
    files = {
        directory / f"{module}.py": _WORLD.substitute(words),
        directory / f"test_{module}.py": _TEST.substitute(words),
    }
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} is there already: choose another name or --out directory")
    for path, text in files.items():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        except OSError as error:
            raise storage_error(error, path) from error
    return list(files)

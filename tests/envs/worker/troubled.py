"""A world that does what it is told, in a worker process: counts, dies, hangs, grows."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.base import EnvFamily, Environment, EnvSpec, StepResult, Task
from rollwave.envs.wrappers import Wrapper


class Troubled(Environment):
    """Counts its steps; each action of `_do` does what it says first."""

    kept: ClassVar[list[bytearray]] = []
    closed_sessions = 0

    def __init__(self, opening: str = "") -> None:
        self.count = -1
        self.do(opening)

    def reset(self, task: Task, seed: int) -> str:
        if task.index > 99:
            raise ConfigError(f"no task {task.index}")
        self.count = 0
        return f"task {task.index} seed {seed}"

    def step(self, action: str) -> StepResult:
        if self.count < 0:
            raise EnvironmentFault("reset the session first")
        self.count += 1
        said: Any = self.do(action)
        if isinstance(said, StepResult):
            return said
        return StepResult(f"{self.count}: {said}", 0.25, self.count == 9, success=self.count == 9)

    def do(self, action: str) -> object:
        verb, _, rest = action.partition(" ")
        match verb:
            case "exit":
                os._exit(int(rest))
            case "script":
                sys.exit(3)
            case "segfault":
                ctypes.string_at(0)
            case "grow":
                while True:
                    self.kept.append(bytearray(b"x") * (4 << 20))
            case "leak":
                self.kept.append(bytearray(b"x") * (int(rest) << 20))
            case "sleep":
                time.sleep(1e6)
            case "say":
                print(rest)  # noqa: T201
                print(rest, file=sys.stderr)  # noqa: T201
                os.write(1, rest.encode() * 10_000)
            case "fork":
                if os.fork():
                    os.wait()
            case "stray":
                if not os.fork():
                    time.sleep(1e6)
            case "raise":
                raise ValueError(rest)
            case "half":
                return StepResult("\udc80")
            case "garbage":
                return StepResult(17)  # type: ignore[arg-type]
            case "big":
                return "x" * int(rest)
            case "torch":
                return str("torch" in sys.modules)
            case "pid":
                return str(os.getpid())
            case "closed":
                return str(Troubled.closed_sessions)
            case _:
                return f"{len(action)} {sum(map(ord, action))}"
        return verb

    def observation(self) -> str:
        return str(self.count)

    def available_actions(self) -> Sequence[str]:
        return ("count", "more")

    def expert(self) -> str | None:
        return "count"

    def close(self) -> None:
        Troubled.closed_sessions += 1


def spec(**changes: Any) -> EnvSpec:
    """The world's spec."""
    settings: dict[str, Any] = {"make": Troubled, "splits": {"train": range(100)}}
    return EnvSpec(id="troubled-v1", reward_range=(0.0, 10.0), **(settings | changes))


def build(*, id: str, start: int) -> EnvSpec:
    """For a family: what it makes cannot be imported itself."""
    return EnvSpec(id=id, make=lambda: Late(start), splits={"train": range(100)})


class Late(Troubled):
    """Counts from elsewhere."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def reset(self, task: Task, seed: int) -> str:
        first = super().reset(task, seed)
        self.count = self.start
        return first


FAMILY = EnvFamily(id="late-v1", summary="for tests", build=build, options={"start": 5})


class Loud(Wrapper):
    """Says everything in capitals."""

    def step(self, action: str) -> StepResult:
        result = self.inner.step(action)
        return StepResult(result.observation.upper() + "!", result.reward)


class OnceBroken:
    """Makes sessions, but kills the first process that imports it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__ = state
        mark = Path(self.directory, "broken")
        if not mark.exists():
            mark.touch()
            os._exit(4)

    def __call__(self) -> Environment:
        return Troubled()

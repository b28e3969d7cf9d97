"""A world of so many turns, and a host in which calls take time.

`Countdown` ends after as many steps as it was told, whatever the actions; `LatencyHost`
puts virtual seconds around the calls of any environment.

Invariant: how long a call takes depends on the task, the turn and the `Pace` alone.

Not here: latencies (`draws`), and environments that break (`faulty` hosts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from ...engine.trajectory import ChatMessage
from ...engine.virtual_clock import VirtualClock
from ...envs.base import Environment, EnvSpec, StepResult, Task
from ...envs.hosting import Host, Hosted

ENV: Final = "simulated-v1"
_SEEN: Final = "Go on."
_ON: Final = StepResult(_SEEN)
_END: Final = StepResult(_SEEN, 1.0, terminated=True, success=True)


class Countdown(Environment):
    """Succeeds after as many steps as its task takes."""

    def __init__(self, turns: Callable[[int], int]) -> None:
        """`turns` gives them by task index."""
        self._turns = turns
        self._left = 0

    def reset(self, task: Task, seed: int) -> str:
        """Start the count."""
        self._left = self._turns(task.index)
        return _SEEN

    def step(self, action: str) -> StepResult:
        """Count one down."""
        self._left -= 1
        return _ON if self._left > 0 else _END

    def observation(self) -> str:
        """Always the same."""
        return _SEEN

    def available_actions(self) -> Sequence[str]:
        """One is as good as another."""
        return ("go",)


def world(sessions: int, turns: Callable[[int], int], longest: int) -> EnvSpec:
    """The environment of a simulation: one task an episode."""
    return EnvSpec(
        id=ENV,
        make=lambda: Countdown(turns),
        splits={"test": range(sessions)},
        prompt=(ChatMessage("system", "Go on."),),
        action_format="raw",
        turn_limit=longest,
    )


class Pace:
    """Seconds that calls take. On its own: none."""

    def make(self) -> float:
        """Seconds of making an environment."""
        return 0.0

    def reset(self, task: Task) -> float:
        """Seconds of a reset."""
        return 0.0

    def step(self, task: Task, turn: int) -> float:
        """Seconds of a step; turns are counted from the reset."""
        return 0.0

    def close(self) -> float:
        """Seconds of closing."""
        return 0.0

    def was_reset(self, task: Task) -> None:
        """A reset has come to its end."""

    def was_stepped(self, task: Task, turn: int) -> None:
        """A step has come to its end."""


class LatencyHost(Host):
    """Another host's sessions, whose calls take virtual seconds before they are made."""

    def __init__(self, inner: Host, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    async def open(self) -> Hosted:
        await _pass(self._pace.make())
        return _Slow(await self._inner.open(), self._pace)


class _Slow(Hosted):
    def __init__(self, inner: Hosted, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace
        self._task: Task
        self._turn = 0

    async def reset(self, task: Task, seed: int) -> str:
        self._task, self._turn = task, 0
        await _pass(self._pace.reset(task))
        observation = await self._inner.reset(task, seed)
        self._pace.was_reset(task)
        return observation

    async def step(self, action: str) -> StepResult:
        task, turn = self._task, self._turn
        self._turn += 1
        await _pass(self._pace.step(task, turn))
        result = await self._inner.step(action)
        self._pace.was_stepped(task, turn)
        return result

    async def expert(self) -> str | None:
        return await self._inner.expert()

    async def available_actions(self) -> Sequence[str]:
        return await self._inner.available_actions()

    async def close(self) -> None:
        await _pass(self._pace.close())
        await self._inner.close()

    def abandon(self) -> None:
        self._inner.abandon()


async def _pass(seconds: float) -> None:
    """Let so much time pass; none at all costs nothing."""
    if seconds > 0.0:
        clock = trio.lowlevel.current_clock()
        await (clock.sleep if isinstance(clock, VirtualClock) else trio.sleep)(seconds)

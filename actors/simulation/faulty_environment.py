"""An environment's host whose sessions go wrong at a share of their calls.

Each call is drawn by the plan's seed, the process run, the task, the episode's environment
seed, which session of them it is, and the call's number: so a session that is opened in
place of a lost one meets other faults, and other episodes change nothing.

Invariant: what is not struck is passed on, and a session is closed as often as its episode
closes it.

Not here: environments that go wrong by themselves (`envs.wrappers.Flaky`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from ...engine.errors import EnvironmentLost
from ...engine.seeds import derive, generator
from ...envs.base import StepResult, Task
from ...envs.hosting import Host, Hosted
from .fault_plan import FaultPlan

_GARBAGE: Final[tuple[Any, ...]] = (
    None,
    "an observation without the rest",
    StepResult(17),  # type: ignore[arg-type]
    StepResult("\ud800"),
    StepResult("not a number", float("nan")),
    StepResult("no flag", 0.0, "yes"),  # type: ignore[arg-type]
    StepResult("out of range", 1e6, terminated=True),
)


class FaultyHost(Host):
    """Opens sessions that go wrong."""

    def __init__(
        self, inner: Host, plan: FaultPlan, process: int, struck: Callable[[str], None]
    ) -> None:
        """`struck` is told each fault by its name."""
        self._inner = inner
        self._faults = plan.environment
        self._seed = derive(plan.seed, "environment", process)
        self._struck = struck
        self._opened = 0
        self._sessions: Counter[tuple[str, int]] = Counter()

    async def open(self) -> Hosted:
        self._opened += 1
        await self.suffer(derive(self._seed, "open", self._opened), 0)
        return _Faulty(await self._inner.open(), self)

    def seed_of(self, task: Task, seed: int) -> int:
        """The seed of the faults of a session that is reset so."""
        key = (task.id, seed)
        self._sessions[key] += 1
        return derive(self._seed, task.id, seed, self._sessions[key])

    async def suffer(self, seed: int, call: int) -> str:
        """Raise, hang, or give "garbage" or nothing, as it is drawn for this call."""
        kind = self._faults.draw(generator(seed, call).random())
        if kind:
            self._struck(f"environment.{kind}")
        if kind == "raises":
            raise ZeroDivisionError("injected: the environment has a defect")
        if kind == "lost":
            raise EnvironmentLost("injected: the process of this environment died")
        if kind == "hangs":
            await trio.sleep_forever()
        return kind


class _Faulty(Hosted):
    def __init__(self, inner: Hosted, host: FaultyHost) -> None:
        self._inner = inner
        self._host = host
        self._seed = 0
        self._call = 0

    async def _garbage(self) -> Any:
        """What is answered instead, if this call is struck so."""
        self._call += 1
        if not await self._host.suffer(self._seed, self._call):
            return _SOUND
        return generator(self._seed, self._call, "garbage").choice(_GARBAGE)

    async def reset(self, task: Task, seed: int) -> str:
        self._seed = self._host.seed_of(task, seed)
        garbage = await self._garbage()
        if garbage is not _SOUND:
            return garbage if isinstance(garbage, StepResult) else 17  # type: ignore[return-value]
        return await self._inner.reset(task, seed)

    async def step(self, action: str) -> StepResult:
        garbage = await self._garbage()
        if garbage is not _SOUND:
            return garbage  # type: ignore[no-any-return]
        return await self._inner.step(action)

    async def expert(self) -> str | None:
        return await self._inner.expert()

    async def available_actions(self) -> Sequence[str]:
        return await self._inner.available_actions()

    async def close(self) -> None:
        await self._inner.close()
        await self._garbage()

    def abandon(self) -> None:
        self._inner.abandon()


_SOUND: Final = object()

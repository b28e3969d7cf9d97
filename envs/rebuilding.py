"""A session that outlives the process it runs in: reopened, and its actions replayed.

    step ─▶ EnvironmentLost ─▶ open another, reset, repeat every action ─▶ step again

Invariants:

* a session goes on behind a loss only if each replayed action was answered as before;
  otherwise the loss is raised, and says where the answers differ;
* an action that kills whatever runs it is tried `MAX_LOSSES` times, not for ever;
* where replay rebuilds nothing (`EnvSpec.deterministic` is False), a loss is raised as soon
  as anything was answered.

Not here: where sessions run, and who loses them (`worker`); an episode's replay after a
crash of the engine itself (`actors.episode`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from ..engine.errors import EnvironmentFault, EnvironmentLost
from .base import StepResult, Task
from .hosting import Hosted

T = TypeVar("T")

MAX_LOSSES: Final = 3
"""Losses in an episode's own calls at which it is given up."""
MAX_LOSSES_OF_OTHERS: Final = 100
"""Losses in the calls of other sessions, in the same process, at which it is given up."""


class Rebuilding(Hosted):
    """Gives back what the session inside answers, whatever processes it takes."""

    def __init__(self, make: Callable[[], Awaitable[Hosted]], *, replay: bool) -> None:
        """
        Args:
            make: opens a session, each time in a process that is alive.
            replay: the same actions rebuild the same state.
        """
        self._make = make
        self._replay = replay
        self._inner: Hosted | None = None
        self._start: tuple[Task, int] | None = None
        self._first = ""
        self._steps: list[tuple[str, StepResult]] = []
        self._final: EnvironmentLost | None = None
        self._closed = False
        self.losses = 0
        """In its own calls, since the reset."""
        self.losses_of_others = 0
        """In other sessions' calls, since the reset."""

    async def open(self) -> None:
        """Open the session, before anything else is called."""
        await self._call(_nothing)

    async def reset(self, task: Task, seed: int) -> str:
        self._start = None
        self._steps.clear()
        self._final = None
        self.losses = self.losses_of_others = 0
        self._first = await self._call(lambda session: session.reset(task, seed))
        self._start = task, seed
        return self._first

    async def step(self, action: str) -> StepResult:
        result = await self._call(lambda session: session.step(action))
        self._steps.append((action, result))
        return result

    async def expert(self) -> str | None:
        return await self._call(lambda session: session.expert())

    async def available_actions(self) -> Sequence[str]:
        return await self._call(lambda session: session.available_actions())

    async def about(self) -> Mapping[str, str | int]:
        return await self._call(lambda session: session.about())

    async def close(self) -> None:
        self._closed = True
        inner, self._inner = self._inner, None
        if inner is not None:
            try:
                await inner.close()
            except EnvironmentLost:
                pass  # what is gone holds nothing any more
            except BaseException:
                inner.abandon()
                raise

    def abandon(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.abandon()

    async def _call(self, function: Callable[[Hosted], Awaitable[T]]) -> T:
        while True:
            if self._closed:
                raise EnvironmentFault("this session is closed: open another")
            if self._final is not None:
                raise self._final
            try:
                session = self._inner
                if session is None:
                    session = await self._rebuild()
                return await function(session)
            except EnvironmentLost as loss:
                self._drop()
                self._count(loss)

    async def _rebuild(self) -> Hosted:
        session = self._inner = await self._make()
        if self._start is not None:
            task, seed = self._start
            if await session.reset(task, seed) != self._first:
                self._different("the reset")
            for number, (action, before) in enumerate(self._steps):
                if await session.step(action) != before:
                    self._different(f"action {number} ({action[:80]!r})")
        return session

    def _different(self, where: str) -> None:
        self._final = EnvironmentLost(
            f"the session's process was lost, and in another one {where} was answered "
            "differently: the environment is not deterministic; set deterministic=False in its spec"
        )
        raise self._final

    def _count(self, loss: EnvironmentLost) -> None:
        """Raise the loss, if it is the last one allowed."""
        if self._final is not None:
            raise self._final
        if loss.blamed:
            self.losses += 1
        else:
            self.losses_of_others += 1
        text = ""
        if not self._replay and self._start is not None:
            text = "replaying its actions would not rebuild it"
        elif self.losses >= MAX_LOSSES:
            text = f"{self.losses} processes died in its calls"
        elif self.losses_of_others >= MAX_LOSSES_OF_OTHERS:
            text = f"{self.losses_of_others} processes died under it"
        if text:
            self._final = EnvironmentLost(f"{loss} ({text})", blamed=loss.blamed)
            raise self._final from loss


async def _nothing(session: Hosted) -> None:
    """Only open it."""

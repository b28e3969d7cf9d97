"""One session in a worker process, as `Hosted` has it.

Invariant: its place in the worker is given back once, and what was made in the process is
closed there when the call that it is in returns, or dies with it.

Not here: what becomes of it when the process dies (`rebuilding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...engine.codec import Message
from ..base import StepResult, Task
from ..hosting import Hosted
from .actor import Worker
from .protocol import (
    About,
    Close,
    Done,
    Facts,
    Hint,
    Hinted,
    List,
    Listed,
    Open,
    Reset,
    Said,
    Step,
)


class WorkerSession(Hosted):
    """A session of one worker. Every call raises `EnvironmentLost` when the worker dies."""

    def __init__(self, worker: Worker, number: int, name: str) -> None:
        self._worker = worker
        self._number = number
        self._name = name
        self._request: Message = Open(number)
        worker.admit(number, self)

    async def open(self) -> None:
        """Make it in the process; comes first."""
        await self._worker.call(self._number, self._request, Done)

    async def reset(self, task: Task, seed: int) -> str:
        self._name = task.id
        request = self._request = Reset(self._number, task, seed)
        return (await self._worker.call(self._number, request, Said)).observation

    async def step(self, action: str) -> StepResult:
        request = self._request = Step(self._number, action.encode(errors="surrogatepass"))
        return await self._worker.call(self._number, request, StepResult)

    async def expert(self) -> str | None:
        request = self._request = Hint(self._number)
        return (await self._worker.call(self._number, request, Hinted)).action

    async def available_actions(self) -> Sequence[str]:
        request = self._request = List(self._number)
        return (await self._worker.call(self._number, request, Listed)).actions

    async def about(self) -> Mapping[str, str | int]:
        request = self._request = About(self._number)
        return (await self._worker.call(self._number, request, Facts)).facts

    async def close(self) -> None:
        request = self._request = Close(self._number)
        await self._worker.call(self._number, request, Done)
        self._worker.release(self._number, None)

    def abandon(self) -> None:
        self._worker.release(self._number, Close(self._number))

    def doing(self) -> str:
        """The call it is in, or was last in, in words."""
        match self._request:
            case Step(action=action):
                text = action.decode(errors="replace")
                call = f"step({text[:80]!r}{'…' if len(text) > 80 else ''})"
            case other:
                call = _CALLS[type(other)]
        return f"{call} of {self._name}"


_CALLS = {
    Open: "making a session",
    Reset: "reset",
    Hint: "the expert",
    List: "available_actions",
    About: "about",
    Close: "close",
}

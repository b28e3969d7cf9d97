"""An inference backend that goes wrong at some requests, deaths and swaps.

Invariants: what happens to a request is drawn from the plan's seed and the request's own
seed alone; a request that is not struck is the inner backend's affair.

Not here: what the cast makes of it (`inference`, `policies`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from ...engine.errors import BackendDied, BackendError, WeightSwapFailed
from ...engine.seeds import generator
from ..backends.base import Backend, Done
from ..protocol import Completion, Generate
from .fault_plan import FaultPlan, Strike

BACKEND_STRIKES: Final = ("backend.dies", "swap.fails", "swap.hangs")

_LATE_SECONDS: Final = 86_400.0
"""A late answer comes after every deadline of a turn."""


@dataclass(slots=True)
class BackendCounts:
    """What the backends of one process were asked, over all incarnations."""

    requests: int = 0
    swaps: int = 0


class FaultyBackend(Backend):
    """Another backend, with faults between it and the inference actor."""

    def __init__(
        self,
        inner: Backend,
        plan: FaultPlan,
        strikes: Sequence[Strike],
        counts: BackendCounts,
        struck: Callable[[str], None],
    ) -> None:
        """`strikes` are those of this process; `struck` is told each fault by its name."""
        super().__init__()
        self.takes_tokens = inner.takes_tokens
        self.gives_tokens = inner.gives_tokens
        self.statistics = inner.statistics
        self.policy_version = inner.policy_version
        self._inner = inner
        self._plan = plan
        self._deaths = {s.at for s in strikes if s.kind == "backend.dies"}
        self._swaps = {s.at: s.kind for s in strikes if s.kind != "backend.dies"}
        self._counts = counts
        self._struck = struck
        self._died = trio.Event()
        self._late: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled, or until a death is due.

        Raises:
            BackendDied: as planned, or as the inner one raised it.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._serve)
            task_status.started()
            await self._died.wait()
            raise BackendDied("injected: the backend died")

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._inner.run(task_status=task_status)

    def submit(self, request: Generate, done: Done) -> None:
        """Accept a request, or strike it."""
        number, self._counts.requests = self._counts.requests, self._counts.requests + 1
        if number in self._deaths and not self._died.is_set():
            self._struck("backend.dies")
            self._died.set()
        draw = generator(self._plan.seed, "backend", request.seed)
        kind = self._plan.backend.draw(draw.random())
        if not kind:
            self._inner.submit(request, done)
            return
        self._struck(f"backend.{kind}")
        assert self._nursery is not None  # the actor submits once it serves
        if kind == "refuses":
            error = BackendError("injected: this request is refused")
            self._nursery.start_soon(_later, 0.0, done, error)
        elif kind == "late":
            self._late.add(request.request_id)
            self._inner.submit(request, lambda result: self._delay(request, done, result))
        elif kind == "stale":
            offset = draw.choice((-1, 1, 1000))
            self._inner.submit(request, lambda result: done(_of_version(result, offset)))
        elif kind == "corrupt":
            change = draw.choice(_CORRUPTIONS)
            self._inner.submit(request, lambda result: done(_corrupted(result, change)))

    def _delay(self, request: Generate, done: Done, result: Completion | BaseException) -> None:
        assert self._nursery is not None
        self._late.discard(request.request_id)
        self._nursery.start_soon(_later, _LATE_SECONDS, done, result)

    def cancel(self, request_id: str) -> None:
        """Forget a request, but for those that are answered late."""
        if request_id not in self._late:
            self._inner.cancel(request_id)

    async def swap_weights(self, version: int, path: str) -> None:
        """Serve other weights, or fail half-way, with no telling which are served then.

        Raises:
            WeightSwapFailed: as planned, or as the inner one raised it.
        """
        number, self._counts.swaps = self._counts.swaps, self._counts.swaps + 1
        kind = self._swaps.get(number)
        if kind == "swap.hangs":
            self._struck(kind)
            await trio.sleep_forever()
        await self._inner.swap_weights(version, path)
        self.policy_version = self._inner.policy_version
        if kind == "swap.fails":
            self._struck(kind)
            raise WeightSwapFailed(f"injected: policy version {version} was loaded half")


async def _later(seconds: float, done: Done, result: Completion | BaseException) -> None:
    await trio.sleep(seconds)
    done(result)


def _of_version(result: Completion | BaseException, offset: int) -> Completion | BaseException:
    if isinstance(result, BaseException):
        return result
    version = result.policy_version + offset
    return msgspec.structs.replace(result, policy_version=version if version >= 0 else 1)


_CORRUPTIONS: Final[tuple[dict[str, bytes], ...]] = (
    {"logprobs": b"\x00\x00\x00"},
    {"logprobs": b"\x00\x00\xc0\x7f"},  # not a number
    {"token_ids": b""},
    {"token_ids": b"\x01"},
)


def _corrupted(
    result: Completion | BaseException, change: dict[str, bytes]
) -> Completion | BaseException:
    if isinstance(result, BaseException):
        return result
    return msgspec.structs.replace(result, **change)

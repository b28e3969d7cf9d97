"""The one actor behind which every model sits: requests in, completions out, as they come.

    Generate ──▶ backend.submit ─ … ─▶ Completion      no request waits for another's session
    asker gone ─▶ backend.cancel                        its place in the batch is free again
    SwapWeights ─▶ backend.swap_weights                 barrier: before it the old weights
                        ├─ loaded ──▶ holder, then WeightsSwapped
                        └─ failed ──▶ AskFailed, and this actor fails with it
    backend died ─▶ this actor fails ─▶ restarted with the holder's policy

Invariants:

* the holder names the policy that is served: it changes when the weights have, and an
  incarnation starts from it. So a restart at any moment serves what was confirmed last;
* every ask is answered once: by a completion, by its own failure (`AskFailed`), or, when
  the backend dies, with `ActorRestarted`: asked again with the same seed, it is the same
  request to the next incarnation;
* a completion names a policy version that was served between its request and its answer;
  one that names another is refused;
* a swap that fails, or whose asker stops waiting, leaves no doubt about what is served:
  the actor fails and starts again from the holder.

Not here: engines (`backends`), what a session does with an answer (`policies`), and the
order of saving, announcing and confirming a policy (`weights`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import trio

from ..engine.actor import Actor
from ..engine.clock import deadline, now
from ..engine.codec import Message
from ..engine.envelope import Reply
from ..engine.errors import BackendDied, BackendError, WeightSwapFailed
from .backends.base import Backend, BackendStatistics
from .protocol import (
    Completion,
    DescribeInference,
    Generate,
    InferenceStatus,
    SwapWeights,
    WeightsSwapped,
)

MakeBackend = Callable[[int, str], Backend]
"""(policy version, model directory) → a backend that serves it, not running yet."""


class PolicyHolder:
    """Which policy is served, whatever happens to who serves it.

    Owned by the composition root; written by the inference actor alone, after a swap.
    """

    __slots__ = ("path", "statistics", "version")

    def __init__(self, version: int, path: str) -> None:
        self.version = version
        self.path = path
        """Model directory; empty where the backend needs none."""
        self.statistics = BackendStatistics()
        """Of the backend that serves now; its counters start anew with each incarnation."""

    @property
    def batch_fill(self) -> float:
        """Mean share of the batch capacity in use; 0 where it is unbounded or idle."""
        return self.statistics.batch_fill


class Inference(Actor):
    """Serves one policy to every session.

    Args:
        make_backend: called for each incarnation with the holder's version and path.
        holder: the policy to serve; outlives the incarnation.
        start_seconds: how long a backend may take to load its model.
    """

    receives = (Generate, SwapWeights, DescribeInference)
    mailbox_capacity = 4096
    has_tasks = True

    def __init__(
        self, make_backend: MakeBackend, holder: PolicyHolder, *, start_seconds: float = 900.0
    ) -> None:
        self._make_backend: Final = make_backend
        self._holder: Final = holder
        self._start_seconds: Final = start_seconds
        self._backend: Backend
        self._waiting: dict[str, Reply] = {}  # by request id
        self._swaps: deque[tuple[SwapWeights, Reply]] = deque()  # the first is under way
        self._versions = [holder.version]  # served by this incarnation, one being loaded included
        self._confirmed = 0  # how many of them before the one that was confirmed last

    async def on_start(self) -> None:
        """Start the backend and wait until it serves.

        Raises:
            DeadlineExceeded: it takes longer than `start_seconds`.
            ConfigError, MissingDependency, BackendDied: it cannot start.
        """
        holder = self._holder
        self._backend = self._make_backend(holder.version, holder.path)
        holder.statistics = self._backend.statistics
        ready = _Ready()
        self.background(self._serve, ready)
        with deadline("start of the inference backend", self._start_seconds):
            await ready.event.wait()

    async def receive(self, message: Message) -> Message | None:
        """Hand over to the backend; the answers come later."""
        match message:
            case Generate():
                self._generate(message, self.defer())
            case SwapWeights():
                self._begin_swap(message)
            case DescribeInference():
                return self._status()
        return None

    async def _serve(self, ready: _Ready) -> None:
        await self._backend.run(task_status=ready)
        raise BackendDied("the backend stopped serving, and nobody had asked it to")

    # -- requests -------------------------------------------------------------

    def _generate(self, request: Generate, reply: Reply) -> None:
        request_id = request.request_id
        earlier = self._waiting.get(request_id)
        if earlier is not None:
            earlier.fail(BackendError(f"{request_id} was asked for again, elsewhere"))
        self._waiting[request_id] = reply
        since = self._confirmed

        def done(result: Completion | BaseException) -> None:
            if self._waiting.get(request_id) is reply:
                del self._waiting[request_id]
            if not isinstance(result, Completion):
                reply.fail(result)
            elif result.policy_version in self._versions[since:]:
                reply.answer(result)
            else:
                reply.fail(self._dishonest(result))

        def abandoned() -> None:
            # Not if the id has been asked for again since: that request is another's.
            if self._waiting.get(request_id) is reply:
                del self._waiting[request_id]
                self._backend.cancel(request_id)

        self._backend.submit(request, done)
        reply.on_abandon(abandoned)

    def _dishonest(self, result: Completion) -> BackendError:
        served = self._versions[self._confirmed]
        return BackendError(
            f"the backend answered {result.request_id} for policy version "
            f"{result.policy_version}, while {served} was served: it is not learned from"
        )

    # -- weights --------------------------------------------------------------

    def _begin_swap(self, order: SwapWeights) -> None:
        self._swaps.append((order, self.defer()))
        if len(self._swaps) == 1:
            self.background(self._swap_all)

    async def _swap_all(self) -> None:
        """One after the other, in the order of the asks."""
        while self._swaps:
            order, reply = self._swaps[0]
            if reply.pending:
                await self._swap(order, reply)
            self._swaps.popleft()

    async def _swap(self, order: SwapWeights, reply: Reply) -> None:
        """Swap, confirm; or fail, and with it the actor."""
        scope = trio.CancelScope()
        reply.on_abandon(scope.cancel)
        began = now()
        self._versions.append(order.version)
        with scope:
            try:
                await self._backend.swap_weights(order.version, order.path)
            except WeightSwapFailed as error:
                reply.fail(error)
                raise
            # No checkpoint between the swap and this line: what is served and what a
            # restart would serve change in one step.
            self._holder.version, self._holder.path = order.version, order.path
            self._confirmed = len(self._versions) - 1
            reply.answer(WeightsSwapped(order.version, now() - began))
            return
        raise WeightSwapFailed(
            f"nobody waits any more for the swap to policy version {order.version}; version "
            f"{self._holder.version} is loaded anew"
        )

    def _status(self) -> InferenceStatus:
        return InferenceStatus(
            policy_version=self._holder.version,
            path=self._holder.path,
            waiting=len(self._waiting),
            swapping=bool(self._swaps),
            incarnation=self.context.incarnation,
            batch_fill=self._backend.statistics.batch_fill,
            **asdict(self._backend.statistics),
        )


class _Ready:
    """What a backend reports its start to."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: None = None) -> None:
        self.event.set()

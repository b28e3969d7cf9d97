"""An inference backend with no model: latency on trio's clock, answers from a script.

It stands in for an inference server in benchmarks, simulations and tests. With a
`batch_capacity` it serves one batch at a time, as a batching engine does: a batch
of n requests takes `fixed + per_request * n` seconds, then all n are answered, and
the next batch is launched from the queue before the answers go out. Without one
(0) every request takes its own latency, whatever the others do.

Invariants:

* an answer, its tokens and its latency depend on the request (its seed) alone, never
  on batching order or concurrency;
* one task serves every request: no task and no timer a request;
* the server it stands for does not wait for our loop: when the loop is late, the next
  batch was launched in time, with the requests that had arrived by then.

Simplification: the texts of a script are taken whole (`max_tokens` cuts only
fabricated tokens).

Not here: an HTTP server with a latency (`benchmarks/stub_server.py`).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count
from typing import Final

import trio

from ...engine.codec import pack_floats, pack_tokens
from ...engine.errors import BackendDied, BackendError, ConfigError, classify
from ...engine.trajectory import FinishReason
from ..protocol import Completion, Generate
from .base import Backend, Done
from .latency import ConstantLatency, Latency

Answer = Callable[[Generate], str]
"""The script: the completion's text. It may raise; the request then fails with a `BackendError`."""

Tokenise = Callable[[str], Sequence[int]]


class _Pending:
    """One request between `submit` and its answer."""

    __slots__ = ("arrived", "done", "request")

    def __init__(self, request: Generate, done: Done, arrived: float) -> None:
        self.request = request
        self.done = done
        self.arrived = arrived


class ScriptedBackend(Backend):
    """Answers every request from a script, after a latency.

    Args:
        latency: how long a request or batch takes.
        batch_capacity: most requests of one batch; 0 = no batches, each request alone.
        answer: the completion's text; None fabricates one from the request's seed.
        tokenise: gives the text's token ids; None fabricates ids from the seed.
        tokens: fabricated tokens of one completion.
        vocabulary: fabricated ids lie in [0, vocabulary).
        takes_tokens: whether sessions send token ids or messages; a server of messages
            gives no tokens back either.
        swap_seconds: how long a weight swap takes.
    """

    def __init__(
        self,
        latency: Latency | None = None,
        batch_capacity: int = 0,
        answer: Answer | None = None,
        *,
        tokenise: Tokenise | None = None,
        tokens: int = 4,
        vocabulary: int = 32_000,
        takes_tokens: bool = True,
        swap_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        if batch_capacity < 0 or vocabulary < 1 or not 0 <= tokens <= _FABRICATED:
            raise ConfigError(
                f"scripted backend: batch_capacity {batch_capacity} must be at least 0, "
                f"vocabulary {vocabulary} at least 1, and tokens {tokens} in 0..{_FABRICATED}"
            )
        self.takes_tokens = takes_tokens
        self.gives_tokens = takes_tokens
        self.latency: Final = latency if latency is not None else ConstantLatency(0.0)
        self.statistics.batch_capacity = batch_capacity
        self._capacity = batch_capacity
        self._answer = answer
        self._tokenise = tokenise
        self._tokens = tokens
        self._vocabulary = vocabulary
        self._swap_seconds = swap_seconds
        self._pending: dict[str, _Pending] = {}
        self._queue: deque[_Pending] = deque()  # accepted, not launched
        self._running: list[tuple[float, int, _Pending]] = []  # heap of (due, order, request)
        self._order = count()
        self._wake = trio.Event()
        self._asleep_until = float("-inf")  # the run task sleeps until then, or until woken
        self._held = False  # a swap waits: launch nothing
        self._drained = trio.Event()
        self._death: str = ""

    def submit(self, request: Generate, done: Done) -> None:
        """Accept a request; an earlier one of the same id is forgotten."""
        pending = _Pending(request, done, trio.current_time())
        self._pending[request.request_id] = pending
        self.statistics.requests += 1
        self.statistics.prompt_tokens += len(request.prompt_ids) // 4
        if self._capacity or self._held:
            self._queue.append(pending)
            if not self._running:
                self._wake.set()
        else:
            self._launch_alone(pending)

    def cancel(self, request_id: str) -> None:
        """Forget a request. One in a running batch keeps its place there: the time is spent."""
        self._pending.pop(request_id, None)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled.

        Raises:
            BackendDied: `die` was called.
        """
        task_status.started()
        while not self._death:
            self._asleep_until = self._running[0][0] if self._running else float("inf")
            with trio.move_on_at(self._asleep_until):
                await self._wake.wait()
            self._asleep_until = float("-inf")
            if self._wake.is_set():
                self._wake = trio.Event()
            now = trio.current_time()
            due, free_at = self._collect(now)
            if self._capacity and not self._running and not self._held:
                # Before the answers go out: their handling overlaps with it.
                self._launch_batch(now, free_at)
            for pending in due:
                self._finish(pending)
            if not self._running:
                self._drained.set()
        raise BackendDied(f"scripted backend: {self._death}")

    async def swap_weights(self, version: int, path: str) -> None:
        """Let what runs finish, then serve `version`; the path is not looked at."""
        self._held = True
        try:
            while self._running:
                self._drained = trio.Event()
                await self._drained.wait()
            await trio.sleep(self._swap_seconds)
            self.policy_version = version
        finally:
            self._held = False
            if not self._capacity:
                while self._queue:
                    pending = self._queue.popleft()
                    pending.arrived = trio.current_time()  # it was held until now
                    self._launch_alone(pending)
            self._wake.set()

    def die(self, reason: str = "died, as it was told to") -> None:
        """Make `run` raise `BackendDied`, as a lost engine would. For tests of supervision."""
        self._death = reason
        self._wake.set()

    def _launch_alone(self, pending: _Pending) -> None:
        request = pending.request
        due = pending.arrived + self.latency.draw(request.seed) + self.latency.per_request
        heappush(self._running, (due, next(self._order), pending))
        if due < self._asleep_until:
            self._wake.set()

    def _launch_batch(self, now: float, free_at: float) -> None:
        """Launch what is queued: at `free_at` what had arrived by then, else now."""
        start = free_at if self._queue and self._queue[0].arrived <= free_at else now
        batch: list[_Pending] = []
        while self._queue and len(batch) < self._capacity and self._queue[0].arrived <= start:
            pending = self._queue.popleft()
            if self._pending.get(pending.request.request_id) is pending:  # not cancelled
                batch.append(pending)
        if not batch:
            return
        due = start + self.latency.batch([p.request.seed for p in batch])
        # One due time and rising order: a sorted list is a heap.
        self._running = [(due, next(self._order), pending) for pending in batch]
        self.statistics.batches += 1
        self.statistics.batch_requests += len(batch)

    def _collect(self, now: float) -> tuple[list[_Pending], float]:
        """Take what is due off the heap; also give when the last of it was due (now if none)."""
        due: list[_Pending] = []
        free_at = now
        while self._running and self._running[0][0] <= now:
            free_at, _, pending = heappop(self._running)
            due.append(pending)
        return due, free_at

    def _finish(self, pending: _Pending) -> None:
        request_id = pending.request.request_id
        if self._pending.get(request_id) is not pending:
            return  # cancelled, or asked again under the same id
        del self._pending[request_id]
        try:
            completion = self._complete(pending.request)
        except Exception as error:  # noqa: BLE001 (one bad line of a script kills one request)
            self.statistics.failures += 1
            pending.done(BackendError(f"the script failed: {classify(error)[1]}"))
        else:
            self.statistics.completions += 1
            self.statistics.sampled_tokens += len(completion.token_ids) // 4
            pending.done(completion)

    def _complete(self, request: Generate) -> Completion:
        text = self._answer(request) if self._answer else _line(request.seed)
        finish = FinishReason.STOP
        ids: Sequence[int] = ()
        logprobs: Sequence[float] = ()
        if self.gives_tokens:
            drawn = _draw(request.seed)
            if self._tokenise is None:
                n = self._tokens
                if n > request.sampling.max_tokens:
                    n, finish = request.sampling.max_tokens, FinishReason.LENGTH
                ids = [word % self._vocabulary for word in drawn[:n]]
            else:
                ids = self._tokenise(text)
            # In (-2, 0], repeating after 16 tokens: plausible, and a function of the seed.
            logprobs = [-(drawn[k % _FABRICATED] >> 8) / 2**23 for k in range(len(ids))]
        return Completion(
            request.request_id,
            text,
            pack_tokens(ids),
            pack_floats(logprobs),
            finish,
            self.policy_version,
        )


_FABRICATED: Final = 16
"""Most fabricated tokens of one completion: one hash gives 64 bytes."""


def _line(seed: int) -> str:
    return f"scripted {seed % 10_000:04d}"


def _draw(seed: int) -> array[int]:
    """Sixteen uint32 words of this seed."""
    key = (seed % 2**64).to_bytes(8, "little")
    return array("I", blake2b(b"scripted", digest_size=64, key=key).digest())

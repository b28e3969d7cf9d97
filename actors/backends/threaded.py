"""The bridge between the trio loop and an inference engine that blocks.

    trio loop                                engine thread
    submit/cancel/swap_weights ─ one batch a tick ─▶ add / abort / swap
    done(completion), …        ◀─ one batch a step ─ step()

Invariants:

* only the engine thread touches the engine, only the trio loop calls `done`; they
  exchange whole batches, so that a step with 256 answers wakes each side once;
* a swap is a barrier: what was submitted before it ends under the old weights, what
  comes after it waits for the new ones;
* an engine that raises out of `step`, `add` or `build` is dead, and so is the backend.

Not here: any engine (`vllm`, `transformers`).
"""

from __future__ import annotations

import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

import trio

from ...engine.errors import (
    BackendDied,
    BackendError,
    ConfigError,
    WeightSwapFailed,
    classify,
)
from ..protocol import Completion, Generate
from .base import Backend, Done

_STOP_SECONDS: Final = 4.0
"""How long a cancelled `run` waits for the step in flight; the thread then ends by itself."""


def share_of_cores() -> int:
    """Threads for the arithmetic of one engine: OMP_NUM_THREADS, or half the cores.

    The trio loop and a learner need the rest, and more threads than free cores is far
    slower, not faster (measured: 4 times with 2 threads on 2 busy cores).
    """
    if given := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        return max(1, int(given))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // 2)


Finished = tuple[str, Completion | BackendError]
"""The key a request was added under, and how it ended."""


class Engine(ABC):
    """An inference engine that blocks. Lives in one thread, `__init__` excepted."""

    version: int = 0
    """Policy version of the weights it serves; the thread sets it, completions carry it."""

    @abstractmethod
    def build(self) -> None:
        """Load the model. Raises `ConfigError` for what only the user can mend."""

    @abstractmethod
    def add(self, key: str, request: Generate) -> None:
        """Accept a request. Raises `BackendError` to refuse this one alone."""

    @abstractmethod
    def abort(self, key: str) -> None:
        """Drop a request that was added and has not finished."""

    @abstractmethod
    def step(self) -> list[Finished]:
        """Advance what runs; called only while something does."""

    @abstractmethod
    def swap(self, path: str) -> None:
        """Serve the weights of this directory from now on; called only while nothing runs."""

    @abstractmethod
    def close(self) -> None:
        """Free the memory; called once, also after `build` or `step` failed."""


@dataclass(slots=True, eq=False)
class _Swap:
    version: int
    path: str
    finished: trio.Event = field(default_factory=trio.Event)
    error: BaseException | None = None


class _Add(NamedTuple):
    key: str
    request: Generate


class _Abort(NamedTuple):
    key: str


class _Stop(NamedTuple):
    """End after the step in flight."""


_Command = _Add | _Abort | _Swap | _Stop


@dataclass(slots=True)
class _Report:
    """Engine thread → trio loop: what happened since the last one."""

    finished: list[Finished] = field(default_factory=list)
    steps: int = 0
    batch_requests: int = 0
    """Sum of the batch sizes over the steps."""
    step_seconds: float = 0.0
    swap: _Swap | None = None
    started: float = 0.0
    """Seconds it took to build the engine, in the first report."""
    ended: bool = False
    error: BaseException | None = None


class ThreadedBackend(Backend):
    """A backend whose engine runs in a thread of its own.

    Raises (from `run`):
        ConfigError: the engine cannot be built from these settings.
        BackendDied: the engine failed.
    """

    def __init__(self, engine: Engine, *, name: str, capacity: int, version: int = 0) -> None:
        super().__init__()
        self.policy_version = engine.version = version
        self.statistics.batch_capacity = capacity
        self._name = name
        self._requests: dict[str, tuple[str, Done]] = {}  # key → request id, done
        self._keys: dict[str, str] = {}  # request id → key of its newest submission
        self._order = count()
        self._outbox: list[_Command] = []
        self._reports: deque[_Report] = deque()
        self._wake = trio.Event()
        self._swaps: list[_Swap] = []
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = _EngineThread(engine, name, capacity, self._post)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Build the engine in its thread, then serve until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        self._flush()
        # A daemon: an interpreter that is told to exit does not wait for a step.
        name = f"rollwave-{self._name}"
        threading.Thread(target=self._thread.main, name=name, daemon=True).start()
        try:
            while True:
                await self._wait()
                while self._reports:
                    self._deliver(self._reports.popleft(), task_status)
        except trio.Cancelled:
            self._thread.inbox.put([_Stop()])
            with trio.move_on_after(_STOP_SECONDS, shield=True):
                while not any(report.ended for report in self._reports):
                    await self._wait()
            raise
        finally:
            for swap in self._swaps:
                swap.error = BackendDied(f"{self._name} ended while weights were being swapped")
                swap.finished.set()

    def submit(self, request: Generate, done: Done) -> None:
        """Accept a request; an earlier one of the same id is forgotten."""
        self.cancel(request.request_id)
        key = str(next(self._order))
        self._requests[key] = (request.request_id, done)
        self._keys[request.request_id] = key
        self.statistics.requests += 1
        self.statistics.prompt_tokens += len(request.prompt_ids) // 4
        self._send(_Add(key, request))

    def cancel(self, request_id: str) -> None:
        """Forget a request and free its place in the batch."""
        key = self._keys.pop(request_id, None)
        if key is not None:
            del self._requests[key]
            self._send(_Abort(key))

    async def swap_weights(self, version: int, path: str) -> None:
        """Let what runs finish, then serve the weights at `path`.

        Raises:
            WeightSwapFailed: they cannot be loaded, or are another model's.
            BackendDied: the engine ended meanwhile.
        """
        swap = _Swap(version, path)
        self._swaps.append(swap)
        try:
            self._send(swap)
            await swap.finished.wait()
        finally:
            self._swaps.remove(swap)
        if isinstance(swap.error, BackendDied | WeightSwapFailed):
            raise swap.error
        if swap.error is not None:
            raise WeightSwapFailed(
                f"policy version {version} could not be loaded from {path}: "
                f"{classify(swap.error)[1]}"
            ) from swap.error

    def _send(self, command: _Command) -> None:
        """Hand over at the end of this tick, together with what else comes in it."""
        self._outbox.append(command)
        if len(self._outbox) == 1 and self._token is not None:
            self._token.run_sync_soon(self._flush)

    def _flush(self) -> None:
        if self._outbox:
            self._thread.inbox.put(self._outbox)
            self._outbox = []

    def _post(self, report: _Report) -> None:
        """Take a report. Runs in the engine thread."""
        self._reports.append(report)
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ring, idempotent=True)

    def _ring(self) -> None:
        self._wake.set()

    async def _wait(self) -> None:
        await self._wake.wait()
        self._wake = trio.Event()

    def _deliver(self, report: _Report, task_status: trio.TaskStatus[None]) -> None:
        statistics = self.statistics
        if report.steps:
            statistics.batches += report.steps
            statistics.batch_requests += report.batch_requests
            seconds = statistics.extra.get("step_seconds", 0.0) + report.step_seconds
            statistics.extra["step_seconds"] = seconds
        if report.swap is not None:
            if report.swap.error is None:
                self.policy_version = report.swap.version
            report.swap.finished.set()
        for key, result in report.finished:
            request_id, done = self._requests.pop(key, ("", None))
            if done is None:
                continue  # cancelled while the answer was on its way
            del self._keys[request_id]
            if isinstance(result, Completion):
                statistics.completions += 1
                statistics.sampled_tokens += len(result.token_ids) // 4
            else:
                statistics.failures += 1
            done(result)
        if report.started:
            statistics.extra["start_seconds"] = report.started
            task_status.started()
        if report.ended:
            raise report.error or BackendDied(f"the thread of {self._name} ended")


class _EngineThread:
    """The loop that drives the engine: commands in, one step, one report out."""

    def __init__(
        self, engine: Engine, name: str, capacity: int, post: Callable[[_Report], None]
    ) -> None:
        self.inbox: queue.SimpleQueue[list[_Command]] = queue.SimpleQueue()
        self._engine = engine
        self._name = name
        self._capacity = capacity
        self._post = post
        self._backlog: deque[_Add | _Swap] = deque()  # accepted, in order
        self._dropped: set[str] = set()  # aborted while in the backlog
        self._running: set[str] = set()
        self._report = _Report()  # of the steps since the last one that ended a request
        self._stopped = False

    def main(self) -> None:
        """Build, serve, clean up. Whatever goes wrong is told in the last report."""
        error: BaseException | None = None
        try:
            began = time.perf_counter()
            self._engine.build()
            self._post(_Report(started=time.perf_counter() - began))
            while not self._stopped:
                self._turn()
        except (ConfigError, BackendDied) as known:
            error = known
        except Exception as unknown:  # noqa: BLE001 (the thread's boundary)
            error = BackendDied(f"{self._name} failed: {classify(unknown)[1]}")
            error.__cause__ = unknown
        with suppress(Exception):  # a broken engine may fail to close; it is dropped anyway
            self._engine.close()
        self._post(_Report(ended=True, error=error))

    def _turn(self) -> None:
        """Take what came in (waiting for it if there is nothing to do), step, report."""
        with suppress(queue.Empty):
            self._take(self.inbox.get(block=not (self._running or self._backlog)))
            while True:
                self._take(self.inbox.get_nowait())
        if self._stopped:
            return
        report = self._report
        while self._backlog:
            head = self._backlog[0]
            if isinstance(head, _Swap):
                if self._running:
                    break  # the barrier
                self._swap(head)
            else:
                self._add(head, report)
            self._backlog.popleft()
        if self._running:
            report.steps += 1
            report.batch_requests += min(len(self._running), self._capacity or len(self._running))
            began = time.perf_counter()
            finished = self._engine.step()
            report.step_seconds += time.perf_counter() - began
            report.finished += finished
            self._running.difference_update(key for key, _ in finished)
        if report.finished:  # a step that ended nothing wakes nobody
            self._report = _Report()
            self._post(report)

    def _take(self, commands: list[_Command]) -> None:
        for command in commands:
            if isinstance(command, _Stop):
                self._stopped = True
            elif not isinstance(command, _Abort):
                self._backlog.append(command)
            elif command.key in self._running:
                self._running.discard(command.key)
                self._engine.abort(command.key)
            elif any(isinstance(add, _Add) and add.key == command.key for add in self._backlog):
                self._dropped.add(command.key)
            # else it has finished, and the answer is on its way to nobody

    def _add(self, command: _Add, report: _Report) -> None:
        if command.key in self._dropped:
            self._dropped.discard(command.key)
            return
        try:
            self._engine.add(command.key, command.request)
        except BackendDied:
            raise
        except BackendError as refused:
            report.finished.append((command.key, refused))
        else:
            self._running.add(command.key)

    def _swap(self, swap: _Swap) -> None:
        try:
            self._engine.swap(swap.path)
        except Exception as error:  # noqa: BLE001 (told to the asker, who lets us be restarted)
            swap.error = error
        else:
            self._engine.version = swap.version
        self._post(_Report(swap=swap))

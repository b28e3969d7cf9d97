"""A session that runs elsewhere, as a plain synchronous environment again.

    with beside(lambda: open_batches(url, "maze")) as (loop, host):
        env = Through(loop, host)
        env.reset(task, 0)

Whoever plays step by step without a loop (the laws, a debugger, a notebook, a trainer that
is not asynchronous) reaches worker processes and servers this way. A call costs a
handover between two threads.

Invariants: every call ends, within `CALL_SECONDS` or with an error; a session that nobody
holds any more is abandoned; when the block is left, what was opened in it is closed and
the thread has ended.

Not here: which transports there are (`transports`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from queue import SimpleQueue
from typing import Final, TypeVar, TypeVarTuple

import outcome
import trio

from ..engine.errors import DeadlineExceeded, EnvironmentFault
from ..engine.incarnation import sole
from .base import Environment, StepResult, Task
from .hosting import Host, Hosted

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

CALL_SECONDS: Final = 120.0
"""Deadline of one call."""

_STARTING_SECONDS: Final = 5.0
"""In which a thread that was begun runs."""
_LETTING_GO_SECONDS: Final = 5.0
"""In which a call that was interrupted ends, most likely."""


class Loop:
    """A trio loop as other threads see it."""

    def __init__(self, token: trio.lowlevel.TrioToken, seconds: float = CALL_SECONDS) -> None:
        """
        Args:
            token: of the loop (`trio.lowlevel.current_trio_token()`).
            seconds: deadline of a call.
        """
        self._token: Final = token
        self._seconds: Final = seconds

    def call(self, function: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
        """Call into the loop, and wait. Not from the loop's own thread.

        Raises:
            DeadlineExceeded: it took too long.
            EnvironmentFault: the loop has ended.
        """

        scope = trio.CancelScope()
        over = threading.Event()

        async def bounded() -> T:
            try:
                with scope, trio.move_on_after(self._seconds):
                    return await function(*arguments)
            finally:
                over.set()
            raise DeadlineExceeded(f"a call was not answered within {self._seconds:g} s")

        try:
            return trio.from_thread.run(bounded, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise EnvironmentFault("the loop in which this session runs has ended") from error
        except BaseException:
            # Of the call itself, or Ctrl-C while it was waited for: then it must not go on
            # beside the next one.
            self.tell(scope.cancel)
            over.wait(_LETTING_GO_SECONDS)
            raise

    def tell(self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Have it called on the loop, without waiting; for naught if the loop has ended."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *arguments)


@contextmanager
def beside(opener: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[tuple[Loop, T]]:
    """Run a loop in a thread of its own, and in it what `opener` opens.

    Raises:
        Exception: whatever opening or closing it raised.
    """
    said: SimpleQueue[outcome.Outcome[tuple[Loop, T, trio.Event]]] = SimpleQueue()
    opening = trio.CancelScope()
    tokens: SimpleQueue[trio.lowlevel.TrioToken | None] = SimpleQueue()

    async def main() -> None:
        stop = trio.Event()
        tokens.put(trio.lowlevel.current_trio_token())
        with opening:
            async with opener() as value:
                said.put(outcome.Value((Loop(trio.lowlevel.current_trio_token()), value, stop)))
                await stop.wait()

    ended: SimpleQueue[outcome.Outcome[None]] = SimpleQueue()

    running = threading.Event()

    def run() -> None:
        running.set()
        end = outcome.capture(trio.run, main)
        if isinstance(end, outcome.Error):
            end = outcome.Error(sole(end.error))
            said.put(end)
        tokens.put(None)
        ended.put(end)

    thread = threading.Thread(target=run, name="rollwave loop", daemon=True)
    try:
        thread.start()
        loop, value, stop = said.get().unwrap()
    except BaseException:
        # It could not be opened; or Ctrl-C came meanwhile, and nobody wants it any more.
        if running.wait(_STARTING_SECONDS):  # else Ctrl-C was before it
            if (token := tokens.get()) is not None:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(opening.cancel)
            thread.join()
        raise
    try:
        yield loop, value
    finally:
        loop.tell(stop.set)
        thread.join()
        ended.get().unwrap()


class Through(Environment):
    """A session of a host, called from a thread beside the loop."""

    def __init__(self, loop: Loop, host: Host) -> None:
        """Open the session.

        Raises:
            RollwaveError: as `Host.open`.
        """
        self._loop: Final = loop
        self._hosted: Final[Hosted] = loop.call(host.open)
        self._leave: Final = weakref.finalize(self, loop.tell, self._hosted.abandon)
        self._leave.atexit = False
        self._latest: str | None = None
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        self._latest = None
        self._latest = self._loop.call(self._hosted.reset, task, seed)
        return self._latest

    def step(self, action: str) -> StepResult:
        result = self._loop.call(self._hosted.step, action)
        self._latest = result.observation
        return result

    def observation(self) -> str:
        if self._closed or self._latest is None:
            raise EnvironmentFault("this session is not on a task")
        return self._latest

    def available_actions(self) -> Sequence[str]:
        return self._loop.call(self._hosted.available_actions)

    def about(self) -> Mapping[str, str | int]:
        return self._loop.call(self._hosted.about)

    def expert(self) -> str | None:
        return self._loop.call(self._hosted.expert)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._leave.detach()
        self._loop.call(self._hosted.close)

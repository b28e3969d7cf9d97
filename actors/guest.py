"""The engine on an asyncio loop: trio runs as a guest of the host's own loop.

    async with rollwave.open_engine_asyncio("models/base") as engine:
        async for trajectory in engine.rollout(tasks, attempts=4):
            ...

Both loops share one thread; nothing is copied between them and nothing blocks.

Invariants, in both directions:

* cancelling the asyncio task cancels what it waits for inside trio, and leaving the
  block stops every session before it returns;
* if the engine fails, the asyncio block is cancelled and its `async with` raises the
  engine's error.

Not here: the engine (`embedding`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import outcome
import trio

from ..engine.errors import ActorDead, ConfigError
from ..engine.trajectory import Trajectory
from ..envs.base import Task
from .embedding import Engine, EngineSettings, Rollout, open_engine
from .policy_source import PolicySource
from .protocol import Sampling

T = TypeVar("T")


class AsyncioEngine:
    """An `Engine` whose methods are awaited under asyncio."""

    def __init__(self, engine: Engine, portal: _Portal) -> None:
        self.engine = engine
        """The engine itself; its async methods belong to trio."""
        self._portal = portal

    def tasks(self, env: str, split: str, *, limit: int | None = None) -> list[Task]:
        """The tasks of one split of an environment."""
        return self.engine.tasks(env, split, limit=limit)

    def rollout(
        self,
        tasks: Sequence[Task],
        *,
        attempts: int = 1,
        wave: int = 0,
        sampling: Sampling | None = None,
        turn_limit: int = 0,
    ) -> AsyncGenerator[Trajectory, None]:
        """Play every task `attempts` times, as `Engine.rollout` does.

        What cannot be played is refused here, not at the first episode. Closing the
        generator (`contextlib.aclosing`) cancels what still runs; one that is only
        dropped is closed when asyncio gets to it.

        Raises:
            ConfigError: as `Engine.rollout`.
            ActorDead: the engine is closed.
        """
        self._portal.require_open()
        rollout = self.engine.rollout(
            tasks, attempts=attempts, wave=wave, sampling=sampling, turn_limit=turn_limit
        )
        return self._stream(rollout)

    async def _stream(self, rollout: Rollout) -> AsyncGenerator[Trajectory, None]:
        try:
            while batch := await self._portal.call(partial(_some, rollout)):
                for trajectory in batch:
                    yield trajectory
        finally:
            with suppress(ActorDead):  # the engine is closed, and its sessions with it
                await self._portal.call(rollout.aclose)

    async def swap_weights(self, version: int, path: str) -> None:
        """Serve other weights from now on, as `Engine.swap_weights` does."""
        await self._portal.call(partial(self.engine.swap_weights, version, path))


async def _some(rollout: Rollout) -> list[Trajectory]:
    """The next trajectory and those that have ended besides; empty at the end."""
    try:
        first = await anext(rollout)
    except StopAsyncIteration:
        return []
    return [first, *rollout.ready()]


@asynccontextmanager
async def open_engine_asyncio(
    policy: str | PolicySource = "expert",
    *,
    concurrency: int = 64,
    seed: int = 0,
    settings: EngineSettings | None = None,
) -> AsyncIterator[AsyncioEngine]:
    """Open an engine on the running asyncio loop. Arguments and errors as `open_engine`.

    Raises:
        ConfigError: also if one is open in this thread already: trio runs once in each.
    """
    opening = partial(open_engine, policy, concurrency=concurrency, seed=seed, settings=settings)
    portal = _Portal(asyncio.get_running_loop(), opening)
    engine = await portal.start()
    host = asyncio.current_task()
    assert host is not None  # an async context manager runs in a task
    portal.on_failure = host.cancel
    try:
        yield AsyncioEngine(engine, portal)
    except asyncio.CancelledError:
        if portal.failed:  # the engine cancelled us: its error is the reason, not a wish to stop
            host.uncancel()
        else:
            raise
    finally:
        portal.on_failure = None
        await portal.stop()


class _Portal:
    """The one crossing between the loops, and the owner of the guest run."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        opening: Callable[[], AbstractAsyncContextManager[Engine]],
    ) -> None:
        self._loop = loop
        self._opening = opening
        self._ready: asyncio.Future[Engine] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._stop = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self.on_failure: Callable[[], object] | None = None
        self.failed = False

    async def start(self) -> Engine:
        """Start the guest run and wait until the engine is open."""
        try:
            trio.lowlevel.start_guest_run(
                self._main,
                run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,
                run_sync_soon_not_threadsafe=self._loop.call_soon,
                done_callback=self._done,
                host_uses_signal_set_wakeup_fd=True,
            )
        except RuntimeError as error:
            raise ConfigError(
                "an engine is open in this thread already; share it, its rollouts run side by "
                f"side ({error})"
            ) from None
        either: tuple[asyncio.Future[Any], ...] = (self._ready, self._ended)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if self._ended.done():
            self._ended.result()  # raises why it could not open
            raise ActorDead("the engine closed while it was opening")
        return self._ready.result()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._stop:
            async with self._opening() as engine, trio.open_nursery() as nursery:
                self._nursery = nursery
                self._ready.set_result(engine)
                await trio.sleep_forever()

    def _done(self, result: outcome.Outcome[None]) -> None:
        """Called by trio, on the host loop, when the guest run is over."""
        if isinstance(result, outcome.Error):
            self.failed = True
            self._ended.set_exception(_single(result.error))
            if self.on_failure is not None:
                self.on_failure()
        else:
            self._ended.set_result(None)

    async def stop(self) -> None:
        """Close the engine and wait until the guest run is over.

        Raises what the engine died of, if it did.
        """
        if not self._in_trio(self._leave):
            self._stop.cancel()  # it has not begun yet
        cancelled = False
        while not self._ended.done():
            try:
                await asyncio.wait([self._ended])
            except asyncio.CancelledError:
                # Closing has its own deadline; leaving now would orphan the sessions.
                cancelled = True
        self._ended.result()
        if cancelled:
            raise asyncio.CancelledError

    def require_open(self) -> None:
        """Raise ActorDead if the engine is closed."""
        if self._ended.done():
            raise _closed()

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run an async function inside trio and give its result to asyncio.

        Raises:
            ActorDead: the engine is closed.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        scope = trio.CancelScope()

        def fail(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        async def run() -> None:
            try:
                with scope:
                    result = await function()
                    if not future.done():
                        future.set_result(result)
            except Exception as error:  # noqa: BLE001 (it is raised where it was asked for)
                fail(error)
            finally:
                fail(_closed())  # unless there is an answer: we were cancelled from within trio

        def begin() -> None:
            nursery = self._nursery
            try:
                if nursery is None:
                    raise _closed()
                nursery.start_soon(run)
            except (RuntimeError, ActorDead):  # trio's word for a nursery that has ended
                fail(_closed())

        if self._ended.done() or not self._in_trio(begin):
            raise _closed()
        try:
            return await future
        except asyncio.CancelledError:
            self._in_trio(scope.cancel)
            raise

    def _leave(self) -> None:
        """Let the engine's block end by itself, so that a failure under way is not cut off."""
        scope = self._stop if self._nursery is None else self._nursery.cancel_scope
        scope.cancel()

    def _in_trio(self, function: Callable[[], object]) -> bool:
        """Have trio's loop call a function soon; False if trio has not begun or is over."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True


def _closed() -> ActorDead:
    return ActorDead("the engine is closed: open a new one")


def _single(error: BaseException) -> BaseException:
    """The one cause inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

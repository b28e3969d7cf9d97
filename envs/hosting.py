"""Where a session of an environment runs: on the loop, in a thread, or in another process.

    hosted = await host.open()
    observation = await hosted.reset(task, seed)

An environment is a plain synchronous object; `Hosted` is the same object behind async
methods, so that whoever plays it need not know where it is. `EnvSpec.cost` says which
host is right.

Invariant: each environment that was made is closed once, also if it was made too late
to be wanted, and also if its episode was given up while a call was still in it.

Not here: worker processes (`worker.host`), deadlines and outcomes (the session's).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, TypeVar

import trio

from .base import Environment, StepResult, Task

T = TypeVar("T")


class Hosted(ABC):
    """One session of a world, wherever it runs. One call at a time."""

    @abstractmethod
    async def reset(self, task: Task, seed: int) -> str:
        """As `Environment.reset`."""

    @abstractmethod
    async def step(self, action: str) -> StepResult:
        """As `Environment.step`."""

    @abstractmethod
    async def expert(self) -> str | None:
        """As `Environment.expert`."""

    @abstractmethod
    async def available_actions(self) -> Sequence[str]:
        """As `Environment.available_actions`."""

    async def about(self) -> Mapping[str, str | int]:
        """As `Environment.about`; nothing where it does not travel."""
        return {}

    @abstractmethod
    async def close(self) -> None:
        """As `Environment.close`; raises what it raises."""

    @abstractmethod
    def abandon(self) -> None:
        """Close without waiting, in the middle of a call if need be. Never raises."""


class Host(ABC):
    """Opens sessions of one environment."""

    @abstractmethod
    async def open(self) -> Hosted:
        """Make a session. A caller that is cancelled meanwhile leaves none behind."""

    async def aclose(self) -> None:  # noqa: B027 (most hosts hold nothing)
        """Free what the host itself holds, once its sessions have ended: for who made it."""


CLOSING_SECONDS: Final = 15.0
"""For all hosts of one owner."""


@asynccontextmanager
async def closing(hosts: Collection[Host]) -> AsyncIterator[None]:
    """Close hosts when the block ends, however it does: those in the collection by then.

    Raises:
        Exception: what closing one of them raised; the others are closed all the same.
    """
    try:
        yield
    finally:
        with trio.move_on_after(CLOSING_SECONDS, shield=True):
            async with AsyncExitStack() as stack:
                for host in hosts:
                    stack.push_async_callback(host.aclose)


class InlineHost(Host):
    """On the loop: for worlds whose step takes well under a millisecond."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self._make = make

    async def open(self) -> Hosted:
        return _Inline(self._make())


class _Inline(Hosted):
    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    async def reset(self, task: Task, seed: int) -> str:
        return self._environment.reset(task, seed)

    async def step(self, action: str) -> StepResult:
        return self._environment.step(action)

    async def expert(self) -> str | None:
        return self._environment.expert()

    async def available_actions(self) -> Sequence[str]:
        return self._environment.available_actions()

    async def about(self) -> Mapping[str, str | int]:
        return self._environment.about()

    async def close(self) -> None:
        self._environment.close()

    def abandon(self) -> None:
        with suppress(Exception):  # the episode's record says already what went wrong
            self._environment.close()


class ThreadHost(Host):
    """Each call in a worker thread: for worlds that block a little.

    A call that is late is abandoned together with its environment, which nobody uses
    again: `close` is what may release the thread that is still in it.
    """

    def __init__(self, make: Callable[[], Environment], limiter: trio.CapacityLimiter) -> None:
        """`limiter` bounds threads. Of its own: the few threads of worlds that hang for
        ever would starve all others of trio's default one."""
        self._make = make
        self._limiter = limiter

    async def open(self) -> Hosted:
        wanted = True

        def make() -> Environment:
            environment = self._make()
            if not wanted:
                environment.close()
            return environment

        try:
            return _Threaded(await _in_thread(self._limiter, make), self._limiter)
        except BaseException:
            wanted = False
            raise


class _Threaded(Hosted):
    def __init__(self, environment: Environment, limiter: trio.CapacityLimiter) -> None:
        self._environment = environment
        self._limiter = limiter

    async def reset(self, task: Task, seed: int) -> str:
        return await _in_thread(self._limiter, self._environment.reset, task, seed)

    async def step(self, action: str) -> StepResult:
        return await _in_thread(self._limiter, self._environment.step, action)

    async def expert(self) -> str | None:
        return await _in_thread(self._limiter, self._environment.expert)

    async def available_actions(self) -> Sequence[str]:
        return await _in_thread(self._limiter, self._environment.available_actions)

    async def about(self) -> Mapping[str, str | int]:
        return await _in_thread(self._limiter, self._environment.about)

    async def close(self) -> None:
        await _in_thread(self._limiter, self._environment.close)

    def abandon(self) -> None:
        trio.lowlevel.start_thread_soon(self._environment.close, lambda _: None, "close")


async def _in_thread(
    limiter: trio.CapacityLimiter, function: Callable[..., T], *arguments: object
) -> T:
    return await trio.to_thread.run_sync(
        function, *arguments, abandon_on_cancel=True, limiter=limiter
    )

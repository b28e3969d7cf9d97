"""The root: one supervisor for all actors, started in order and stopped in reverse.

    async with ActorSystem(seed=7) as system:
        store = await system.start(ChildSpec("store", ...))
        sessions = await system.start(ChildSpec("dispatcher", ...))   # may use the store
    # here all have ended: the dispatcher first, then the store

How the block is left decides how the actors end:

    it finished          drained: what was accepted is handled, then reverse stop
    it raised            reverse stop: the message in hand is finished
    cancelled, Ctrl-C    everything is cancelled at once
    root escalated       the block is cancelled, `RestartLimitExceeded` is raised

Invariant: when the block is left no actor's task is left, and the whole of the
shutdown has one deadline, whose error names the actor that was waited for.

Not here: which actors there are (the composition root says).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Literal, Self

import trio

from .child import ChildSpec
from .errors import ConfigError, DeadlineExceeded
from .incarnation import sole
from .ref import ActorRef
from .restart import Backoff, RestartIntensity, Strategy
from .supervisor import LifecycleEvent, OnExit, Supervisor

_log: Final = logging.getLogger("rollwave.engine")


class ActorSystem:
    """An async context manager that owns every actor started in it.

    Args:
        seed: root of the actors' seeds.
        strategy, intensity, backoff: of the root supervisor.
        shutdown_seconds: for the whole shutdown; then what is left is cancelled and
            `DeadlineExceeded` names who was waited for.
        observe: told each lifecycle event, synchronously; it must not block or raise.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: RestartIntensity | None = None,
        backoff: Backoff | None = None,
        shutdown_seconds: float = 30.0,
        observe: Callable[[LifecycleEvent], None] | None = None,
    ) -> None:
        if not shutdown_seconds >= 0:
            raise ConfigError(f"shutdown_seconds must be 0 or more, not {shutdown_seconds}")
        self.seed: Final = seed
        self.shutdown_seconds: Final = shutdown_seconds
        self.observe: Final = observe
        self._block = trio.CancelScope()  # around the body of the `async with`
        self.root: Final = Supervisor(
            self,
            "",
            seed,
            strategy=strategy,
            intensity=intensity,
            backoff=backoff,
            gave_up=self._block.cancel,
        )
        """Supervisor of the actors started by `start`."""
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None

    async def __aenter__(self) -> Self:
        """Start the root supervisor."""
        if self._manager is not None:
            raise ConfigError("an ActorSystem is entered once; make a new one for each run")
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        try:
            await nursery.start(self.root.run)
        except BaseException as error:
            # Cancelled meanwhile: nobody will call `__aexit__`, and a nursery that is not left
            # takes trio's own state with it.
            await self._manager.__aexit__(type(error), error, error.__traceback__)
            raise
        self._block.__enter__()
        return self

    async def start(self, spec: ChildSpec, *, on_exit: OnExit | None = None) -> ActorRef:
        """Start an actor below the root and return after its `on_start`.

        Raises what `on_start` raised, and what `Supervisor.start_child` does.
        """
        return await self.root.start_child(spec, on_exit=on_exit)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False] | None:
        """Stop every actor.

        Raises:
            DeadlineExceeded: the shutdown took longer than `shutdown_seconds`.
            RestartLimitExceeded: the root supervisor gave up.
        """
        assert self._manager is not None
        try:
            error = None if self._block.__exit__(kind, raised, traceback) else raised
            # None: it finished, or was cancelled because the root gave up.
        except BaseException as rest:  # noqa: BLE001 (what else was in the group; goes on below)
            error = rest
        late: DeadlineExceeded | None = None
        if error is None or isinstance(error, Exception):
            try:
                drain = error is None and not self._block.cancelled_caught
                late = await self._shut_down(drain=drain)
            except BaseException as second:  # noqa: BLE001 (cancelled meanwhile: goes on below)
                error = second
        try:
            await self._manager.__aexit__(
                type(error) if error is not None else None,
                error,
                error.__traceback__ if error is not None else None,
            )
        except BaseExceptionGroup as group:
            only = sole(group)
            if raised is not None and error is raised and only is sole(raised):
                return False  # the block's own error goes on as it was raised
            raise only from only.__cause__
        if late is not None and error is None:
            raise late
        return None

    async def _shut_down(self, *, drain: bool) -> DeadlineExceeded | None:
        with trio.move_on_after(self.shutdown_seconds) as scope:
            await self.root.stop(drain=drain)
        if not scope.cancelled_caught:
            return None
        late = DeadlineExceeded(
            f"shutdown took longer than {self.shutdown_seconds:g} s: {self.root.unfinished()} did "
            "not end and was cancelled; give it less to do in `on_stop`, or more seconds"
        )
        # Logged too, and now: an actor that shields itself holds up the error below.
        _log.error("%s", late)
        self.root.cancel()
        return late

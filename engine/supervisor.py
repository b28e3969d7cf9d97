"""A nursery that owns children, and applies a restart strategy to them.

    child failed ─▶ restart wanted? ─no─▶ exit (told once to `on_exit`)
                        │yes
                    within intensity? ─no─▶ escalate: stop all, fail towards the parent
                        │yes
                    one_for_one: it alone, after its backoff
                    else: stop the others concerned in reverse order, wait, start in order

Invariants:

* each child exits exactly once, and only after its last incarnation's task ended;
* children are stopped in reverse order of their start, one after the other, each
  within its `stop_timeout`; temporary children that follow each other are
  stopped together, since nothing may build on them;
* a supervisor that returns, escalates or is cancelled leaves no task behind, and
  no ask unanswered.

Not here: the policies as values (`restart`), an incarnation's loop (`child`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import trio

from .child import Child, ChildSpec, Exit
from .errors import ActorDead, ConfigError, RestartLimitExceeded
from .ref import ActorRef
from .restart import Backoff, Restart, RestartIntensity, RestartWindow, Strategy
from .seeds import generator

if TYPE_CHECKING:
    from .system import ActorSystem

__all__ = ["ChildSpec", "Exit", "LifecycleEvent", "OnExit", "Supervisor"]

_log: Final = logging.getLogger("rollwave.engine")

OnExit = Callable[[Exit], None]
"""Told once, on the trio thread; it must not block. If it raises, the supervisor fails."""


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Something that happened to an actor, for logs and event digests."""

    time: float
    """Seconds on the loop's clock."""
    kind: Literal["spawned", "failed", "restarting", "exited", "escalated"]
    path: str
    """Names from the root down."""
    detail: str
    """The error, the delay, or nothing."""


class Supervisor:
    """Owns children. Made by `Actor.supervise` and by `ActorSystem`."""

    def __init__(
        self,
        system: ActorSystem,
        path: str,
        seed: int,
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: RestartIntensity | None = None,
        backoff: Backoff | None = None,
        gave_up: Callable[[], None] | None = None,
    ) -> None:
        self.system: Final = system
        self.path: Final = path
        """Of the actor it belongs to; empty for the root."""
        self.seed: Final = seed
        self.strategy: Final = strategy
        self.backoff: Final = backoff or Backoff()
        self._gave_up = gave_up  # told when it escalates, before the children are stopped
        self._window = RestartWindow(intensity or RestartIntensity())
        self._children: dict[str, Child] = {}  # in start order
        self._nursery: trio.Nursery | None = None
        self._group: trio.CancelScope | None = None  # of the group restart under way
        self._group_delay = 0.0
        self._failure: RestartLimitExceeded | None = None
        self._drain = False
        self._stopping = trio.Event()
        self._stopped = trio.Event()

    # -- children -------------------------------------------------------------

    @property
    def children(self) -> tuple[ActorRef, ...]:
        """The refs of the living children, in start order."""
        return tuple(child.ref for child in self._children.values())

    @property
    def restarts(self) -> int:
        """Restarts granted since the start."""
        return self._window.total

    def start_child_nowait(self, spec: ChildSpec, *, on_exit: OnExit | None = None) -> ActorRef:
        """Start a child and return at once: its mailbox is open, `on_start` runs in its task.

        This is the cheap way, for thousands of children. If `on_start` fails, that
        is a failure like any other.

        Raises:
            ActorDead: the supervisor has stopped, or is stopping.
            ConfigError: a living child has that name already.
        """
        return self._start(spec, on_exit).ref

    async def start_child(self, spec: ChildSpec, *, on_exit: OnExit | None = None) -> ActorRef:
        """Start a child and return after its first `on_start`.

        If that raises, the child is not restarted whatever its kind: it exits, and
        the error is raised here. A caller cancelled meanwhile takes the child with it.

        Raises:
            ActorDead: the supervisor has stopped, or is stopping; or the child was
                stopped while it started.
            ConfigError: a living child has that name already.
        """
        child = self._start(spec, on_exit)
        child.awaited = True
        try:
            while not child.ran and not child.exited:
                await child.started()
        except BaseException:  # only cancellation comes from there
            child.cancel()
            raise
        finally:
            child.awaited = False
        if child.ran:
            return child.ref
        raise child.failure or ActorDead(f"{spec.name} was stopped while it started")

    def _start(self, spec: ChildSpec, on_exit: OnExit | None) -> Child:
        if self._nursery is None or self._stopping.is_set():
            raise ActorDead(f"cannot start {spec.name}: its supervisor has stopped or is stopping")
        if spec.name in self._children:
            raise ConfigError(
                f"a child named {spec.name} is living already; names of siblings must differ, "
                "their seeds come from them"
            )
        child = Child(spec, self, on_exit)
        self._children[spec.name] = child
        child.spawn(self._nursery)
        self._observe("spawned", child.path)
        return child

    async def stop_child(self, ref: ActorRef) -> None:
        """Stop one child for good and wait for its end. A child that has exited is no error.

        Raises:
            ConfigError: the ref is not a child of this supervisor.
        """
        child = ref._child
        if child.supervisor is not self:
            raise ConfigError(f"{ref.name} is not a child of this supervisor")
        child.stop()
        await child.done()

    async def stop(self, *, drain: bool = False) -> None:
        """Stop all children in reverse order, then the supervisor; wait for it.

        With `drain` each child first handles the messages it has accepted.
        """
        self._drain = self._drain or drain
        self._stopping.set()
        if self._nursery is not None:
            await self._stopped.wait()

    def cancel(self) -> None:
        """Cancel all children at once; `stop` and `run` return when they have ended."""
        self._stopping.set()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def below(
        self,
        child: Child,
        strategy: Strategy,
        intensity: RestartIntensity | None,
        backoff: Backoff | None,
    ) -> Supervisor:
        """Make the supervisor of a child's own children; it is not running yet."""
        return Supervisor(
            self.system,
            child.path,
            child.seed,
            strategy=strategy,
            intensity=intensity,
            backoff=backoff or self.backoff,
        )

    def unfinished(self) -> str:
        """The path of the child that is next to end, or ending: who a shutdown waits for."""
        for child in reversed(self._children.values()):
            below = (s.unfinished() for s in reversed(child.supervisors))
            return next((path for path in below if path), child.path)
        return ""

    # -- its own task ---------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the children until `stop` or cancellation.

        Raises:
            RestartLimitExceeded: it gave up, with the last failure as its cause.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._stopping.wait()
                await self._stop_children()
        finally:
            self._nursery = None
            self._stopping.set()
            # Cancelled in the middle of a group restart, some children have no task
            # that could end them.
            try:
                for child in reversed(tuple(self._children.values())):
                    self.exit(child, cancelled=True)
            finally:
                self._stopped.set()
        if self._failure is not None:
            raise self._failure

    async def _stop_children(self) -> None:
        if self._group is not None:
            self._group.cancel()
        while self._children:
            batch: list[Child] = []
            for child in reversed(self._children.values()):
                if batch and child.spec.restart is not Restart.TEMPORARY:
                    break
                batch.append(child)
                if child.spec.restart is not Restart.TEMPORARY:
                    break
            for child in batch:
                child.stop(drain=self._drain)
            for child in batch:
                await child.done()

    # -- policy ---------------------------------------------------------------

    def ended(self, child: Child, *, cancelled: bool) -> None:
        """An incarnation has ended: does another follow, alone or with others?"""
        failure = child.failure
        if failure is not None:
            self._observe("failed", child.path, repr(failure))
        if not child.mailbox.open or self._stopping.is_set() or _cancelled_around():
            self.exit(child, cancelled=cancelled)
        elif child.held:
            self._rest(child)  # the group restart goes on with it
        elif (child.awaited and not child.ran) or not child.spec.restart.wanted(
            failed=failure is not None
        ):
            self.exit(child, cancelled=cancelled)
        elif self._window.allow(trio.current_time()):
            self._restart(child)
        else:
            self._escalate(child)

    def _restart(self, child: Child) -> None:
        assert self._nursery is not None
        delay = self._delay(child)
        self._observe("restarting", child.path, f"in {delay:.3f} s")
        _log.warning("%s is restarted in %.2f s: %r", child.path, delay, child.failure)
        self._rest(child)
        if self.strategy is Strategy.ONE_FOR_ONE:
            child.spawn(self._nursery, delay)
            return
        self._group_delay = max(self._group_delay, delay)
        if self._group is None:
            self._group = trio.CancelScope()
            self._nursery.start_soon(self._restart_group, self._group)

    def _delay(self, child: Child) -> float:
        # One that stood for a whole window starts its row of restarts anew.
        lived = trio.current_time() - child.born
        if lived >= self._window.intensity.window_seconds:
            child.attempt = 0
        jitter = generator(self.seed, "backoff", child.spec.name, child.restarts)
        delay = self.backoff.delay(child.attempt, jitter)
        child.attempt += 1
        return delay

    def _rest(self, child: Child) -> None:
        child.settle(restarting=True)
        child.rest()

    async def _restart_group(self, scope: trio.CancelScope) -> None:
        with scope:
            while group := self._concerned():
                for child in reversed(group):
                    if child.spec.restart is Restart.TEMPORARY:
                        child.stop()
                    else:
                        child.hold()
                    await child.done()
                delay, self._group_delay = self._group_delay, 0.0
                await trio.sleep(delay)
                await self._start_in_order(group)
        self._group = None

    def _concerned(self) -> list[Child]:
        # Whoever is down, and by the strategy others with it; nobody, when all are up.
        children = list(self._children.values())
        down = next((i for i, child in enumerate(children) if child.scope is None), None)
        if down is None:
            return []
        return children[down:] if self.strategy is Strategy.REST_FOR_ONE else children

    async def _start_in_order(self, group: list[Child]) -> None:
        assert self._nursery is not None
        for child in group:
            if not child.exited and child.scope is None:
                child.spawn(self._nursery)
                await child.started()
                if not child.serving and not child.exited:
                    return  # it failed again: the group goes down with it once more

    def _escalate(self, child: Child) -> None:
        intensity = self._window.intensity
        self._failure = RestartLimitExceeded(
            f"{child.path} failed once more after {intensity.max_restarts} restarts within "
            f"{intensity.window_seconds:g} s: {child.failure!r}"
        )
        self._failure.__cause__ = child.failure
        self._observe("escalated", self.path, str(self._failure))
        self.exit(child, cancelled=False)
        self._stopping.set()
        if self._gave_up is not None:
            self._gave_up()

    def exit(self, child: Child, *, cancelled: bool) -> None:
        """Let a child go for good, and say so once."""
        del self._children[child.spec.name]
        child.exit()
        failure = child.failure
        self._observe("exited", child.path, "" if failure is None else repr(failure))
        if not child.awaited:
            # The traceback of an error holds on to the actor; a ref may live for long.
            child.failure = None
        if child.on_exit is not None:
            child.on_exit(Exit(child.spec.name, failure, cancelled))
        elif failure is not None and not child.awaited:
            _log.warning("%s failed and is not restarted: %r", child.path, failure)

    def _observe(
        self,
        kind: Literal["spawned", "failed", "restarting", "exited", "escalated"],
        path: str,
        detail: str = "",
    ) -> None:
        if (observe := self.system.observe) is not None:
            observe(LifecycleEvent(trio.current_time(), kind, path, detail))


def _cancelled_around() -> bool:
    """Whether everything around the ended incarnation is cancelled: nothing follows then."""
    return trio.current_effective_deadline() == float("-inf")

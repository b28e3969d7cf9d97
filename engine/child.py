"""One supervised actor over all of its incarnations: its mailbox, its task, its end.

    spawned → delayed → starting → serving → ending → (restarted: spawned again | exited)

The supervisor decides whether an incarnation follows; this file gives each its
task, one at a time, and keeps what outlives it: mailbox, ref and counters.

Invariants:

* the asks an incarnation had in hand (the current one and the deferred ones) are
  answered when it ends, whatever ended it;
* every ending is bounded by one deadline, `stop_timeout`, on the one cancel scope
  an incarnation runs in; a child needs no second scope and no task of its own;
* cancellation passes through: it ends an incarnation, but is never its failure.

Not here: strategies, order and intensity (`supervisor`), the messages (`incarnation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from .actor import Actor, needs_tasks
from .envelope import Reply
from .errors import ActorDead, ActorRestarted, ConfigError
from .incarnation import live, separate
from .mailbox import Mailbox
from .ref import ActorRef, ActorStatistics
from .restart import Backoff, Restart, RestartIntensity, Strategy
from .seeds import derive

if TYPE_CHECKING:
    from .supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to make an actor, and what to do when it ends."""

    name: str
    """Unique among the living siblings; part of the actor's seed."""
    factory: Callable[[], Actor]
    """Called for each incarnation. The first call is made by whoever starts the child."""
    restart: Restart = Restart.PERMANENT
    stop_timeout: float = 5.0
    """Seconds it may take to end (message in hand, `on_stop`) before it is cancelled."""
    start_timeout: float = math.inf
    """Seconds for `on_start`; longer is a failure of the actor (`DeadlineExceeded`)."""

    def __post_init__(self) -> None:
        for name in ("stop_timeout", "start_timeout"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"{name} of {self.name} must be 0 or more seconds, not {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended for good. Told once, never for an end that a restart follows."""

    name: str
    error: BaseException | None
    """What it failed with; None if it ended normally, was stopped, or was cancelled."""
    cancelled: bool
    """Whether it was cut short: by its stop deadline or with everything around it."""


class Child:
    """The runtime's record of one supervised actor."""

    __slots__ = (
        "_done",
        "_started",
        "_supervisors",
        "actor",
        "attempt",
        "awaited",
        "born",
        "busy_seconds",
        "current",
        "deferred",
        "delayed",
        "drain",
        "ending",
        "exited",
        "failure",
        "handled",
        "held",
        "incarnations",
        "mailbox",
        "malformed",
        "nursery",
        "on_exit",
        "ran",
        "ref",
        "scope",
        "serving",
        "spec",
        "stopping",
        "supervisor",
    )

    def __init__(
        self,
        spec: ChildSpec,
        supervisor: Supervisor,
        on_exit: Callable[[Exit], None] | None,
    ) -> None:
        self.spec: Final = spec
        self.supervisor: Final = supervisor
        self.on_exit: Final = on_exit
        # The constructor runs here, in the hands of whoever starts the child: it
        # sees the mailbox's size, and a mistake in it is raised where it was made.
        self.actor: Actor | None = spec.factory()
        self.mailbox: Final = Mailbox(spec.name, self.actor.mailbox_capacity)
        self.ref: Final = ActorRef(spec.name, self.mailbox, self)
        self.scope: trio.CancelScope | None = None
        """Of the running incarnation, its delay included; None while there is no task."""
        self.delayed = False
        """Waits out the backoff before its next incarnation."""
        self.serving = False
        """Between the end of `on_start` and the end of the incarnation."""
        self.ending = False
        """Past its last message: `on_stop` has begun, or been left out."""
        self.stopping = False
        """Asked to end for good."""
        self.held = False
        """Ends so that its supervisor can restart it together with others."""
        self.ran = False
        """Some incarnation's `on_start` returned."""
        self.awaited = False
        """Somebody waits in `start_child`: a failing first `on_start` is theirs to see."""
        self.drain = False
        self.exited = False
        self.failure: Exception | None = None
        self.current: Reply | None = None
        """The ask in hand, unless `defer` took it away."""
        self.deferred: dict[Reply, None] = {}
        """Asks taken by `defer` and not answered yet, in order."""
        self.attempt = 0
        """Restarts in a row, for the backoff."""
        self.born = 0.0
        self.incarnations = 0
        self.handled = 0
        self.malformed = 0
        self.busy_seconds = 0.0
        self.nursery: trio.Nursery | None = None
        """Of the running incarnation, if its class has tasks."""
        self._supervisors: list[Supervisor] | None = None
        self._started: trio.Event | None = None
        self._done: trio.Event | None = None

    @property
    def restarts(self) -> int:
        """Incarnations after the first."""
        return max(0, self.incarnations - 1)

    # -- what the actor sees through its context ------------------------------

    @property
    def path(self) -> str:
        """Names from the root down."""
        return f"{self.supervisor.path}/{self.spec.name}" if self.supervisor.path else self.ref.name

    @property
    def seed(self) -> int:
        """Computed when asked for: most actors never do."""
        return derive(self.supervisor.seed, self.spec.name)

    def defer(self) -> Reply:
        """Take the ask in hand out of the loop."""
        reply, self.current = self.current, None
        if reply is None:
            reply = Reply()
            reply.discard()
        reply.keep(self)
        return reply

    @property
    def supervisors(self) -> tuple[Supervisor, ...]:
        """Of the actor's own children, in start order."""
        return tuple(self._supervisors or ())

    def nursery_for(self, what: str) -> trio.Nursery:
        """The actor's own nursery, for `what`."""
        assert self.actor is not None
        if self.nursery is None:
            raise needs_tasks(self.actor, what)
        return self.nursery

    async def supervise(
        self, strategy: Strategy, intensity: RestartIntensity | None, backoff: Backoff | None
    ) -> Supervisor:
        """Run a supervisor in the actor's nursery."""
        nursery = self.nursery_for("supervise")
        supervisor = self.supervisor.below(self, strategy, intensity, backoff)
        if self._supervisors is None:
            self._supervisors = []
        self._supervisors.append(supervisor)
        await nursery.start(supervisor.run)
        return supervisor

    def end(self) -> None:
        """The actor itself wants to end normally."""
        if self.spec.restart is Restart.PERMANENT:
            self.mailbox.halt()
        else:
            self.mailbox.close()

    def crash(self, error: Exception) -> None:
        """Fail the incarnation with an error that arose outside of its task."""
        if self.scope is not None and self.failure is None:
            self.failure = error
            self.scope.cancel()

    # -- its incarnations -----------------------------------------------------

    def spawn(self, nursery: trio.Nursery, delay: float = 0.0) -> None:
        """Start the next incarnation's task; its first step comes after `delay` seconds."""
        self.mailbox.resume()
        self.failure = None
        self.held = self.ending = False
        self.delayed = delay > 0
        self.incarnations += 1
        # Made here, not in the task, so that a stop that comes before the task's
        # first step finds it.
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, self.scope, delay, name=self.spec.name)

    async def _run(self, scope: trio.CancelScope, delay: float) -> None:
        finished = False
        try:
            with scope:
                if delay:
                    await trio.sleep(delay)
                    self.delayed = False
                self.born = trio.current_time()
                await live(self)
                finished = True
            finished = finished or self.delayed  # stopped before it began: nothing was cut short
        except BaseException as error:  # noqa: BLE001
            # The one boundary: what the actor raised becomes its failure; what is
            # not its own, cancellation above all, goes on.
            failure, rest = separate(error)
            self.failure = self.failure or failure
            if rest is not None:
                raise rest from None
        finally:
            self.scope = self.nursery = self._supervisors = None
            self.serving = False
            self.supervisor.ended(self, cancelled=not finished and self.failure is None)

    def tell_serving(self) -> None:
        """`on_start` has returned."""
        self.serving = self.ran = True
        self._tell_started()

    # -- its end --------------------------------------------------------------

    def limit(self) -> None:
        """From now on the incarnation has `stop_timeout` seconds to end."""
        if self.scope is not None:
            end = trio.current_time() + self.spec.stop_timeout
            if end < self.scope.deadline:
                self.scope.deadline = end

    def stop(self, *, drain: bool = False) -> None:
        """Ask it to end for good; with `drain`, after the messages it has accepted."""
        if self.exited or self.stopping:
            return
        self.stopping = True
        self.drain = drain
        self.mailbox.close(drain=drain)
        if self.scope is None:
            self.supervisor.exit(self, cancelled=False)  # between two incarnations
        elif self.delayed:
            self.scope.cancel()
        else:
            self.limit()

    def hold(self) -> None:
        """Ask the incarnation to end; the mailbox stays open for the next one."""
        if self.scope is not None:
            self.held = True
            self.mailbox.halt()
            self.limit()

    def settle(self, *, restarting: bool) -> None:
        """Answer the asks the ended incarnation had in hand."""
        text = f"{self.ref.name} failed with this in hand"
        if (current := self.current) is not None:
            self.current = None
            current.refuse(_ended(text, restarting))
        while self.deferred:
            self.deferred.popitem()[0].refuse(_ended(text, restarting))

    def cancel(self) -> None:
        """Stop it for good, at once."""
        self.stop()
        if self.scope is not None:
            self.scope.cancel()

    def exit(self) -> None:
        """Close for good, so that nobody waits for this child any more."""
        self.exited = True
        self.mailbox.close()
        self.settle(restarting=False)
        self._tell_ended()

    def rest(self) -> None:
        """Go down between two incarnations."""
        self.failure = None
        self._tell_ended()

    def _tell_started(self) -> None:
        if self._started is not None:
            self._started.set()
            self._started = None

    def _tell_ended(self) -> None:
        self.actor = None
        self._tell_started()
        if self._done is not None:
            self._done.set()
            self._done = None

    async def started(self) -> None:
        """Wait until the incarnation's `on_start` has returned, or will not."""
        if self.scope is not None and not self.serving:
            if self._started is None:
                self._started = trio.Event()
            await self._started.wait()

    async def done(self) -> None:
        """Wait until the incarnation, held or stopped, has ended."""
        if self.scope is not None:
            if self._done is None:
                self._done = trio.Event()
            await self._done.wait()

    def statistics(self) -> ActorStatistics:
        """Counters over all incarnations."""
        return ActorStatistics(
            mailbox=self.mailbox.statistics(),
            handled=self.handled,
            malformed=self.malformed,
            restarts=self.restarts,
            busy_seconds=self.busy_seconds,
        )


def _ended(text: str, restarting: bool) -> ActorDead:
    if restarting:
        return ActorRestarted(f"{text} and is being restarted: ask again")
    return ActorDead(f"{text}, or was stopped")

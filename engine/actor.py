"""An actor: private state, one mailbox, one message at a time.

    constructor → on_start → receive, receive, … → on_stop        (it ended)
                                         └ raised → on_failure    (its supervisor decides)

Subclass it, name the messages it accepts in `receives`, and answer in `receive`:

    class Counter(Actor):
        receives = (Increment,)

        async def receive(self, message: Message) -> Message | None:
            self.count += message.by
            return Total(self.count)

Invariants:

* a message is handled by exactly one incarnation, alone; a failure in `receive`
  ends the incarnation, never the process;
* an incarnation that ends leaves no task behind: background work and child
  actors end with it.

Not here: when it is started again (`restart`, `supervisor`), and its loop (`child`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

from .codec import Message
from .envelope import Reply
from .errors import ActorError
from .restart import Backoff, RestartIntensity, Strategy

if TYPE_CHECKING:
    from .child import Child
    from .ref import ActorRef
    from .supervisor import Supervisor
    from .system import ActorSystem


class ActorContext:
    """What an actor knows of its place. Set before `on_start`."""

    __slots__ = ("_child", "incarnation")

    def __init__(self, child: Child) -> None:
        self._child = child
        self.incarnation = child.restarts
        """0 for the first, then one more after each restart."""

    @property
    def ref(self) -> ActorRef:
        """The actor's own address, to hand out."""
        return self._child.ref

    @property
    def name(self) -> str:
        """Unique among the living siblings."""
        return self._child.spec.name

    @property
    def path(self) -> str:
        """Names from the root down: `dispatcher/session-17`."""
        return self._child.path

    @property
    def seed(self) -> int:
        """The actor's own seed, from its supervisor's and its name; equal in each incarnation."""
        return self._child.seed

    @property
    def system(self) -> ActorSystem:
        """The system it lives in."""
        return self._child.supervisor.system


class Actor:
    """Base of every actor. The constructor must not block; it takes whatever you like."""

    receives: ClassVar[tuple[type[Message], ...]] = ()
    """The closed set of messages it accepts. Anything else is a `MessageError` to the
    sender, and does the actor no harm."""
    mailbox_capacity: ClassVar[int] = 1024
    """Messages accepted and not yet handled, before senders wait."""
    has_tasks: ClassVar[bool] = False
    """True gives it a nursery, for `background` and `supervise`. It costs memory and time
    at each start: thousands of small actors say False."""

    context: ActorContext

    # -- hooks ----------------------------------------------------------------

    async def on_start(self) -> None:
        """Called first in each incarnation. If it raises, the actor has failed."""

    async def on_stop(self) -> None:
        """Called when the actor ends without a failure, if `on_start` was finished.

        Child actors have already been stopped, background tasks still run. It has
        `stop_timeout` seconds. Where the actor ends by cancellation, every await in
        it is cancelled at once: release by plain calls what must be released.
        """

    async def on_failure(self, error: BaseException) -> None:
        """Called when the actor failed, after its background tasks and child actors ended.

        It cannot change what the supervisor does. It has `stop_timeout` seconds; if it
        raises, that is logged and `error` counts.
        """

    async def receive(self, message: Message) -> Message | None:
        """Handle one message; the returned message answers an ask.

        Raise `AskFailed` to fail this ask alone. Any other exception is a failure
        of the actor: its asker gets `ActorRestarted` or `ActorDead`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `receive`")

    # -- what it may do -------------------------------------------------------

    def defer(self) -> Reply:
        """Inside `receive`: answer this ask later. What `receive` returns is then ignored.

        If the actor ends first, the asker gets `ActorRestarted` or `ActorDead`. For a
        message that was told, not asked, the answer goes nowhere.
        """
        return self.context._child.defer()

    def background(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run `function(*args)` beside `receive` until it returns or the actor ends.

        If it raises, the actor has failed.

        Raises:
            ActorError: the class does not say `has_tasks = True`.
        """
        self.context._child.nursery_for("background").start_soon(function, *args)

    async def supervise(
        self,
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: RestartIntensity | None = None,
        backoff: Backoff | None = None,
    ) -> Supervisor:
        """Start a supervisor for child actors of this one, stopped with it.

        If it escalates, this actor has failed.

        Raises:
            ActorError: the class does not say `has_tasks = True`.
        """
        return await self.context._child.supervise(strategy, intensity, backoff)

    def stop(self) -> None:
        """End normally after the current message.

        A permanent actor is then started again and finds its queue as it was; any
        other has ended for good, and what is queued is refused.
        """
        self.context._child.end()


def needs_tasks(actor: Actor, what: str) -> ActorError:
    """Say which class lacks a nursery, and what to write."""
    return ActorError(f"`{what}` needs a nursery: set `has_tasks = True` on {type(actor).__name__}")

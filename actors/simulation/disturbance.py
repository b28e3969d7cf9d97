"""Strikes at the n-th step of any task: actors, mailboxes, the clock, the whole process.

An instrument counts the steps that trio gives to tasks. At a strike's count, this task is
woken and strikes while every other task waits at some await: so each await of the cast is
met, given enough plans.

Invariant: without a strike that is due, nothing is done but to count.

Not here: faults of the environment, the backend and the disk (`faulty_*`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
import trio.testing

from ...engine.codec import MAX_MESSAGE_BYTES, Message
from ...engine.errors import ActorDead, MailboxFull, MessageError
from ...engine.ref import ActorRef
from ...engine.seeds import generator
from ...engine.testing import children, crash, interrupt
from ...engine.trajectory import Outcome, Trajectory
from ...engine.virtual_clock import VirtualClock
from ..embedding import Engine
from ..protocol import CancelRollout, DescribeInference, EpisodeEnded
from .fault_plan import Strike

if TYPE_CHECKING:
    from .injection import Injector

ACTORS: Final = ("collector", "dispatcher", "inference")
_ACTOR_STRIKES: Final = tuple(
    f"{actor}.{how}" for actor in (*ACTORS, "learner", "session") for how in ("dies", "cancelled")
)
DISTURBANCES: Final = (
    *_ACTOR_STRIKES,
    "process.killed",
    "campaign.cancelled",
    "mailbox.full",
    "message.corrupt",
    "message.oversize",
    "clock.jumps",
)

_TRIES: Final = 200
"""Steps for which a strike waits for its target: a session, an incarnation."""
_ANSWER_SECONDS: Final = 1e6
"""Virtual seconds within which an ask must have ended; beyond every deadline there is."""


class Disturbance:
    """The strikes of one process run that come at a step."""

    def __init__(self, injector: Injector, engine: Engine, strikes: Sequence[Strike]) -> None:
        """`strikes` are in the order of their steps."""
        self._injector = injector
        self._engine = engine
        self._strikes = strikes

    async def run(self) -> None:
        """Strike each in its turn, then wait to be cancelled."""
        steps = _Steps()
        trio.lowlevel.add_instrument(steps)
        try:
            async with trio.open_nursery() as nursery:
                for strike in self._strikes:
                    await steps.reach(strike.at)
                    for _ in range(_TRIES):
                        if self._struck(strike, nursery):
                            break
                        await steps.reach(steps.count + 1)
                steps.enough()
                await trio.sleep_forever()
        finally:
            steps.enough()

    def _struck(self, strike: Strike, nursery: trio.Nursery) -> bool:
        """Strike, if what is to be struck is there; and count it."""
        kind = strike.kind
        if kind == "process.killed":
            done = self._injector.kill()
        elif kind == "campaign.cancelled":
            done = self._cancel_campaign()
        elif kind == "clock.jumps":
            done = _jump(strike.lasts)
        elif kind == "mailbox.full":
            done = self._flood()
        elif kind == "message.corrupt":
            done = self._send(b"\xc1 is no message", nursery)
        elif kind == "message.oversize":
            done = self._send(bytes(MAX_MESSAGE_BYTES + 1), nursery)
        else:
            done = self._hit(strike)
        if done:
            self._injector.strike(kind)
        return done

    def _hit(self, strike: Strike) -> bool:
        name, _, how = strike.kind.partition(".")
        ref = self._session(strike.at) if name == "session" else self._actor(name)
        if ref is None:
            return False
        return crash(ref) if how == "dies" else interrupt(ref)

    def _actor(self, name: str) -> ActorRef | None:
        return self._injector.cast.get(name) or self._engine.actor(name)

    def _session(self, at: int) -> ActorRef | None:
        dispatcher = self._actor("dispatcher")
        sessions = children(dispatcher) if dispatcher is not None else []
        if not sessions:
            return None
        return generator(self._injector.plan.seed, "session", at).choice(sessions)

    def _cancel_campaign(self) -> bool:
        scope = self._injector.campaign
        if scope is None or scope.cancel_called:
            return False
        scope.cancel()
        return True

    def _flood(self) -> bool:
        """Fill the mailboxes with sound messages that mean nothing."""
        for name in ACTORS:
            if (ref := self._actor(name)) is not None:
                _fill(ref, _IDLE[name]())
        return True

    def _send(self, payload: bytes, nursery: trio.Nursery) -> bool:
        """Ask and tell each actor what is no message; each ask must be refused."""
        for name in ACTORS:
            if (ref := self._actor(name)) is not None:
                nursery.start_soon(self._refused, ref, payload)
        return True

    async def _refused(self, ref: ActorRef, payload: bytes) -> None:
        try:
            await ref.forward_tell(payload)
            with trio.fail_after(_ANSWER_SECONDS):
                await ref.forward_ask(payload).wait()
        except (MessageError, ActorDead):
            return
        except trio.TooSlowError:
            self._injector.surprises.append(f"{ref.name} never answered what is no message")
        else:
            self._injector.surprises.append(f"{ref.name} answered what is no message")


def _jump(seconds: float) -> bool:
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, trio.testing.MockClock | VirtualClock):
        return False
    clock.jump(seconds)
    return True


def _fill(ref: ActorRef, message: Message) -> None:
    try:
        while True:
            ref.tell_nowait(message)
    except (MailboxFull, ActorDead):
        return


def _nobodys_record() -> Message:
    return EpisodeEnded(
        0, Trajectory("w0/nobody/0", "none", "nobody", "", 0, 0, 0, Outcome.CANCELLED, None)
    )


_IDLE: Final[dict[str, Callable[[], Message]]] = {
    "collector": _nobodys_record,
    "dispatcher": lambda: CancelRollout(0),
    "inference": DescribeInference,
}


class _Steps(trio.abc.Instrument):
    """Counts the steps of all tasks of this run, and wakes one task at a count."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = -1
        self._reached = trio.Event()
        self._counting = True

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        if self.count == self._wanted:
            self._reached.set()

    async def reach(self, count: int) -> None:
        """Wait until so many steps have been made."""
        if count > self.count:
            self._wanted, self._reached = count, trio.Event()
            await self._reached.wait()

    def enough(self) -> None:
        """Count no more."""
        if self._counting:
            self._counting = False
            trio.lowlevel.remove_instrument(self)

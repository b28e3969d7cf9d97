"""The public kit for testing actors: virtual time, one schedule a seed, probes and faults.

    run_simulated(scenario, seed=3)      trio.run on a virtual clock, schedule pinned by the seed
    ProbeActor.of(Ping)                  an actor that records what it gets and answers by script
    MessageFaults(7, raises=0.1)             faults at the n-th message, drawn from a seed or named
    EventLog / event_digest              what happened, as one short hash

Invariant: under `run_simulated`, code that draws randomness only from its seed and
time only from the loop's clock does the same thing in the same order each time; a
different seed is a different interleaving of the same tasks.

Not here: fake environments (`envs.wrappers`) and fake backends (`actors.backends.scripted`).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, Literal, TypeVar, cast

import msgspec
import trio
import trio.testing

from .actor import Actor
from .blocking import simulate
from .codec import Message
from .errors import ConfigError, MissingDependency
from .ref import ActorRef
from .seeds import derive, generator

T = TypeVar("T")


# -- virtual time and one schedule a seed ---------------------------------------


def run_simulated(
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    seed: int = 0,
    interruptible: bool = False,
    clock: trio.abc.Clock | None = None,
) -> T:
    """Run `async_fn(*args)` to its end in virtual time, with the schedule that `seed` gives.

    `interruptible`: Ctrl-C reaches `async_fn` at a checkpoint, and no actor on its way.
    `clock`: a virtual one; by default trio's `MockClock`, which jumps when all is idle.

    Sleeping takes no real time: when every task waits, the clock jumps to the next
    deadline. What goes through `blocking` is called on the spot; other threads, and
    sockets, are not simulated: keep them out of such runs.

    Raises:
        MissingDependency: this trio's scheduler cannot be pinned.
    """
    virtual = clock or trio.testing.MockClock(autojump_threshold=0)

    async def simulated() -> T:
        simulate()
        return await async_fn(*args)

    with pinned_scheduler(seed):
        return trio.run(
            simulated, clock=virtual, restrict_keyboard_interrupt_to_checkpoints=interruptible
        )


@contextmanager
def pinned_scheduler(seed: int) -> Iterator[None]:
    """Make trio's order of runnable tasks a function of `seed`, and put it back after.

    trio shuffles each batch of runnable tasks with a private generator, on purpose,
    so that nobody relies on an order; there is no public way to seed it. These two
    private names are those that trio's own determinism test pins. What stays open
    even so: the order in which one cancellation reaches the tasks under it, which is
    the order of a set. The runtime tells abandoned asks from the askers' own
    tasks for that reason.
    """
    run = cast(Any, trio)._core._run  # the one place where trio's private parts are touched
    shuffle = getattr(run, "_r", None)
    if not (isinstance(shuffle, random.Random) and hasattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING")):
        raise MissingDependency(
            f"trio {trio.__version__} has no scheduler generator to pin "
            "(trio._core._run._r, _ALLOW_DETERMINISTIC_SCHEDULING): simulated runs need "
            "a trio that has them, such as 0.35"
        )
    state, allowed = shuffle.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    shuffle.seed(derive(seed, "schedule"))
    try:
        yield
    finally:
        shuffle.setstate(state)
        run._ALLOW_DETERMINISTIC_SCHEDULING = allowed


# -- what happened, as a hash ---------------------------------------------------


def event_digest(events: Iterable[object]) -> str:
    """Hash events (tuples, numbers, strings, messages, dataclasses) in order: 32 hex digits."""
    digest = blake2b(digest_size=16)
    for event in events:
        digest.update(msgspec.msgpack.encode(event))
    return digest.hexdigest()


class EventLog(list[tuple[object, ...]]):
    """A list of events with the virtual time of each; `log("started", name)` appends one."""

    def __call__(self, *fields: object) -> None:
        """Append (seconds on the clock, *fields)."""
        self.append((trio.current_time(), *fields))

    def digest(self) -> str:
        """One hash of all of it: equal runs have equal digests."""
        return event_digest(self)


# -- faults ---------------------------------------------------------------------

FaultName = Literal["raise", "delay", "drop"]


class InjectedFault(Exception):
    """Raised by a `MessageFaults`; no error of ours, so it is classified as a foreign one."""


class MessageFaults:
    """Which of a row of events (messages, steps, writes) goes wrong, and how.

    Named by position, `MessageFaults(at={0: "raise", 4: "drop"})`, or drawn from a seed,
    `MessageFaults(seed=7, raises=0.1, delays=0.2)`; both may be given, names win. Equal
    plans strike the same events in the same way. Share one plan between the
    incarnations of an actor, or the first fault strikes each of them.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        at: Mapping[int, FaultName] | None = None,
        raises: float = 0.0,
        delays: float = 0.0,
        drops: float = 0.0,
        delay_seconds: float = 1.0,
        error: Callable[[int], Exception] | None = None,
    ) -> None:
        if min(raises, delays, drops) < 0 or raises + delays + drops > 1:
            raise ConfigError("fault shares must be 0 or more and sum to at most 1")
        self.delay_seconds: Final = delay_seconds
        self.count = 0
        """Events seen."""
        self.struck: list[tuple[int, FaultName]] = []
        """What was done to which event, in order."""
        self._at = dict(at or {})
        self._seed = seed
        self._shares: tuple[tuple[FaultName, float], ...] = (
            ("raise", raises),
            ("delay", delays),
            ("drop", drops),
        )
        self._error = error or (lambda n: InjectedFault(f"injected at event {n}"))

    def next(self) -> FaultName | None:
        """Count one event and say what is to happen to it."""
        number, self.count = self.count, self.count + 1
        fault = self._at.get(number) or self._draw(number)
        if fault is not None:
            self.struck.append((number, fault))
        return fault

    def _draw(self, number: int) -> FaultName | None:
        point = generator(self._seed, "fault", number).random()
        for fault, share in self._shares:
            if point < share:
                return fault
            point -= share
        return None

    async def strike(self) -> bool:
        """Count one event: raise, delay it, or return False if it is to be dropped."""
        number = self.count
        fault = self.next()
        if fault == "raise":
            raise self._error(number)
        if fault == "delay":
            await trio.sleep(self.delay_seconds)
        return fault != "drop"


def crash(ref: ActorRef, error: Exception | None = None) -> bool:
    """Let the actor's incarnation fail, wherever it is; False if none runs just now."""
    child = ref._child
    if child.scope is None or child.failure is not None:
        return False
    child.crash(error or InjectedFault(f"{ref.name} was made to fail"))
    return True


def interrupt(ref: ActorRef) -> bool:
    """Cancel the actor's incarnation at whatever it waits for; False if none runs just now."""
    scope = ref._child.scope
    if scope is None or scope.cancel_called:
        return False
    scope.cancel()
    return True


def children(ref: ActorRef) -> list[ActorRef]:
    """The living child actors of an actor, in start order."""
    return [child for supervisor in ref._child.supervisors for child in supervisor.children]


# -- a probe ----------------------------------------------------------------------

Answer = Message | BaseException | Callable[[Any], Message | None] | None
"""A message to answer with, an exception to raise, or a function of the message."""


class ProbeActor(Actor):
    """Records what happens to it and answers by script.

        log = EventLog()
        spec = ChildSpec("probe", lambda: ProbeActor.of(Ping)(log, answers={Ping: Pong()}))

    It logs ("start"|"stop"|"failure", name) and ("message", name, class name). A
    message without a scripted answer is answered with itself where it was asked.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        answers: Mapping[type[Message], Answer] | None = None,
        faults: MessageFaults | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.log: Final = log
        self.answers: Final = dict(answers or {})
        self.faults: Final = faults
        self.seconds: Final = seconds
        """Time each message takes."""
        self.received: list[Message] = []
        """Messages of this incarnation, in order."""

    @classmethod
    def of(cls, *receives: type[Message], capacity: int = 1024) -> type[ProbeActor]:
        """A probe class that receives these messages, in a mailbox of that capacity."""
        return type("ProbeActor", (cls,), {"receives": receives, "mailbox_capacity": capacity})

    async def on_start(self) -> None:
        """Log it."""
        self.log("start", self.context.name)

    async def on_stop(self) -> None:
        """Log it."""
        self.log("stop", self.context.name)

    async def on_failure(self, error: BaseException) -> None:
        """Log it."""
        self.log("failure", self.context.name, type(error).__name__)

    async def receive(self, message: Message) -> Message | None:
        """Record the message, suffer the planned fault, answer by script."""
        self.received.append(message)
        self.log("message", self.context.name, type(message).__name__)
        if self.seconds:
            await trio.sleep(self.seconds)
        if self.faults is not None and not await self.faults.strike():
            self.defer()  # dropped: the asker waits until this incarnation ends
            return None
        answer = self.answers.get(type(message), message)
        if isinstance(answer, BaseException):
            raise answer
        return answer(message) if callable(answer) else answer

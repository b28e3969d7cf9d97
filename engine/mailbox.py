"""A bounded queue with one receiver, which it wakes directly.

    senders ─ post ─▶ [ queue, at most `capacity` ] ─ take ─▶ the actor
               └ full: wait in line, first come first served

Invariants:

* messages are taken in the order in which they were accepted, and a sender that
  waits is accepted before any sender that came later;
* at most `capacity` messages are accepted and not yet taken; somebody waits only
  while the queue is full;
* once closed, nothing is accepted, and every ask that was queued or waiting has
  been answered with `ActorDead`.

A trio memory channel costs 12.5 µs a round trip with 1,000 clients; parking the
receiver with `trio.lowlevel` and waking it from the sender costs a third of
that, since only two tasks are ever involved. For the same reason a sender that
finds room does not give up the thread: the bound is what makes it.

Not here: bytes and decoding (`codec`), what an answer is (`envelope`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import partial
from typing import Final

import outcome
import trio

from .envelope import Envelope
from .errors import ActorDead, ConfigError, MailboxFull


@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    """How a mailbox was used since it was made. Size it from the peaks."""

    capacity: int
    """Most messages accepted and not yet taken."""
    size: int
    """Messages accepted and not yet taken, now."""
    peak_size: int
    """Largest `size` so far: a peak at the capacity means senders had to wait."""
    waiting: int
    """Senders waiting for room, now."""
    peak_waiting: int
    """Most senders that waited at once."""
    delivered: int
    """Messages taken by the actor."""
    refused: int
    """Messages never accepted: the mailbox was full (`tell_nowait`) or closed."""
    dropped: int
    """Messages accepted, then thrown away when the actor stopped."""


class Mailbox:
    """The queue in front of one actor; it outlives the actor's incarnations."""

    __slots__ = (
        "_halted",
        "_open",
        "_peak_size",
        "_peak_waiting",
        "_queue",
        "_receiver",
        "_waiting",
        "capacity",
        "delivered",
        "dropped",
        "owner",
        "refused",
    )

    def __init__(self, owner: str, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(f"mailbox capacity of {owner} must be at least 1, not {capacity}")
        self.owner: Final = owner
        self.capacity: Final = capacity
        self.delivered = 0
        self.refused = 0
        self.dropped = 0
        self._queue: deque[Envelope] = deque()
        # Made when the first sender has to wait: most mailboxes never fill up,
        # and there are thousands of them. Values: the task to wake, or None for
        # an ask, whose task sleeps on its reply anyway.
        self._waiting: OrderedDict[Envelope, trio.lowlevel.Task | None] | None = None
        self._receiver: trio.lowlevel.Task | None = None
        self._open = True
        self._halted = False
        self._peak_size = 0
        self._peak_waiting = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def open(self) -> bool:
        """Whether messages are accepted."""
        return self._open

    # -- senders --------------------------------------------------------------

    def post(self, envelope: Envelope) -> None:
        """Accept a message now.

        Raises:
            MailboxFull: no room.
            ActorDead: closed.
        """
        if not self._open:
            self.refused += 1
            raise self._dead()
        if len(self._queue) >= self.capacity:
            self.refused += 1
            raise MailboxFull(
                f"the mailbox of {self.owner} holds {self.capacity} messages; "
                "use `tell`, which waits for room"
            )
        self._accept(envelope)

    async def post_or_wait(self, envelope: Envelope) -> None:
        """Accept a message, waiting in line for room.

        Raises:
            ActorDead: closed, before or while waiting.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.post_or_line_up(envelope, trio.lowlevel.current_task()):
            return

        def leave(_: object) -> trio.lowlevel.Abort:
            self._leave(envelope)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def post_or_line_up(self, envelope: Envelope, task: trio.lowlevel.Task | None) -> bool:
        """Accept a message now (True), or put it in line (False).

        When there is room `task` is woken; an ask gives None, it sleeps on its
        reply. A closed mailbox raises `ActorDead`.
        """
        if not self._open:
            self.refused += 1
            raise self._dead()
        if len(self._queue) < self.capacity:
            self._accept(envelope)
            return True
        if self._waiting is None:
            self._waiting = OrderedDict()
        self._waiting[envelope] = task
        if len(self._waiting) > self._peak_waiting:
            self._peak_waiting = len(self._waiting)
        if envelope.reply is not None:
            envelope.reply.on_abandon(partial(self._leave, envelope))
        return False

    def _accept(self, envelope: Envelope) -> None:
        queue = self._queue
        queue.append(envelope)
        if len(queue) > self._peak_size:
            self._peak_size = len(queue)
        if self._receiver is not None:
            self._wake()

    def _leave(self, envelope: Envelope) -> None:
        if self._waiting:
            self._waiting.pop(envelope, None)

    # -- the receiver ---------------------------------------------------------

    def take(self) -> Envelope | None:
        """Take the next message; None if there is none, or the receiver is to end."""
        if self._halted or not self._queue:
            return None
        envelope = self._queue.popleft()
        self.delivered += 1
        if self._waiting:
            admitted, task = self._waiting.popitem(last=False)
            self._queue.append(admitted)
            if task is not None:
                trio.lowlevel.reschedule(task)
        return envelope

    async def wait(self) -> Envelope | None:
        """Wait for the next message and take it; None once the receiver is to end."""
        while (envelope := self.take()) is None:
            if self._halted or not self._open:
                return None
            assert self._receiver is None, f"two receivers on the mailbox of {self.owner}"
            self._receiver = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._receiver_cancelled)
        return envelope

    def _receiver_cancelled(self, _: object) -> trio.lowlevel.Abort:
        self._receiver = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        if (receiver := self._receiver) is not None:
            self._receiver = None
            trio.lowlevel.reschedule(receiver)

    # -- the supervisor -------------------------------------------------------

    def halt(self) -> None:
        """Make the receiver end after its current message; what is queued stays."""
        self._halted = True
        self._wake()

    def resume(self) -> None:
        """Let the next incarnation receive what its predecessor left."""
        self._halted = False

    def close(self, *, drain: bool = False) -> None:
        """Accept nothing more and refuse who waits; idempotent.

        With `drain` the receiver still gets what was accepted, then ends.
        Without, queued asks are answered with `ActorDead` and tells are dropped.
        """
        self._open = False
        if self._waiting:
            waiting, self._waiting = self._waiting, None
            self.refused += len(waiting)
            for envelope, task in waiting.items():
                if envelope.reply is not None:
                    envelope.reply.refuse(self._dead())
                elif task is not None:
                    trio.lowlevel.reschedule(task, outcome.Error(self._dead()))
        if not drain:
            self._halted = True
            self.dropped += len(self._queue)
            for envelope in self._queue:
                if envelope.reply is not None:
                    envelope.reply.refuse(self._dead())
            self._queue.clear()
        self._wake()

    def _dead(self) -> ActorDead:
        # A new one for each sender: an exception collects the traceback of whoever raises it.
        return ActorDead(f"{self.owner} has stopped and will not answer")

    def statistics(self) -> MailboxStatistics:
        """How it was used so far."""
        return MailboxStatistics(
            capacity=self.capacity,
            size=len(self._queue),
            peak_size=self._peak_size,
            waiting=len(self._waiting) if self._waiting else 0,
            peak_waiting=self._peak_waiting,
            delivered=self.delivered,
            refused=self.refused,
            dropped=self.dropped,
        )

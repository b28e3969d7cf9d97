"""The address of an actor: all that others ever hold of it.

A ref stays the same over restarts, and is compared by identity. `tell` sends
and forgets; `ask` sends and waits for the answer. Both wait for room in the
mailbox, which is how backpressure travels.

Invariant: every `ask` ends: with an answer, with an error of this file's list,
or with the caller's own cancellation, which also withdraws the question.

Two actors that `ask` each other from inside `receive` wait for each other: give
the ask a timeout, or answer later with `Actor.defer`.

Not here: addresses in other processes (`transport` has the same two verbs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from .clock import deadline
from .codec import Decoder, Message, decoder, encode
from .envelope import Envelope, Reply
from .mailbox import Mailbox, MailboxStatistics

if TYPE_CHECKING:
    from .child import Child

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """What an actor did since it was started, over all of its incarnations."""

    mailbox: MailboxStatistics
    handled: int
    """Messages handled to the end, with or without an answer."""
    malformed: int
    """Messages that did not decode as one of those the actor receives."""
    restarts: int
    busy_seconds: float
    """Seconds spent inside `receive`, waiting included: its share of the elapsed time is
    the actor's utilisation."""


class ActorRef:
    """Where to send messages to one actor."""

    __slots__ = ("_child", "_mailbox", "name")

    def __init__(self, name: str, mailbox: Mailbox, child: Child) -> None:
        self.name = name
        """Unique among the living siblings."""
        self._mailbox = mailbox
        self._child = child

    def __repr__(self) -> str:
        return f"<ActorRef {self.name}{'' if self.alive else ' (dead)'}>"

    @property
    def alive(self) -> bool:
        """Whether messages are accepted. An actor between two incarnations is alive."""
        return self._mailbox.open

    async def tell(self, message: Message) -> None:
        """Send without an answer; waits for room in the mailbox.

        Raises:
            ActorDead: the actor has stopped.
        """
        await self._mailbox.post_or_wait(Envelope(encode(message), None))

    def tell_nowait(self, message: Message) -> None:
        """Send without an answer, at once.

        Raises:
            MailboxFull: there is no room.
            ActorDead: the actor has stopped.
        """
        self._mailbox.post(Envelope(encode(message), None))

    async def ask(
        self,
        message: Message,
        reply: type[M],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (it becomes the error that names the actor)
    ) -> M:
        """Send, and wait for an answer of class `reply`.

        `timeout` (seconds, None = no limit of its own) covers waiting for room,
        handling and answering. It opens a cancel scope, about 12 µs; where the
        caller already has a deadline, leave it out.

        Raises:
            ActorDead: the actor stopped, or had stopped, without an answer.
            ActorRestarted: the incarnation that had received it failed; ask again.
            AskFailed: the actor answered with a failure.
            MessageError: the actor does not receive such messages, or the answer is
                not a `reply`.
            DeadlineExceeded: `timeout` passed.
        """
        if timeout is None:
            return await self._ask(message, reply)
        with deadline(f"ask {self.name}", timeout):
            return await self._ask(message, reply)

    async def _ask(self, message: Message, answer: type[M]) -> M:
        payload = await self.forward_ask(encode(message)).wait()
        return cast(Decoder[M], decoder(answer)).decode(payload)

    async def forward_tell(self, payload: bytes) -> None:
        """`tell` a message that is encoded already, as it came off a socket."""
        await self._mailbox.post_or_wait(Envelope(payload, None))

    def forward_ask(self, payload: bytes) -> Reply:
        """`ask` with a message that is encoded already; wait on the reply for the bytes."""
        reply = Reply()
        self._mailbox.post_or_line_up(Envelope(payload, reply), None)
        return reply

    def stop(self) -> None:
        """Stop the actor for good: it finishes its current message, and what is queued is
        refused. Returns at once; its supervisor cancels it after `stop_timeout`."""
        self._child.stop()

    def statistics(self) -> ActorStatistics:
        """Counters since the actor was first started."""
        return self._child.statistics()

"""What lies in a mailbox: a message as bytes, and the promise of an answer if it was asked for.

    PENDING ──answer/fail──▶ SETTLED       the asker gets the answer or AskFailed
       │ ────actor ends────▶ SETTLED       the asker gets ActorRestarted or ActorDead
       └───asker cancelled─▶ ABANDONED     on_abandon fires once

Invariant: a `Reply` leaves PENDING exactly once. What comes later (an answer
to an asker that is gone, or from an actor that is dead) is dropped silently:
both sides may die at any time, and neither has to know about the other.

Not here: who waits for room (see `mailbox`) and who may ask (see `ref`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import outcome
import trio

from .codec import Message, encode
from .errors import ActorError, AskFailed, MessageError, classify

if TYPE_CHECKING:
    from .child import Child

PENDING: Final = 0
SETTLED: Final = 1
ABANDONED: Final = 2


class Envelope:
    """One message on its way. Compared by identity."""

    __slots__ = ("payload", "reply")

    def __init__(self, payload: bytes, reply: Reply | None) -> None:
        self.payload: Final = payload
        self.reply: Final = reply
        """None for a `tell`."""


class Reply:
    """The answer to one ask: given out by `Actor.defer`, settled at most once.

    All methods belong to the trio thread; from another thread use
    `trio.from_thread.run_sync`.
    """

    __slots__ = ("_callback", "_child", "_result", "_state", "_task")

    def __init__(self) -> None:
        self._state = PENDING
        self._result: outcome.Value[bytes] | outcome.Error | None = None
        self._task: trio.lowlevel.Task | None = None
        self._callback: Callable[[], None] | None = None
        # Set while the actor keeps this reply for later: it is then in the
        # child's `deferred` table and has to leave it when settled.
        self._child: Child | None = None

    # -- the side of the actor ------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._state == PENDING

    def answer(self, message: Message) -> None:
        """Answer the ask. Dropped silently if the asker is gone or the actor has died."""
        if self._state == PENDING:
            self._settle(outcome.Value(encode(message)))

    def fail(self, error: BaseException) -> None:
        """Fail this ask alone, as `AskFailed` with the error's kind and text; the actor lives."""
        if self._state == PENDING:
            if not isinstance(error, AskFailed):
                cause, error = error, AskFailed(*classify(error))
                error.__cause__ = cause
            self._settle(outcome.Error(error))

    def on_abandon(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once if the asker goes away (cancelled, timed out) unanswered.

        At once, if it already has; never, if the ask is settled first. A later
        callback replaces an earlier one. It must not block or raise: an
        exception in it is a failure of the actor that registered it.
        """
        if self._state == PENDING:
            self._callback = callback
        elif self._state == ABANDONED:
            callback()

    # -- the side of the runtime ----------------------------------------------

    def deliver(self, payload: bytes) -> None:
        """`answer` with a message that is encoded already, as it came off a socket."""
        if self._state == PENDING:
            self._settle(outcome.Value(payload))

    def refuse(self, error: ActorError | MessageError) -> None:
        """Settle with an error of the runtime itself, told to the asker as it is."""
        if self._state == PENDING:
            self._settle(outcome.Error(error))
        else:  # the asker left first, and is about to say so to an actor that is gone
            self._callback = None
            self._child = None

    def _settle(self, result: outcome.Value[bytes] | outcome.Error) -> None:
        self._state = SETTLED
        self._callback = None
        if self._child is not None:
            self._child.deferred.pop(self, None)
            self._child = None
        if (task := self._task) is not None:
            self._task = None
            trio.lowlevel.reschedule(task, result)
        else:
            self._result = result

    def keep(self, child: Child) -> None:
        """Keep this reply in the child's `deferred` table until it is settled or abandoned."""
        if self._state == PENDING:
            self._child = child
            child.deferred[self] = None

    def release_task(self, raise_cancel: object) -> trio.lowlevel.Abort:
        """Let a cancelled asker go. The abandonment itself is told when its task runs next.

        Telling it here would run foreign code inside trio's cancellation, and in
        the order of a set of tasks, which differs between equal runs.
        """
        self._task = None
        self._state = ABANDONED
        return trio.lowlevel.Abort.SUCCEEDED

    def discard(self) -> None:
        """Mark a reply that nobody waits for (an actor deferred a `tell`)."""
        self._state = SETTLED

    def abandon(self) -> None:
        """Tell the actor, once, that nobody waits any more."""
        self._state = ABANDONED
        callback, self._callback = self._callback, None
        child, self._child = self._child, None
        if child is not None:
            child.deferred.pop(self, None)
        if callback is None:
            return
        try:
            callback()
        except Exception as error:
            # It runs in the asker's task, but the defect is the actor's: it must
            # fail there, not here.
            if child is None:
                raise
            child.crash(error)

    async def wait(self) -> bytes:
        """Wait for the answer; raises what the ask was failed with."""
        if (result := self._result) is not None:
            await trio.lowlevel.checkpoint()
            return result.unwrap()
        self._task = trio.lowlevel.current_task()
        try:
            payload: bytes = await trio.lowlevel.wait_task_rescheduled(self.release_task)
        finally:
            if self._state == ABANDONED:
                self.abandon()
        return payload

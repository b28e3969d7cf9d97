"""One incarnation of an actor: from its factory through its messages to its last hook.

    factory → on_start → [take → decode → receive → answer]* → on_stop
                └────────────┴ raised ─────────────────────────→ on_failure

Invariants:

* messages are handled one at a time, in the order of the mailbox; an ask whose
  asker has gone is skipped;
* of `on_stop` and `on_failure` at most one is called, and once;
* a message that does not decode, and a receive that raises `AskFailed`, harm nobody
  but their sender.

Not here: what follows the incarnation (`supervisor`), what outlives it (`child`).
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio

from .actor import Actor, ActorContext
from .clock import deadline
from .codec import Message, decoder
from .envelope import Reply
from .errors import AskFailed, MessageError

if TYPE_CHECKING:
    from .child import Child

_log: Final = logging.getLogger("rollwave.engine")

MESSAGES_PER_SLICE: Final = 64
"""Messages an actor handles before it lets other tasks run, if nothing made it wait."""


def separate(error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """Split what escaped an actor into (its failure, what is not its own).

    The second part (cancellation, Ctrl-C) must go on. A group around one single
    exception, as nurseries raise them, is unwrapped.
    """
    failure: BaseException | None
    rest: BaseException | None
    if isinstance(error, BaseExceptionGroup):
        failure, rest = error.split(Exception)
    elif isinstance(error, Exception):
        failure, rest = error, None
    else:
        failure, rest = None, error
    failure = None if failure is None else sole(failure)
    assert failure is None or isinstance(failure, Exception)
    return failure, rest


def sole(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one; any other error as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def live(child: Child) -> None:
    """Run one incarnation; returns when it ended normally, raises what ended it otherwise."""
    actor = child.actor
    if actor is None:
        actor = child.actor = child.spec.factory()
    actor.context = ActorContext(child)
    try:
        if actor.has_tasks:
            async with trio.open_nursery() as nursery:
                child.nursery = nursery
                await _serve(child, actor)
                nursery.cancel_scope.cancel()
        else:
            await _serve(child, actor)
    except BaseException as error:
        failure, _ = separate(error)
        child.failure = child.failure or failure
        if child.failure is not None:
            await _tell_failure(child, actor, child.failure)
        elif child.serving and not child.ending:
            await _stop_cancelled(child, actor)
        raise


async def _serve(child: Child, actor: Actor) -> None:
    if child.spec.start_timeout < math.inf:
        with deadline(f"the start of {child.path}", child.spec.start_timeout):
            await actor.on_start()
    else:
        await actor.on_start()
    child.tell_serving()
    await _receive_all(child, actor)
    child.ending = True
    supervisors = child.supervisors
    if supervisors or _has_on_stop(actor):
        child.limit()
        for supervisor in reversed(supervisors):
            await supervisor.stop(drain=child.drain)
        await actor.on_stop()


def _has_on_stop(actor: Actor) -> bool:
    # A deadline costs a few µs, and most of the thousands that end have nothing to do.
    return type(actor).on_stop is not Actor.on_stop


async def _receive_all(child: Child, actor: Actor) -> None:
    mailbox = child.mailbox
    decode = decoder(*actor.receives).decode if actor.receives else _receives_nothing
    clock = trio.lowlevel.current_clock().current_time
    left = MESSAGES_PER_SLICE
    while True:
        if left == 0:
            left = MESSAGES_PER_SLICE
            await trio.lowlevel.checkpoint()
        if (envelope := mailbox.take()) is None:
            if (envelope := await mailbox.wait()) is None:
                return
            left = MESSAGES_PER_SLICE
        left -= 1
        reply = envelope.reply
        if reply is not None and not reply.pending:
            continue  # nobody waits for it any more
        since = clock()
        try:
            message = decode(envelope.payload)
        except MessageError as error:
            _refuse(child, error, reply)
            continue
        child.current = reply
        try:
            answer = await actor.receive(message)
        except AskFailed as error:
            if reply is not None:
                reply.fail(error)
            else:
                _log.warning("%s could not handle a message: %s", child.path, error)
        else:
            if (current := child.current) is not None:
                if answer is not None:
                    current.answer(answer)
                else:
                    current.fail(_no_answer(actor, message))
        child.current = None
        child.handled += 1
        child.busy_seconds += clock() - since


def _receives_nothing(_: bytes) -> Message:
    raise MessageError("it works by itself and takes no messages (`receives` is empty)")


def _refuse(child: Child, error: MessageError, reply: Reply | None) -> None:
    child.malformed += 1
    if reply is not None:
        reply.refuse(type(error)(f"{child.spec.name} does not receive this: {error}"))
    else:
        _log.warning("%s dropped a message it does not receive: %s", child.path, error)


def _no_answer(actor: Actor, message: object) -> AskFailed:
    return AskFailed(
        "message",
        f"{type(actor).__name__} returned no answer to {type(message).__name__}: "
        "tell it instead, or return a message from `receive`",
    )


async def _tell_failure(child: Child, actor: Actor, failure: Exception) -> None:
    child.limit()
    try:
        await actor.on_failure(failure)
    except Exception:  # noqa: BLE001 (a second failure must not hide the first)
        _log.warning("on_failure of %s failed itself", child.path, exc_info=True)


async def _stop_cancelled(child: Child, actor: Actor) -> None:
    if _has_on_stop(actor):
        child.ending = True
        child.limit()  # where it was Ctrl-C, not a cancellation, awaits do work
        try:
            await actor.on_stop()
        except Exception as second:  # noqa: BLE001 (told as the failure; the cancellation goes on)
            child.failure = second

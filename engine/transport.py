"""Actors in other processes: the same `tell` and `ask`, over a Unix or TCP socket.

    await nursery.start(serve, {"worlds": ref}, await listen("unix:/run/worlds.sock"))

    remote = await connect("unix:/run/worlds.sock")
    nursery.start_soon(remote.run)
    await remote.ref("worlds").ask(Reset(task), Observation, timeout=5)

Invariants, as for a local ref:

* every ask ends: with an answer, with the error the actor or its supervisor
  gave, or with `ActorDead` when the connection is lost;
* an asker that goes away is told to the other side, where the actor's
  `on_abandon` fires; a connection that breaks abandons all of its asks;
* a `tell` returns when the message lies in the mailbox; a full mailbox holds up
  the connection it came by, and no other.

Bytes that are no frames end their own connection, with the reason sent first; a
payload that the actor does not receive, or that is too large, fails alone.

Not here: the frames (`wire`), the asking side (`remote`), addresses (`sockets`), and
starting the other process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import trio

from .clock import deadline
from .codec import MAX_MESSAGE_BYTES
from .envelope import Reply
from .errors import ActorDead, ActorError, DeadlineExceeded, MessageError
from .ref import ActorRef
from .remote import Remote as Remote
from .remote import RemoteRef as RemoteRef
from .remote import connect as connect
from .sockets import address_of as address_of
from .sockets import listen as listen
from .wire import (
    CONNECT_SECONDS,
    LOST,
    PROTOCOL,
    Abandoned,
    Accepted,
    Answered,
    Asked,
    Channel,
    Frame,
    Hello,
    Refused,
    Told,
    failed,
    greeting,
    too_large,
)

_log: Final = logging.getLogger("rollwave.engine")


async def serve(
    actors: Mapping[str, ActorRef],
    listener: trio.SocketListener,
    *,
    limit: int = MAX_MESSAGE_BYTES,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Let other processes reach these actors, until cancelled. Closes the listener.

    Args:
        actors: by the name they are reached under; looked up for each message, so
            that it may change.
        listener: as `listen` gives it.
        limit: largest payload accepted, in bytes.
    """

    async def handle(stream: trio.SocketStream) -> None:
        channel = Channel(stream, limit)
        try:
            await _Session(actors, channel).run()
        except* LOST:
            pass  # the peer is gone, and all that it asked for was abandoned
        finally:
            await channel.close()

    async with listener:
        task_status.started()
        await trio.serve_listeners(handle, [listener])


class _Session:
    """One connection to our actors."""

    def __init__(self, actors: Mapping[str, ActorRef], channel: Channel) -> None:
        self._actors = actors
        self._channel = channel
        self._peer_limit = 0
        self._asks: dict[int, trio.CancelScope] = {}

    async def run(self) -> None:
        """Serve until the peer closes; then abandon what it asked for."""
        channel = self._channel
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.write)
            try:
                await self._serve(nursery)
            except (MessageError, DeadlineExceeded) as error:
                _log.warning("closed a connection: %s", error)
                channel.put(Refused(str(error)[:1000]))
                with trio.move_on_after(CONNECT_SECONDS):
                    await channel.drained()
            nursery.cancel_scope.cancel()

    async def _serve(self, nursery: trio.Nursery) -> None:
        channel = self._channel
        channel.put(Hello(PROTOCOL, channel.limit))
        with deadline("the greeting of a connection", CONNECT_SECONDS):
            frame = await channel.receive()
        if frame is not None:
            self._peer_limit = greeting(frame).limit
        while frame is not None:
            await channel.room()  # a peer that does not read is not read either
            frame = await channel.receive()
            if frame is not None:
                await self._take(frame, nursery)

    async def _take(self, frame: Frame, nursery: trio.Nursery) -> None:
        match frame:
            case Asked(id=number, to=name, payload=payload):
                if number in self._asks:
                    raise MessageError(f"ask {number} twice")
                try:
                    reply = self._actor(name, payload).forward_ask(payload)
                except (ActorError, MessageError) as error:
                    self._channel.put(failed(number, error))
                else:
                    scope = self._asks[number] = trio.CancelScope()
                    nursery.start_soon(self._answer, number, reply, scope)
            case Told(id=number, to=name, payload=payload):
                answer: Frame = Accepted(number)
                try:
                    await self._actor(name, payload).forward_tell(payload)
                except (ActorError, MessageError) as error:
                    answer = failed(number, error)
                if number:
                    self._channel.put(answer)
            case Abandoned(id=number):
                if number in self._asks:  # if not, the answer is on its way
                    self._asks[number].cancel()
            case _:
                raise MessageError(f"a {type(frame).__name__} frame, which only we send")

    def _actor(self, name: str, payload: bytes) -> ActorRef:
        actor = self._actors.get(name)
        if actor is None:
            known = ", ".join(sorted(self._actors)) or "nobody"
            raise ActorDead(f"no actor named {name!r} is served here; there is {known}")
        if len(payload) > self._channel.limit:
            raise too_large(payload, self._channel.limit)
        return actor

    async def _answer(self, number: int, reply: Reply, scope: trio.CancelScope) -> None:
        with scope:
            try:
                payload = await reply.wait()
                if len(payload) > self._peer_limit:
                    raise too_large(payload, self._peer_limit)
                frame: Frame = Answered(number, payload)
            except (ActorError, MessageError) as error:
                frame = failed(number, error)
            await self._channel.room()
            self._channel.put(frame)
        del self._asks[number]

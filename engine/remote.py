"""The asking side of a connection: refs to actors in another process.

    remote = await connect("unix:/run/worlds.sock")
    nursery.start_soon(remote.run)
    await remote.ref("worlds").ask(Reset(task), Observation, timeout=5)

Invariant: every ask and tell ends, at the latest when the connection does; what
comes later for it is dropped.

Not here: the serving side (`transport`) and the frames (`wire`).
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Final, TypeVar, cast

import trio

from .clock import deadline
from .codec import MAX_MESSAGE_BYTES, Decoder, Message, decoder, encode
from .envelope import Reply
from .errors import ActorDead, MailboxFull, MessageError
from .incarnation import sole
from .sockets import dial
from .wire import (
    CONNECT_SECONDS,
    LOST,
    PROTOCOL,
    Abandoned,
    Accepted,
    Answered,
    Asked,
    Channel,
    Failed,
    Hello,
    Refused,
    Told,
    greeting,
    raised,
    too_large,
)

M = TypeVar("M", bound=Message)


async def connect(
    address: str, *, limit: int = MAX_MESSAGE_BYTES, seconds: float = CONNECT_SECONDS
) -> Remote:
    """Connect to the actors served at an address.

    Args:
        address: "unix:/path" or "tcp:host:port".
        limit: largest answer accepted, in bytes.
        seconds: for connecting and the greeting together.

    Raises:
        ActorDead: nobody listens there.
        MessageError: whoever listens does not speak our protocol.
        DeadlineExceeded: no greeting within `seconds`.
        ConfigError: the address is malformed.
    """
    with deadline(f"connecting to {address}", seconds):
        try:
            stream = await dial(address)
        except (OSError, ExceptionGroup) as error:
            raise ActorDead(
                f"nobody listens at {address}: is the process there running?"
            ) from error
        return await _attached(stream, address, limit)
    raise AssertionError("unreachable")


async def attach(
    stream: trio.abc.Stream,
    name: str,
    *,
    limit: int = MAX_MESSAGE_BYTES,
    seconds: float = CONNECT_SECONDS,
) -> Remote:
    """As `connect`, over a stream that is open already; closes it if that fails.

    Args:
        stream: with the serving side at its other end.
        name: of that side, for errors.
        limit: largest answer accepted, in bytes.
        seconds: for the greeting.
    """
    with deadline(f"the greeting of {name}", seconds):
        return await _attached(stream, name, limit)
    raise AssertionError("unreachable")


async def _attached(stream: trio.abc.Stream, name: str, limit: int) -> Remote:
    channel = Channel(stream, limit)
    try:
        return Remote(name, channel, await _greet(name, channel))
    except BaseException:
        await channel.close()
        raise


async def _greet(address: str, channel: Channel) -> int:
    """Exchange greetings; give the largest payload the other side accepts."""
    try:
        channel.put(Hello(PROTOCOL, channel.limit))
        await channel.flush()
        frame = await channel.receive()
    except LOST as error:
        raise ActorDead(f"{address} broke the connection off without a greeting") from error
    if frame is None:
        raise ActorDead(f"{address} closed the connection without a greeting")
    return greeting(frame).limit


class Remote:
    """A connection to the actors of another process. Made by `connect`.

    Run `run` in a nursery, or as the `background` of an actor; until then nothing
    is sent. A lost connection is not restored: connect again.
    """

    def __init__(self, address: str, channel: Channel, peer_limit: int) -> None:
        self.address: Final = address
        self._channel = channel
        self._peer_limit = peer_limit
        self._numbers = count(1)
        self._pending: dict[int, Reply] = {}
        self._lost = ""

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as this side knows."""
        return not self._lost

    def ref(self, name: str) -> RemoteRef:
        """Give the address of the actor served under that name. It is not looked up yet."""
        return RemoteRef(name, self)

    async def run(self) -> None:
        """Carry messages until the connection is lost or closed; then fail what waits."""
        reason = "the other side closed it"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._channel.write)
                await self._read()
                nursery.cancel_scope.cancel()
        except* LOST:
            reason = "it broke"
        except* MessageError as group:
            reason = str(sole(group))
        finally:
            self._end(reason)
            await self._channel.close()

    async def close(self) -> None:
        """Close the connection; `run` returns, and what waits for an answer fails."""
        self._end("it was closed on this side")
        await self._channel.close()

    async def request(self, frame: type[Asked | Told], name: str, payload: bytes) -> bytes:
        """Send, and wait for what the other side says to it (see `RemoteRef`)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.require(payload)
        if self._channel.full:
            await self._channel.room()
            self.require(payload)
        number = next(self._numbers)
        reply = self._pending[number] = Reply()
        reply.on_abandon(partial(self._abandon, number))
        try:
            self._channel.put(frame(number, name, payload))
            return await reply.wait()
        finally:
            del self._pending[number]

    def send(self, name: str, payload: bytes, *, urgent: bool = False) -> None:
        """Send, and never hear of it again; what is `urgent` goes even if it is too much."""
        self.require(payload)
        if self._channel.full and not urgent:
            raise MailboxFull(
                f"the connection to {self.address} has more to send than is read there; "
                "use `tell`, which waits"
            )
        self._channel.put(Told(0, name, payload))

    def require(self, payload: bytes) -> None:
        """Raise `ActorDead` or `MessageTooLarge` where sending is in vain."""
        if self._lost:
            raise self._dead()
        if len(payload) > self._peer_limit:
            raise too_large(payload, self._peer_limit)

    async def _read(self) -> None:
        while (frame := await self._channel.receive()) is not None:
            match frame:
                case Answered(id=number, payload=payload):
                    if reply := self._pending.get(number):
                        reply.deliver(payload)
                case Accepted(id=number):
                    if reply := self._pending.get(number):
                        reply.deliver(b"")
                case Failed(id=number):
                    if reply := self._pending.get(number):
                        reply.refuse(raised(frame))
                case Refused(text=text):
                    raise MessageError(f"the other side refused {text}")
                case _:
                    raise MessageError(f"it sent a {type(frame).__name__} frame, as if we served")

    def _abandon(self, number: int) -> None:
        if not self._lost:
            self._channel.put(Abandoned(number))

    def _end(self, reason: str) -> None:
        self._lost = self._lost or reason
        for reply in list(self._pending.values()):
            reply.refuse(self._dead())

    def _dead(self) -> ActorDead:
        return ActorDead(f"the connection to {self.address} is lost: {self._lost}")


class RemoteRef:
    """The address of an actor in another process; `tell` and `ask` as `ActorRef` has them."""

    __slots__ = ("_remote", "name")

    def __init__(self, name: str, remote: Remote) -> None:
        self.name = name
        """Under which it is served."""
        self._remote = remote

    def __repr__(self) -> str:
        return f"<RemoteRef {self.name} at {self._remote.address}{'' if self.alive else ' (lost)'}>"

    @property
    def alive(self) -> bool:
        """Whether the connection stands; of the actor itself a message tells."""
        return self._remote.alive

    async def tell(self, message: Message) -> None:
        """Send without an answer; returns when it lies in the mailbox.

        Cancelled while it waits, the message may have arrived or not.

        Raises:
            ActorDead: the actor has stopped, was never served, or the connection is lost.
            MessageTooLarge: the other side does not accept so much.
        """
        await self._remote.request(Told, self.name, encode(message))

    def tell_nowait(self, message: Message) -> None:
        """Send without an answer, at once, and without learning whether it arrived.

        Raises:
            MailboxFull: the connection has more to send than the other side reads.
            ActorDead: the connection is lost.
            MessageTooLarge: the other side does not accept so much.
        """
        self._remote.send(self.name, encode(message))

    async def ask(
        self,
        message: Message,
        reply: type[M],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (it becomes the error that names the actor)
    ) -> M:
        """Send, and wait for an answer of class `reply`. Errors and `timeout` as in `ActorRef`."""
        if timeout is None:
            return await self._ask(message, reply)
        with deadline(f"ask {self.name} at {self._remote.address}", timeout):
            return await self._ask(message, reply)

    async def _ask(self, message: Message, answer: type[M]) -> M:
        payload = await self._remote.request(Asked, self.name, encode(message))
        return cast(Decoder[M], decoder(answer)).decode(payload)

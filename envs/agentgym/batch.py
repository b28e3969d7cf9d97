"""Many calls in one request: our own wire beside AgentGym's, at `/rollwave/v1/step`.

A `Batch` is MessagePack, and is answered by an `Answers` with as many entries in the same
order. A client with thousands of sessions needs a few connections, and its cost a step
does not contain a request.

A batch may be sent again when its answer was lost: steps are numbered within their
episode, so the last one is answered again without acting; a reset begins the same task
with the same seed; closing twice is closing. Only an `Open` that was lost leaves a
session behind, which its lease ends.

Invariant: one bad call is one `Failed`; the others of its batch are answered.

Not here: sessions (`sessions`), and the client's side (`batch_client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from ...engine.codec import Decoder, Message, encode
from ...engine.errors import MessageError
from .requests import Malformed
from .sessions import Refused, Served, Session, Sessions

PATH: Final = "/rollwave/v1/step"
MEDIA: Final = "application/msgpack"
MAX_CALLS: Final = 4096
"""In one batch."""
MAX_BYTES: Final = 16 << 20
_BREATH: Final = 64
"""Calls after which others get their turn on the loop."""


class Open(Message, frozen=True):
    """Make a session; answered by `Opened`."""

    env: str
    """The name under which the world is served; "" where there is only one."""


class Reset(Message, frozen=True):
    """Start a task; answered by `Said`."""

    session: int
    index: int
    seed: int = 0


class Step(Message, frozen=True):
    """Act; answered by `Said`."""

    session: int
    number: int
    """Of the step in its episode, from 0."""
    action: str


class Ask(Message, frozen=True):
    """Ask for the expert's next action and the legal ones; answered by `Told`."""

    session: int
    expert: bool


class About(Message, frozen=True):
    """Ask what the world tells programs about its task; answered by `Facts`."""

    session: int


class Close(Message, frozen=True):
    """End a session; answered by `Closed`, also where there is none."""

    session: int


Call = Open | Reset | Step | Ask | About | Close


class Opened(Message, frozen=True):
    """A session is ready."""

    session: int


class Said(Message, frozen=True):
    """What the world answered."""

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False


class Told(Message, frozen=True):
    """What was asked for: the expert's action (None: it has none), or the legal actions."""

    expert: str | None
    actions: tuple[str, ...] = ()


class Facts(Message, frozen=True):
    """What it tells."""

    facts: dict[str, str | int]


class Closed(Message, frozen=True):
    """The session is gone."""


class Failed(Message, frozen=True):
    """A call that was refused, with the kind of `Refused`."""

    kind: str
    text: str


Reply = Opened | Said | Told | Facts | Closed | Failed


class Batch(Message, frozen=True):
    """A request. A session occurs once in it."""

    calls: tuple[Call, ...]


class Answers(Message, frozen=True):
    """The answer to a `Batch`, entry by entry."""

    replies: tuple[Reply, ...]


_BATCH: Final = Decoder(Batch, limit=MAX_BYTES)


class Batches:
    """Answers batches from a server's sessions."""

    def __init__(self, sessions: Sessions, served: Sequence[Served]) -> None:
        self._sessions = sessions
        self._served = {one.dialect.name: one for one in served}
        if len(served) == 1:
            self._served[""] = served[0]

    async def answer(self, body: bytes) -> bytes:
        """Serve one batch.

        Raises:
            Malformed: the bytes are no batch, or one too large.
        """
        try:
            calls = _BATCH.decode(body).calls
        except (MessageError, RecursionError) as error:
            raise Malformed(str(error)) from None
        if len(calls) > MAX_CALLS:
            raise Malformed(f"a batch has at most {MAX_CALLS} calls, not {len(calls)}")
        if len({call.session for call in calls if not isinstance(call, Open)}) != sum(
            not isinstance(call, Open) for call in calls
        ):
            raise Malformed("a session occurs more than once in a batch")
        replies: list[Reply] = [Failed("broken", "")] * len(calls)

        async def serve(place: int, call: Call) -> None:
            replies[place] = await self._one(call)

        async with trio.open_nursery() as nursery:
            for place, call in enumerate(calls):
                if self._quick(call):
                    await serve(place, call)
                else:
                    nursery.start_soon(serve, place, call)
                if place % _BREATH == _BREATH - 1:
                    await trio.lowlevel.checkpoint()
        try:
            return encode(Answers(tuple(replies)))
        except MessageError as error:  # a world said half a character
            broken: Reply = Failed("broken", str(error))
            return encode(Answers(tuple(map(partial(_sendable, broken), replies))))

    def _quick(self, call: Call) -> bool:
        """Whether a call is over at once: its world is on the loop, and nobody is in it."""
        if isinstance(call, Open):
            served = self._served.get(call.env)
            return served is None or served.inline
        try:
            session = self._sessions.find(call.session)
        except Refused:
            return True
        return session.served.inline and not session.lock.locked()

    async def _one(self, call: Call) -> Reply:
        sessions = self._sessions
        try:
            if isinstance(call, Open):
                return Opened((await sessions.open(self._world(call.env))).id)
            if isinstance(call, Close):
                await sessions.close(call.session)
                return Closed()
            session = sessions.find(call.session)
            async with sessions.hold(session):
                return await self._held(session, call)
        except Refused as refusal:
            sessions.counts.refused[refusal.kind] += 1
            return Failed(refusal.kind, str(refusal))

    def _world(self, name: str) -> Served:
        served = self._served.get(name)
        if served is None:
            known = ", ".join(name for name in self._served if name)
            raise Refused("world", f"no world {name[:60]!r} here; there are: {known}")
        return served

    async def _held(self, session: Session, call: Reset | Step | Ask | About) -> Reply:
        if isinstance(call, Step):
            await self._sessions.step(session, call.action, call.number)
            return Said(
                session.observation,
                session.reward,
                session.terminated,
                session.truncated,
                session.success,
            )
        if isinstance(call, Reset):
            await self._sessions.reset(session, call.index, call.seed)
            return Said(session.observation)
        if isinstance(call, About):
            return Facts(dict(await self._sessions.about(session)))
        if call.expert:
            return Told(await self._sessions.expert(session))
        return Told(None, tuple(await self._sessions.available_actions(session)))


def _sendable(broken: Reply, reply: Reply) -> Reply:
    try:
        encode(reply)
    except MessageError:
        return broken
    return reply

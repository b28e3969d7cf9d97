"""Drives AgentGym's servers as environments: asynchronous, on trio, without a thread.

    async with AgentGymHost("http://127.0.0.1:36001", "textcraft") as host:
        engine.use(remote_spec(…), host)

Underneath is httpx's API (any `httpx.AsyncBaseTransport` can be put in); by default over
our own transport, whose cost does not grow with the number of connections.

Invariants:

* a request is sent again only if that does no harm, or if it cannot have arrived. A step
  whose answer was lost is never sent again: it is a loss (`EnvironmentLost`), behind which
  the session goes on only in another one, by replay, if the host was told that it may;
* one call at a time in a session, and on the servers that bear no more, in all of them;
* on servers without `/close` ids are used again; one in which a call may still run is not.

Not here: what is asked and how answers are read (`conversation`); the batched wire of our
own server (`batch_client`).
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import trio

from ...engine.errors import ConfigError, DeadlineExceeded, EnvironmentFault, EnvironmentLost
from ...engine.http_transport import transport_for
from ..base import StepResult, Task
from ..hosting import Host, Hosted
from ..rebuilding import Rebuilding
from .conversation import Call, Talk, read
from .dialects import DIALECTS, Dialect

T = TypeVar("T")

ANSWER_SECONDS: Final = 300.0
"""For an answer; AgentGym's own."""
TRIES: Final = 4
PAUSE_SECONDS: Final = 0.1
"""Before the second try; doubled before each further one."""
CLOSING_SECONDS: Final = 10.0

_JSON: Final = {"content-type": "application/json"}
_NEVER_ARRIVED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def dialect_named(dialect: str | Dialect) -> Dialect:
    """The dialect of that name.

    Raises:
        ConfigError: there is none; the text lists those there are.
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect not in DIALECTS:
        raise ConfigError(f"no dialect {dialect!r} of AgentGym; there are: {', '.join(DIALECTS)}")
    return DIALECTS[dialect]


def address(url: str) -> tuple[str, dict[str, str]]:
    """A server's address without credentials, and the headers that carry them.

    Raises:
        ConfigError: it is no http or https URL.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is no address of a server: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url!r} is no address of a server: write http://host:port")
    headers = dict(_JSON)
    if parsed.password or parsed.username:
        pair = f"{parsed.username}:{parsed.password}".encode()
        headers["authorization"] = "Basic " + base64.b64encode(pair).decode()
    return str(parsed.copy_with(username=None, password=None)).rstrip("/"), headers


class AgentGymHost(Host):
    """Opens sessions on one server."""

    def __init__(
        self,
        url: str,
        dialect: str | Dialect,
        *,
        token: str = "",
        seconds: float = ANSWER_SECONDS,
        connections: int | None = None,
        rebuild: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: the server's, with the path of the world where it has one (…/maze);
                `http://name:password@host` authenticates.
            dialect: how it spells its calls.
            token: shown to a server of ours that asks for one.
            seconds: for an answer.
            connections: at most; None for as many as there are sessions.
            rebuild: a session that was lost goes on in another one, by replaying its actions:
                for worlds that answer the same actions alike.
            transport: in place of our own.

        Raises:
            ConfigError: the address or the dialect is none.
        """
        self.dialect: Final = dialect_named(dialect)
        self.url, headers = address(url)
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            transport=transport or transport_for(httpx.URL(self.url), max_connections=connections),
            headers=headers,
            timeout=seconds,
            trust_env=False,
        )
        self._urls: dict[str, httpx.URL] = {}
        self._rebuild = rebuild
        self._free: deque[int] = deque()
        self._abandoned: deque[int] = deque()
        self._turn = trio.Lock() if self.dialect.whole_server else None
        self._room = trio.Semaphore(self.dialect.capacity) if self.dialect.capacity else None

    async def open(self) -> Hosted:
        """Make a session, or take up one that was left.

        Raises:
            EnvironmentFault: the server refuses, or is not there.
        """
        if not self._rebuild:
            return await self._open()
        session = Rebuilding(self._open, replay=True)
        await session.open()
        return session

    async def _open(self) -> Hosted:
        if self._room is not None:
            await self._room.acquire()
        try:
            await self.tidy()
            session = _Remote(
                self, Talk(self.dialect, self._free.popleft() if self._free else None)
            )
            if session.talk.id is None:
                await self.drive(session.talk.open())
        except BaseException:
            if self._room is not None:
                self._room.release()
            raise
        return session

    async def drive(self, flow: Generator[Call, Any, T]) -> T:
        """Carry an operation of a `Talk` out."""
        try:
            call = next(flow)
            while True:
                call = flow.send(await self._ask(call))
        except StopIteration as end:
            value: T = end.value
            return value

    async def _ask(self, call: Call) -> Any:
        if self._turn is None:
            status, body = await self._send(call)
        else:
            async with self._turn:
                status, body = await self._send(call)
        return read(self.dialect, call, status, body)

    async def _send(self, call: Call) -> tuple[int, bytes]:
        """Send a request, again where that is safe."""
        pause = PAUSE_SECONDS
        where = self._urls.get(call.path) if call.post else httpx.URL(self.url + call.path)
        if where is None:  # reading an address takes a tenth of a request
            where = self._urls[call.path] = httpx.URL(self.url + call.path)
        for left in range(TRIES - 1, -1, -1):
            try:
                response = await self._client.request(
                    "POST" if call.post else "GET",
                    where,
                    content=call.body,
                    extensions={"repeatable": call.repeatable},
                )
            except httpx.TransportError as error:
                arrived = not isinstance(error, _NEVER_ARRIVED)
                if not left or (arrived and not call.repeatable):
                    raise self._failure(call, error, arrived) from error
            else:
                if response.status_code != 503 or not left or not call.repeatable:
                    return response.status_code, response.content
            await trio.sleep(pause)
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _failure(self, call: Call, error: httpx.TransportError, arrived: bool) -> Exception:
        where = f"{self.dialect.name}: {self.url}{call.path.partition('?')[0]}"
        if isinstance(error, httpx.TimeoutException):
            return DeadlineExceeded(f"{where} was not answered: {error}")
        if not arrived:
            return EnvironmentFault(f"{where}: {error}; is the server running?")
        return EnvironmentLost(f"the answer of {where} was lost: {error}")

    def leave(self, id: int | None, *, clean: bool) -> None:
        """Take the id of a session back that is over.

        Args:
            id: None if it had none.
            clean: no call can still run in it.
        """
        if self._room is not None:
            self._room.release()
        if id is None:
            return
        if self.dialect.closes:
            self._abandoned.append(id)
        elif clean or self.dialect.whole_server:
            self._free.append(id)

    async def tidy(self) -> None:
        """Tell the server to end the sessions that were left, if it has a `/close`."""
        while self._abandoned:
            id = self._abandoned.popleft()
            try:
                await self._end(id)
            except trio.Cancelled:
                self._abandoned.append(id)  # for whoever comes next: closing twice is closing
                raise

    async def _end(self, id: int) -> None:
        """Tell the server to end a session, as far as it listens."""
        with suppress(EnvironmentFault, DeadlineExceeded):  # it is gone, or the server is
            await self.drive(Talk(self.dialect, id).close())

    async def aclose(self) -> None:
        """End what was left open, and close the connections."""
        with trio.move_on_after(CLOSING_SECONDS, shield=True):
            await self.tidy()
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Remote(Hosted):
    """One session."""

    def __init__(self, host: AgentGymHost, talk: Talk) -> None:
        self.talk = talk
        self._host = host
        self._busy = False
        self._closed = False

    async def _drive(self, flow: Generator[Call, Any, T]) -> T:
        if self._closed:
            raise EnvironmentFault("this session is closed: open another")
        self._busy = True  # stays so where the answer was lost: the call may still run
        try:
            result = await self._host.drive(flow)
        except (ConfigError, EnvironmentFault) as error:
            self._busy = isinstance(error, EnvironmentLost)
            raise
        self._busy = False
        return result

    async def reset(self, task: Task, seed: int) -> str:
        return await self._drive(self.talk.reset(task.index))

    async def step(self, action: str) -> StepResult:
        return await self._drive(self.talk.step(action))

    async def expert(self) -> str | None:
        return None

    async def available_actions(self) -> Sequence[str]:
        return await self._drive(self.talk.available())

    async def about(self) -> Mapping[str, str | int]:
        return self.talk.facts

    async def close(self) -> None:
        self.abandon()
        await self._host.tidy()

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._host.leave(self.talk.id, clean=not self._busy)

"""Drives a server of ours over its batched wire: thousands of sessions, a few connections.

    async with open_batches("http://127.0.0.1:8000", "textcraft") as host:
        engine.use(remote_spec(…), host)

Calls that wait while a request is on its way travel together in the next one, so the more
sessions there are, the less a step costs.

Invariants:

* each call is answered once, or its caller is told why not; a caller that gives up harms
  nobody else's;
* a batch whose answer was lost is sent again: its steps are numbered (`batch`);
* a session that the server lost goes on in another one, by replay, if the world is
  deterministic.

Not here: AgentGym's own wire (`client`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import httpx
import outcome
import trio

from ...engine.codec import Decoder, encode
from ...engine.errors import (
    ConfigError,
    DeadlineExceeded,
    EnvironmentFault,
    EnvironmentLost,
    MessageError,
)
from ...engine.http_transport import transport_for
from ..base import StepResult, Task
from ..hosting import Host, Hosted
from ..rebuilding import Rebuilding
from .batch import (
    MEDIA,
    PATH,
    About,
    Answers,
    Ask,
    Batch,
    Call,
    Close,
    Closed,
    Facts,
    Failed,
    Open,
    Opened,
    Reply,
    Reset,
    Said,
    Step,
    Told,
)
from .client import address
from .conversation import sendable

R = TypeVar("R", Opened, Said, Told, Facts, Closed)

CALLS: Final = 1024
"""In one batch at most."""
TRIES: Final = 4
PAUSE_SECONDS: Final = 0.1
_ANSWERS: Final = Decoder(Answers)
_LOST: Final = frozenset({"unknown", "deleted"})


class _Waiting:
    """One call on its way, and the task that waits for its reply."""

    __slots__ = ("call", "given_up", "task")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.task: trio.lowlevel.Task | None = None
        self.given_up = False


class BatchHost(Host):
    """Opens sessions on a server of ours. Made by `open_batches`."""

    def __init__(self, client: httpx.AsyncClient, url: str, env: str, *, rebuild: bool) -> None:
        self._client = client
        self._url = url
        self._env = env
        self._rebuild = rebuild
        self._queue: deque[_Waiting] = deque()
        self._idle: deque[trio.lowlevel.Task] = deque()
        self.requests = 0
        """Sent so far, without repetitions."""

    async def open(self) -> Hosted:
        """Make a session.

        Raises:
            ConfigError: the server has no such world.
            EnvironmentFault: it refuses, or is not there.
        """
        if not self._rebuild:
            return await self._open()
        session = Rebuilding(self._open, replay=True)
        await session.open()
        return session

    async def _open(self) -> Hosted:
        return _Remote(self, (await self.ask(Open(self._env), Opened)).session)

    async def ask(self, call: Call, kind: type[R]) -> R:
        """Send one call with the next batch.

        Raises:
            EnvironmentLost: the session is gone.
            EnvironmentFault, ConfigError: the server refuses.
            DeadlineExceeded: it does not answer.
        """
        waiting = _Waiting(call)
        self.send(waiting)
        waiting.task = trio.lowlevel.current_task()

        def give_up(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            waiting.task, waiting.given_up = None, True
            return trio.lowlevel.Abort.SUCCEEDED

        reply = await trio.lowlevel.wait_task_rescheduled(give_up)
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, Failed):
            raise _failure(reply)
        raise EnvironmentFault(f"the server answered {call!r} with {type(reply).__name__}")

    def send(self, waiting: _Waiting) -> None:
        """Queue a call; nobody has to wait for it."""
        self._queue.append(waiting)
        if self._idle:
            trio.lowlevel.reschedule(self._idle.popleft())

    def leave(self, session: int) -> None:
        """End a session without waiting."""
        self.send(_Waiting(Close(session)))

    async def pump(self) -> None:
        """Send batch after batch, until cancelled. Each connection has one."""
        while True:
            while not self._queue:
                task = trio.lowlevel.current_task()
                self._idle.append(task)

                def give_up(
                    _: trio.lowlevel.RaiseCancelT, task: trio.lowlevel.Task = task
                ) -> trio.lowlevel.Abort:
                    self._idle.remove(task)
                    return trio.lowlevel.Abort.SUCCEEDED

                await trio.lowlevel.wait_task_rescheduled(give_up)
            # Who was woken together with this task may have something to add.
            await trio.lowlevel.checkpoint()
            taken = [self._queue.popleft() for _ in range(min(CALLS, len(self._queue)))]
            if batch := [waiting for waiting in taken if not waiting.given_up]:
                await self._exchange(batch)

    async def _exchange(self, batch: list[_Waiting]) -> None:
        self.requests += 1
        calls = [waiting.call for waiting in batch]
        failure: Exception | None = None
        replies: Sequence[Reply | None] = [None] * len(batch)
        try:
            replies = await self._answers(calls)
        except (EnvironmentFault, ConfigError, DeadlineExceeded) as error:
            failure = error
        for waiting, reply in zip(batch, replies, strict=True):
            task, waiting.task = waiting.task, None
            if task is not None:
                trio.lowlevel.reschedule(
                    task,
                    outcome.Error(_again(failure)) if failure else outcome.Value(reply),
                )
            elif isinstance(reply, Opened):  # whoever wanted it has gone
                self.leave(reply.session)

    async def _answers(self, calls: Sequence[Call]) -> Sequence[Reply]:
        body = encode(Batch(tuple(calls)))
        pause = PAUSE_SECONDS
        for left in range(TRIES - 1, -1, -1):
            try:
                response = await self._client.post(
                    self._url, content=body, extensions={"repeatable": True}
                )
            except httpx.TransportError as error:
                if not left:
                    raise _unreached(self._url, error) from error
            else:
                if response.status_code != 503 or not left:
                    return _read(self._url, response, len(calls))
            await trio.sleep(pause)
            pause *= 2
        raise AssertionError("the last try returns or raises")


@asynccontextmanager
async def open_batches(
    url: str,
    env: str = "",
    *,
    token: str = "",
    connections: int = 4,
    seconds: float = 300.0,
    rebuild: bool = True,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[BatchHost]:
    """Open a host for the sessions of one world on a server of ours.

    Args:
        url: the server's address.
        env: the name under which it serves the world; "" where it serves one only.
        token: shown to it, if it asks for one.
        connections: batches on their way at a time.
        seconds: for an answer.
        rebuild: sessions that were lost go on by replay; False for a world that answers the
            same actions differently.
        transport: in place of our own.

    Raises:
        ConfigError: `connections` is below 1, or the address is none.
    """
    if connections < 1:
        raise ConfigError(f"connections must be at least 1, not {connections}")
    base, headers = address(url)
    headers |= {"content-type": MEDIA}
    if token:
        headers["authorization"] = f"Bearer {token}"
    async with httpx.AsyncClient(
        transport=transport or transport_for(httpx.URL(base), max_connections=connections),
        headers=headers,
        timeout=seconds,
        trust_env=False,
    ) as client:
        host = BatchHost(client, base + PATH, env, rebuild=rebuild)
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(host.pump)
            try:
                yield host
            finally:
                nursery.cancel_scope.cancel()


class _Remote(Hosted):
    """One session."""

    def __init__(self, host: BatchHost, id: int) -> None:
        self._host = host
        self._id = id
        self._steps = 0
        self._closed = False

    def _check(self) -> None:
        if self._closed:
            raise EnvironmentFault("this session is closed: open another")

    async def reset(self, task: Task, seed: int) -> str:
        self._check()
        said = await self._host.ask(Reset(self._id, task.index, seed), Said)
        self._steps = 0
        return said.observation

    async def step(self, action: str) -> StepResult:
        self._check()
        try:
            said = await self._host.ask(Step(self._id, self._steps, sendable(action)), Said)
        finally:
            self._steps += 1  # a caller that gave up does not get this answer for its next step
        return StepResult(
            said.observation, said.reward, said.terminated, said.truncated, said.success
        )

    async def expert(self) -> str | None:
        self._check()
        return (await self._host.ask(Ask(self._id, True), Told)).expert

    async def available_actions(self) -> Sequence[str]:
        self._check()
        return (await self._host.ask(Ask(self._id, False), Told)).actions

    async def about(self) -> Mapping[str, str | int]:
        self._check()
        return (await self._host.ask(About(self._id), Facts)).facts

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._host.ask(Close(self._id), Closed)

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._host.leave(self._id)


def _failure(reply: Failed) -> Exception:
    if reply.kind in ("task", "world"):
        return ConfigError(reply.text)
    return (EnvironmentLost if reply.kind in _LOST else EnvironmentFault)(reply.text)


def _again(error: Exception) -> Exception:
    """The same error for another task: one object must not be raised in two at once."""
    return type(error)(str(error))


def _unreached(url: str, error: httpx.TransportError) -> Exception:
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{url} was not answered: {error}")
    return EnvironmentLost(f"{url} was not answered: {error}; is the server running?")


def _read(url: str, response: httpx.Response, calls: int) -> Sequence[Reply]:
    if response.status_code != 200:
        text = f"{url} answered {response.status_code}: {response.text[:200]}"
        raise (
            ConfigError(text) if response.status_code in (401, 403, 404) else EnvironmentFault(text)
        )
    try:
        replies = _ANSWERS.decode(response.content).replies
    except MessageError as error:
        raise EnvironmentFault(f"{url} answered no batch: {error}") from None
    if len(replies) != calls:
        raise EnvironmentFault(f"{url} answered {len(replies)} of {calls} calls")
    return replies

"""The sessions that a server holds for its clients: opened, leased, serialised, closed.

Invariants:

* each world that was opened is closed once, whatever became of its client: by a call,
  by its lease (a session nobody uses for `lease_seconds` ends), or when the server does;
* calls on one session happen one after the other, in the order they came; on different
  sessions they share nothing;
* an episode that is over answers nothing more until it is reset;
* a step is numbered, and repeating the last one gives its answer again without acting.

Not here: how a call is spelled (`dialects`) and who may call (`server`).
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from ...engine.errors import ConfigError, RollwaveError, classify
from ..answers import require_actions, require_facts, require_result, require_text
from ..base import EnvSpec, StepResult, Task
from ..hosting import Host, Hosted, InlineHost, ThreadHost
from .dialects import Dialect, dialect_for

T = TypeVar("T")

MAX_WAITING: Final = 16
"""Calls on one session that wait behind the one in progress; more are refused."""
_REMEMBERED: Final = 10_000
"""Ids of ended sessions that are told apart from ids that never were."""
_ID_BITS: Final = 53
"""Of an unguessable id: what every JSON reader takes for an exact number."""


class Refused(RollwaveError):
    """A call that cannot be served. The text is for the client; `kind` is for programs."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind: Final = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server grants."""

    sessions: int = 4096
    lease_seconds: float = 1800.0
    """A session that nobody called for so long is closed."""
    call_seconds: float = 120.0
    """Deadline of one call in a world that does not run on the loop."""
    random_ids: bool = False
    """Ids that cannot be guessed, in place of 0, 1, 2, …"""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the key."""
        if self.sessions < 1:
            raise ConfigError(f"sessions must be at least 1, not {self.sessions}")
        for key in ("lease_seconds", "call_seconds"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key} must be above 0, not {getattr(self, key)}")


@dataclass(frozen=True, eq=False)
class Served:
    """One world on offer."""

    spec: EnvSpec
    dialect: Dialect
    host: Host
    inline: bool
    """Its calls take no time worth a deadline, and none could interrupt them."""
    tasks: int
    """Tasks are numbered from 0 to this, exclusive."""
    score_scale: float

    @classmethod
    def of(cls, spec: EnvSpec, threads: trio.CapacityLimiter, host: Host | None = None) -> Served:
        """Offer a world in the dialect that AgentGym has for it, or in the plain one.

        Raises:
            ConfigError: it is on a server already.
            MissingDependency: the machine lacks what it needs.
        """
        if host is None and spec.host is not None:
            raise ConfigError(f"{spec.id} is served already: point its clients there")
        if spec.needs is not None:
            spec.needs()
        dialect = dialect_for(spec.id)
        inline = spec.cost == "inline" and host is None
        if host is None:
            host = InlineHost(spec.make) if inline else ThreadHost(spec.make, threads)
        tasks = 1 + max((max(part) for part in spec.splits.values() if part), default=-1)
        best = spec.reward_range[1]
        scale = dialect.full_score / best if dialect.full_score != 1.0 and best > 0 else 1.0
        return cls(spec, dialect, host, inline, tasks, scale)


class Session:
    """One client's world, and the last that was seen of it."""

    __slots__ = (
        *("begun", "done", "facts", "hosted", "id", "index", "lock", "observation", "reward"),
        *("score", "served", "steps", "success", "terminated", "touched", "truncated"),
    )

    def __init__(self, id: int, served: Served, hosted: Hosted) -> None:
        self.id = id
        self.served = served
        self.hosted = hosted
        self.lock = trio.Lock()
        self.touched = trio.current_time()
        self.begun = False
        self._begin(-1, "")

    def _begin(self, index: int, observation: str) -> None:
        self.index = index
        self.facts: Mapping[str, str | int] = {}
        self.observation = observation
        self.reward = 0.0
        self.score = 0.0
        self.steps = 0
        self.done = self.terminated = self.truncated = self.success = False

    def _record(self, result: StepResult) -> None:
        self.observation = result.observation
        self.reward = result.reward
        self.score += result.reward
        self.steps += 1
        self.terminated, self.truncated = result.terminated, result.truncated
        self.done, self.success = result.done, result.success


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    opened: Counter[str] = field(default_factory=Counter)
    """By environment id."""
    ended: Counter[str] = field(default_factory=Counter)
    """By reason: closed, expired, late, broken, shutdown."""
    steps: Counter[str] = field(default_factory=Counter)
    """By environment id."""
    refused: Counter[str] = field(default_factory=Counter)
    """By kind."""


class Sessions:
    """All sessions of one server."""

    def __init__(self, limits: Limits) -> None:
        self.limits: Final = limits
        self.counts: Final = Counts()
        self.draining = False
        """Whether the server is about to end: nothing new is opened."""
        self._live: dict[int, Session] = {}
        self._opening = 0
        self._next = 0
        self._gone: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._live)

    async def open(self, served: Served) -> Session:
        """Make a world.

        Raises:
            Refused: there are too many, or the world cannot be made.
        """
        if self.draining:
            raise Refused("overloaded", "The server is about to end.")
        if len(self._live) + self._opening >= self.limits.sessions:
            raise Refused(
                "overloaded",
                f"The server has its {self.limits.sessions} sessions already; close some first.",
            )
        self._opening += 1
        try:
            hosted = await self._called(served, served.host.open)
        finally:
            self._opening -= 1
        session = Session(self._new_id(), served, hosted)
        self._live[session.id] = session
        self.counts.opened[served.spec.id] += 1
        return session

    def _new_id(self) -> int:
        if self.limits.random_ids:
            while (id := secrets.randbits(_ID_BITS)) in self._live or id in self._gone:
                pass
            return id
        self._next += 1
        return self._next - 1

    def find(self, id: int, served: Served | None = None) -> Session:
        """The live session of that id; in that world, where one is given.

        Raises:
            Refused: there is none (any more).
        """
        session = self._live.get(id)
        if session is None or (served is not None and session.served is not served):
            if id in self._gone:
                raise Refused("deleted", f"The task with environment {id} has been deleted.")
            raise Refused("unknown", f"The id {id} is not valid.")
        return session

    @asynccontextmanager
    async def hold(self, session: Session) -> AsyncIterator[None]:
        """Have the session to oneself, after all who asked before.

        Raises:
            Refused: too many wait for it, or it ended meanwhile.
        """
        await self._acquire(session)
        try:
            yield
        finally:
            self._release(session)

    async def _acquire(self, session: Session) -> None:
        lock = session.lock
        session.touched = trio.current_time()
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:
            if lock.statistics().tasks_waiting >= MAX_WAITING:
                raise Refused(
                    "busy", f"Too many calls wait for environment {session.id}."
                ) from None
            await lock.acquire()
        if self._live.get(session.id) is not session:
            lock.release()
            raise Refused("deleted", f"The task with environment {session.id} has been deleted.")

    def _release(self, session: Session) -> None:
        session.touched = trio.current_time()
        session.lock.release()

    async def reset(self, session: Session, index: int, seed: int = 0) -> None:
        """Start a task. For a caller that holds the session.

        Raises:
            Refused: there is no such task, or the world failed.
        """
        served = session.served
        task = Task(served.spec.id, index)
        text = await self._kept(session, lambda: _reset(session.hosted, task, seed))
        session.begun = True
        session._begin(index, text)
        if served.dialect.facts:
            session.facts = await self.about(session)

    async def step(self, session: Session, action: str, number: int = -1) -> None:
        """Act. For a caller that holds the session.

        Args:
            session: its fields are the answer.
            action: any text.
            number: of this step in its episode, from 0; the last one given again does not
                act again. -1 for a client that does not count.

        Raises:
            Refused: no episode is on, the number is out of turn, or the world failed.
        """
        if not session.begun:
            raise Refused("not_reset", f"The task with environment {session.id} was not reset yet.")
        if number >= 0 and number != session.steps:
            if number == session.steps - 1:
                return  # its answer was lost on the way
            raise Refused("out_of_turn", f"Step {number} does not follow step {session.steps - 1}.")
        if session.done:
            raise Refused("finished", f"The task with environment {session.id} has finished.")
        result = await self._kept(session, lambda: _step(session.hosted, action))
        session._record(result)
        self.counts.steps[session.served.spec.id] += 1

    async def available_actions(self, session: Session) -> Sequence[str]:
        """Legal actions now; none before the first task. For a caller that holds the session."""
        if not session.begun:
            return ()
        return await self._kept(session, lambda: _actions(session.hosted))

    async def expert(self, session: Session) -> str | None:
        """The expert's next action, if it has one. For a caller that holds the session."""
        return await self._kept(session, session.hosted.expert) if session.begun else None

    async def about(self, session: Session) -> Mapping[str, str | int]:
        """What the world tells about its task; nothing before the first. For a caller that holds
        the session."""
        if not session.begun:
            return {}
        return await self._kept(session, lambda: _about(session.hosted))

    async def close(self, id: int, served: Served | None = None) -> bool:
        """End a session; False where there is none of that id."""
        try:
            session = self.find(id, served)
            await self._acquire(session)
        except Refused:
            return False
        try:
            self._forget(session, "closed")
            await self._called(session.served, session.hosted.close)
        except Refused:
            session.hosted.abandon()
        finally:
            session.lock.release()
        return True

    def sweep(self) -> int:
        """End the sessions whose lease is over; returns how many."""
        oldest = trio.current_time() - self.limits.lease_seconds
        idle = [s for s in self._live.values() if s.touched < oldest and not s.lock.locked()]
        for session in idle:
            self._drop(session, "expired")
        return len(idle)

    def close_all(self) -> None:
        """End every session, without waiting."""
        for session in list(self._live.values()):
            self._drop(session, "shutdown")

    def _drop(self, session: Session, why: str) -> None:
        self._forget(session, why)
        session.hosted.abandon()

    def _forget(self, session: Session, why: str) -> None:
        self._live.pop(session.id, None)
        self.counts.ended[why] += 1
        self._gone[session.id] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    async def _kept(self, session: Session, call: Callable[[], Awaitable[T]]) -> T:
        """Call into a world; one that is late or lost takes its session with it."""
        try:
            return await self._called(session.served, call)
        except Refused as refusal:
            if refusal.kind == "late":
                self._drop(session, "late")
            elif refusal.kind == "broken":
                self._drop(session, "broken")
            raise
        except BaseException:
            self._drop(session, "broken")  # cancelled in the middle: nobody knows its state
            raise

    async def _called(self, served: Served, call: Callable[[], Awaitable[T]]) -> T:
        """Call into a world. This is the boundary where its exceptions become answers."""
        try:
            if served.inline:
                return await call()
            with trio.move_on_after(self.limits.call_seconds):
                return await call()
        except ConfigError as error:
            raise Refused("task", str(error)) from error
        except (Exception, SystemExit) as error:
            raise Refused("broken", classify(error)[1]) from error
        raise Refused(
            "late", f"The environment did not answer within {self.limits.call_seconds:g} s."
        )


async def _reset(hosted: Hosted, task: Task, seed: int) -> str:
    text = await hosted.reset(task, seed)
    require_text("reset", text)
    return text


async def _step(hosted: Hosted, action: str) -> StepResult:
    return require_result(await hosted.step(action))


async def _about(hosted: Hosted) -> Mapping[str, str | int]:
    return require_facts(await hosted.about())


async def _actions(hosted: Hosted) -> Sequence[str]:
    return require_actions(await hosted.available_actions())

"""The ways to a session: in this process, in a worker process, over AgentGym's wire, batched.

    with carried(resolve("maze-v1"), "http") as there:
        env = there.spec.make()         # synchronous; there is a server behind it

What stands on the other end is ours, started for the purpose: a worker process, or a
server on a free port of this machine. So one can see whether a world is the same world
wherever it runs (`laws.check(spec, over="http")`).

A session over a transport tells what the transport carries; for the rest a twin in this
process is asked (`Advised`): what its secrets are, and over AgentGym's wire, which has
neither experts nor (but for two worlds) legal actions, what could be tried next.

Invariant: what a session answers to an action always comes over the transport.

Not here: worlds on somebody else's server (`agentgym.remote`), the laws (`laws`).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import trio

from ..engine.child import ChildSpec
from ..engine.errors import ConfigError
from ..engine.system import ActorSystem
from .base import Environment, EnvSpec, StepResult, Task
from .hosting import Host
from .through import Loop, Through, beside
from .wrappers import Wrapper, wrap

HERE: Final = "in-process"

_MANY: Final = 500
"""Live sessions at which those that only a cycle of references keeps are looked for."""
_NO_EXCUSES: Final[Mapping[str, str]] = MappingProxyType({})


class Heard(Wrapper):
    """A session in this process, as it is heard and seen over a transport."""

    def hears(self, action: str) -> str:
        """An action as it arrives."""
        from .agentgym.conversation import sendable

        return sendable(action)

    def step(self, action: str) -> StepResult:
        return self.inner.step(self.hears(action))


class HeardByAgentGym(Heard):
    """Over AgentGym's wire: no seeds, some clients clean actions, and an end is only an end."""

    def __init__(self, inner: Environment, env: str) -> None:
        from .agentgym.dialects import dialect_for

        super().__init__(inner)
        self._dialect = dialect_for(env)

    def hears(self, action: str) -> str:
        from .agentgym.conversation import as_sent

        return as_sent(self._dialect, action)

    def reset(self, task: Task, seed: int) -> str:
        return self.inner.reset(task, 0)

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return StepResult(result.observation, result.reward, result.done, success=result.success)


class Advised(Through):
    """A session over a transport, with a twin in this process for what is not told there."""

    def __init__(self, loop: Loop, host: Host, make: Callable[[], Environment]) -> None:
        """`make` makes the twin, when it is first wanted."""
        super().__init__(loop, host)
        self._make = make
        self._twin: Environment | None = None
        self._start: tuple[Task, int] | None = None
        self._said: list[str] = []
        self._repeated = -1
        """Actions that the twin has followed; -1 before its reset."""

    def reset(self, task: Task, seed: int) -> str:
        self._start = None
        text = super().reset(task, seed)
        self._start = task, seed
        self._said.clear()
        self._repeated = -1
        return text

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self._said.append(action)
        return result

    def twin(self) -> Environment:
        """The twin, where this session is."""
        if self._twin is None:
            self._twin = self._make()
            weakref.finalize(self, _close, self._twin).atexit = False
        if self._repeated < 0 and self._start is not None:
            self._twin.reset(*self._start)
            self._repeated = 0
        for action in self._said[max(self._repeated, 0) :]:
            self._repeated += 1
            self._twin.step(action)
        return self._twin

    def secrets(self) -> Sequence[str]:
        return self.twin().secrets()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._twin is not None:
                self._twin.close()


def _close(twin: Environment) -> None:
    """Close a twin whose session nobody holds any more; again is allowed."""
    with suppress(Exception):  # nobody is there to be told
        twin.close()


class AdvisedByTwin(Advised):
    """Over a transport that knows no experts, and not always the legal actions."""

    def available_actions(self) -> Sequence[str]:
        return super().available_actions() or self.twin().available_actions()

    def expert(self) -> str | None:
        return super().expert() or self.twin().expert()


@dataclass(frozen=True, kw_only=True)
class Transport:
    """One way to a session."""

    name: str
    summary: str
    """One line for listings."""
    open: Callable[[EnvSpec], AbstractAsyncContextManager[Host]]
    """Starts the other end, and gives what opens sessions there."""
    session: type[Advised] = Advised
    heard: Callable[[EnvSpec], EnvSpec] = lambda spec: spec
    """The environment in this process, as it is heard and seen over this transport."""
    excuses: Callable[[EnvSpec], Mapping[str, str]] = lambda _: _NO_EXCUSES
    """Laws that its wire does not keep, by name, with the reason."""


@dataclass(frozen=True)
class Carried:
    """An environment over a transport."""

    spec: EnvSpec
    """Makes synchronous sessions there."""
    here: EnvSpec
    """The same in this process, as it should look over the transport."""
    excused: Mapping[str, str]
    """Laws that the wire does not keep, with the reason."""


@contextmanager
def carried(spec: EnvSpec, over: str) -> Iterator[Carried]:
    """Start the other end of a transport, and give the environment over it.

    Raises:
        ConfigError: there is no such transport, the environment is on a server already, or
            another process cannot import it.
        MissingDependency: a package is not installed.
    """
    transport = transport_named(over)
    if transport is None:
        yield Carried(spec, spec, _NO_EXCUSES)
        return
    if spec.host is not None:
        raise ConfigError(f"{spec.id} is on a server already: check it {HERE}")
    here = transport.heard(spec)
    live: weakref.WeakSet[Advised] = weakref.WeakSet()
    with beside(lambda: transport.open(spec)) as (loop, host):

        def make() -> Environment:
            if len(live) > _MANY:
                gc.collect()
            session = transport.session(loop, host, here.make)
            live.add(session)
            return session

        yield Carried(
            replace(spec, make=make, cost="worker", origin=None), here, transport.excuses(spec)
        )


def transport_named(name: str) -> Transport | None:
    """The transport of that name; None for this process, which needs none.

    Raises:
        ConfigError: there is none; the text lists those there are.
    """
    if name != HERE and name not in TRANSPORTS:
        raise ConfigError(f"no transport {name!r}; there are: {HERE}, {', '.join(TRANSPORTS)}")
    return TRANSPORTS.get(name)


# -- the other ends -----------------------------------------------------------------


@asynccontextmanager
async def _workers(spec: EnvSpec) -> AsyncIterator[Host]:
    from .worker.host import Owner, WorkerHost

    owner = Owner()
    limits = replace(spec.workers, workers=min(spec.workers.workers or _PROCESSES, _PROCESSES))
    host = WorkerHost(owner, spec, limits)
    async with ActorSystem() as system:
        await system.start(ChildSpec("workers", owner.actor))
        yield host


_PROCESSES: Final = 2
"""Worker processes at most: enough for sessions to be apart."""


@asynccontextmanager
async def _server(spec: EnvSpec) -> AsyncIterator[str]:
    """A server of ours on a free port of this machine; gives its address."""
    from .agentgym.listener import Listener, open_listeners
    from .agentgym.server import WireServer

    async with AsyncExitStack() as stack:
        hosts: dict[str, Host] = {}
        if spec.cost == "worker":
            hosts[spec.id] = await stack.enter_async_context(_workers(spec))
        listener = Listener(WireServer([spec], hosts=hosts))
        listeners = await open_listeners("127.0.0.1", 0)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(listener.run, listeners)
        stack.callback(nursery.cancel_scope.cancel)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


@asynccontextmanager
async def _agentgym(spec: EnvSpec) -> AsyncIterator[Host]:
    from .agentgym.client import AgentGymHost
    from .agentgym.dialects import dialect_for

    dialect = dialect_for(spec.id)
    async with _server(spec) as url, AgentGymHost(f"{url}/{dialect.name}", dialect) as host:
        yield host


@asynccontextmanager
async def _batched(spec: EnvSpec) -> AsyncIterator[Host]:
    from .agentgym.batch_client import open_batches

    async with _server(spec) as url, open_batches(url, rebuild=spec.deterministic) as host:
        yield host


def _heard_by_agentgym(spec: EnvSpec) -> EnvSpec:
    return wrap(spec, lambda env: HeardByAgentGym(env, spec.id))


def _excused_by_agentgym(spec: EnvSpec) -> Mapping[str, str]:
    from .agentgym.dialects import dialect_for

    if not dialect_for(spec.id).wraps:
        return _NO_EXCUSES
    return {"splits are disjoint": "on this wire task numbers count on from 0 after the last"}


_ALL: Final = (
    Transport(name="worker", summary="in a worker process", open=_workers),
    Transport(
        name="http",
        summary="on a server, over AgentGym's protocol",
        open=_agentgym,
        session=AdvisedByTwin,
        heard=_heard_by_agentgym,
        excuses=_excused_by_agentgym,
    ),
    Transport(
        name="batched",
        summary="on a server, over Rollwave's batched wire",
        open=_batched,
        heard=lambda spec: wrap(spec, Heard),
    ),
)

TRANSPORTS: Final[Mapping[str, Transport]] = MappingProxyType({one.name: one for one in _ALL})
"""Every way but the one that needs none, by name."""

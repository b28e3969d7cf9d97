"""Environments in worker processes: many sessions in each, for worlds that compute,
block, leak or crash.

    root ─ workers ─┬─ workers of textcraft-v1 ─┬─ worker-1   (one process each)
                    │                           └─ worker-2
                    └─ workers of maze-v1 ── worker-1

    workers = Owner()
    await system.start(ChildSpec("workers", workers.actor))
    host = WorkerHost(workers, spec)
    hosted = await host.open()

The calls that many sessions make in one turn of the loop travel together and are answered
together; a process runs them one after another.

Invariants:

* nothing is started before a session is wanted; a session goes to the worker with the
  fewest;
* a process that dies faults nobody: its sessions are rebuilt in another one
  (`rebuilding`), and what cannot be rebuilt is a fault of its own episode alone;
* an environment whose workers die again and again before they answer a step is given
  up for `PAUSE_SECONDS`: its sessions are refused with the reason. Other environments go on.

Not here: one worker's life (`actor`), one session (`session`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Final

import trio

from ...engine.actor import Actor
from ...engine.errors import ActorDead, EnvironmentFault, RollwaveError
from ...engine.restart import Backoff, Restart, RestartIntensity
from ...engine.supervisor import ChildSpec, Exit, Supervisor
from ..base import EnvSpec
from ..hosting import Host, Hosted
from ..importable import pack
from ..rebuilding import Rebuilding
from .actor import Worker
from .limits import WorkerLimits
from .process import CLOSE_SECONDS, TERMINATE_SECONDS
from .protocol import Load
from .session import WorkerSession

INTENSITY: Final = RestartIntensity(max_restarts=10, window_seconds=60.0)
"""Of workers that die before they answered a step."""
BACKOFF: Final = Backoff(first=0.1, limit=1.0)
PAUSE_SECONDS: Final = 60.0
"""How long an environment that was given up is refused before it is tried again."""
_STOP_SECONDS: Final = CLOSE_SECONDS + TERMINATE_SECONDS + 1.0


class Keeper(Actor):
    """An actor that only owns others."""

    has_tasks = True

    def __init__(
        self,
        adopt: Callable[[Supervisor], None],
        intensity: RestartIntensity | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._adopt = adopt
        self._intensity = intensity
        self._backoff = backoff

    async def on_start(self) -> None:
        self._adopt(await self.supervise(intensity=self._intensity, backoff=self._backoff))


class Owner:
    """Where the workers of an engine hang in its tree of actors."""

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None
        """Set once its actor has started."""
        self._named: Counter[str] = Counter()

    def actor(self) -> Actor:
        """The actor to start, before those that play episodes: it then ends after them."""
        return Keeper(self._adopt)

    def name(self, env: str) -> str:
        """For the workers of an environment, of which there may be several hosts."""
        self._named[env] += 1
        number = self._named[env]
        return f"workers of {env}" + (f" ({number})" if number > 1 else "")

    def _adopt(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor


class WorkerHost(Host):
    """Opens sessions of one environment in worker processes."""

    def __init__(self, owner: Owner, spec: EnvSpec, limits: WorkerLimits | None = None) -> None:
        """
        Args:
            owner: of the engine's workers.
            spec: the environment.
            limits: replace the spec's own.

        Raises:
            ConfigError: another process cannot import what makes the environment.
        """
        self.name: Final = spec.id
        self.limits: Final = limits or spec.workers
        self.load: Final = Load(tuple(sys.path), pack(spec))
        self.processes: Final = self.limits.workers or _cores()
        """At most, beside those that are being replaced."""
        self._owner = owner
        self._replay = spec.deterministic
        self._pool: Supervisor | None = None
        self._starting = False
        self._workers: list[Worker] = []
        self._slots: set[str] = set()
        self._numbers = count(1)
        self._names = count(1)
        self._refusal: RollwaveError | None = None
        self._until = 0.0
        self._changed = trio.Event()

    @property
    def seats(self) -> int:
        """Live sessions at most."""
        return self.processes * self.limits.sessions_per_worker

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those that live now: starting, up or draining."""
        return tuple(self._workers)

    async def open(self) -> Hosted:
        """Make a session.

        Raises:
            ConfigError: the worker cannot import the environment.
            EnvironmentFault: its workers were given up.
            EnvironmentLost: they died while this session was made, again and again.
        """
        session = Rebuilding(self._session, replay=self._replay)
        try:
            await session.open()
        except BaseException:
            session.abandon()
            raise
        return session

    async def _session(self) -> Hosted:
        while True:
            worker = self._choose()
            if worker is None:
                await self._changed.wait()
                continue
            session = WorkerSession(worker, next(self._numbers), self.name)
            try:
                if not await worker.up():
                    session.abandon()
                    continue
                await session.open()
            except BaseException:
                session.abandon()
                raise
            return session

    # -- the workers ----------------------------------------------------------

    def _choose(self) -> Worker | None:
        """The worker for the next session; None if something has to happen first.

        Raises:
            RollwaveError: no worker of this environment can be had.
        """
        if self._refusal is not None:
            if trio.current_time() < self._until:
                raise self._refusal
            self._refusal = None
        if self._pool is None:
            self._start_pool()
            return None
        best = self._least()
        draining = sum(worker.draining for worker in self._workers)
        room = len(self._slots) - draining < self.processes
        if room and (best is None or best.load > 0):
            try:
                self._start_worker(self._pool)
            except ActorDead:
                return None  # it is ending, and `_pool_ended` will say why
            best = self._least()
        return best

    def _least(self) -> Worker | None:
        most = self.limits.sessions_per_worker
        free = [w for w in self._workers if not w.draining and w.load < most]
        return min(free, key=lambda worker: worker.load, default=None)

    def _start_pool(self) -> None:
        if self._starting:
            return
        supervisor = self._owner.supervisor
        if supervisor is None:
            raise EnvironmentFault(f"no workers for {self.name}: the engine has not started")
        child = ChildSpec(
            self._owner.name(self.name),
            lambda: Keeper(self._adopt, INTENSITY, BACKOFF),
            Restart.TEMPORARY,
            stop_timeout=_STOP_SECONDS * 2,
        )
        try:
            supervisor.start_child_nowait(child, on_exit=self._pool_ended)
        except ActorDead as error:
            raise EnvironmentFault(f"no worker for {self.name}: the engine is closing") from error
        self._starting = True

    def _adopt(self, pool: Supervisor) -> None:
        self._pool = pool
        self.changed()

    def _pool_ended(self, end: Exit) -> None:
        self._pool = None
        self._starting = False
        for worker in self.workers:
            worker.lose("was stopped")
        if end.error is not None:
            self.refuse(
                EnvironmentFault(
                    f"{self.name} was given up: its workers die again and again before they "
                    f"answer a step; look at what the world does there ({end.error})"
                )
            )
        self.changed()

    def _start_worker(self, pool: Supervisor) -> None:
        name = f"worker-{next(self._names)}"
        child = ChildSpec(
            name,
            self._make,
            Restart.TRANSIENT,
            stop_timeout=_STOP_SECONDS,
            start_timeout=self.limits.start_seconds,
        )
        pool.start_child_nowait(child, on_exit=self._worker_ended)
        self._slots.add(name)

    def _make(self) -> Worker:
        worker = Worker(self)
        self._workers.append(worker)
        self.changed()
        return worker

    def _worker_ended(self, end: Exit) -> None:
        self._slots.discard(end.name)
        self.changed()

    # -- what workers tell ----------------------------------------------------

    def refuse(self, error: RollwaveError) -> None:
        """Refuse every session for a while, with this error."""
        self._refusal = error
        self._until = trio.current_time() + PAUSE_SECONDS
        self.changed()

    def forget(self, worker: Worker) -> None:
        """It takes no more sessions, and has none."""
        if worker in self._workers:
            self._workers.remove(worker)
        self.changed()

    def hang_up(self) -> None:
        """All of them are to end."""
        for worker in self._workers:
            worker.hang_up()

    def changed(self) -> None:
        """Let those that wait for a worker look again."""
        self._changed.set()
        self._changed = trio.Event()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

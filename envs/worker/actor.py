"""One supervised worker: a process with its sessions, watched, drained, replaced.

    starting ─▶ up ─▶ draining (too many episodes, too much memory) ─▶ ended with its last
                 │                                                      session
                 └─▶ dead (crashed, killed at a deadline) ─▶ the sessions are told

A process that dies after it has answered some step has only lost its sessions: the worker
ends, and the host starts another when one is wanted. One that dies before is a failure of
the worker: restarted with backoff, and beyond the intensity given up, since the world
kills whatever runs it.

Invariants: a call that is past its deadline ends with its process, and names environment,
task and action; every session of a process that is gone hears of it, and whether it was
its own call.

Not here: which worker a session goes to (`host`), the process itself (`process`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from ...engine.actor import Actor
from ...engine.codec import Message
from ...engine.errors import (
    ActorDead,
    ConfigError,
    DeadlineExceeded,
    EnvironmentLost,
    RollwaveError,
)
from .process import WorkerProcess
from .protocol import Census, Counted, Loaded

if TYPE_CHECKING:
    from .host import WorkerHost
    from .session import WorkerSession

M = TypeVar("M", bound=Message)

_log: Final = logging.getLogger("rollwave.envs")

_WATCH_SECONDS: Final = 1.0
"""Longest time between two looks at a worker's call and memory."""
_LOOKS: Final = 5
"""Looks at a call within its deadline."""


class Worker(Actor):
    """A worker process. One incarnation is one process."""

    has_tasks = True

    def __init__(self, host: WorkerHost) -> None:
        self._host = host
        self._limits = host.limits
        self._process: WorkerProcess | None = None
        self._sessions: dict[int, WorkerSession] = {}
        self._asked = 0
        self._fates: dict[int, DeadlineExceeded] = {}
        self._end = ""
        self._leaving = False
        self._up = trio.Event()
        self._gone = trio.Event()
        self.opened = 0
        """Sessions so far."""
        self.draining = False
        """Takes no new session, and ends with its last one."""

    # -- what the supervisor calls --------------------------------------------

    async def on_start(self) -> None:
        limits = self._limits
        try:
            process = self._process = WorkerProcess(self.context.name, limits)
        except OSError as error:
            raise EnvironmentLost(
                f"cannot start a worker process for {self._host.name}: {error}"
            ) from error
        self.background(self._live, process)
        try:
            await process.connected()
            await process.ask(self._host.load, Loaded)
        except ActorDead:
            await process.gone.wait()
            raise EnvironmentLost(
                f"a worker of {self._host.name} {process.describe()}, while it started"
            ) from None
        except RollwaveError as error:
            self._host.refuse(
                ConfigError(
                    f"{self._host.name} cannot be made in a worker process: {error}; check that "
                    "its module can be imported there"
                )
            )
            self._leave()
            return
        self._up.set()
        self.background(self._watch, process)

    async def on_stop(self) -> None:
        if self._process is not None:
            if not self._leaving:
                self._leaving = True
                self._host.hang_up()  # all end at once, though they are stopped in turn
            await self._process.end()

    async def on_failure(self, error: BaseException) -> None:
        self.lose(str(error))

    # -- what sessions and the host ask of it ---------------------------------

    @property
    def load(self) -> int:
        """Sessions now."""
        return len(self._sessions)

    @property
    def pid(self) -> int:
        """Of its process; 0 before it has one."""
        return self._process.pid if self._process is not None else 0

    @property
    def busy(self) -> bool:
        """Whether its process is in a session's call."""
        return self._process is not None and self._process.progress().session != 0

    async def up(self) -> bool:
        """Wait until it takes calls; False if it ended instead."""
        await self._up.wait()
        return not self._gone.is_set()

    def admit(self, number: int, session: WorkerSession) -> None:
        """A session moves in."""
        self._sessions[number] = session
        self.opened += 1
        if self.opened >= self._limits.episodes_per_worker:
            self.drain(f"has run {self.opened} episodes")

    def release(self, number: int, farewell: Message | None) -> None:
        """A session moves out; `farewell` is told to the process."""
        if self._sessions.pop(number, None) is None:
            return
        if farewell is not None and self._process is not None:
            self._process.tell(farewell)
        if self.draining and not self._sessions:
            self._leave()
        self._host.changed()

    async def call(self, number: int, request: Message, answer: type[M]) -> M:
        """Have the process do something for a session.

        Raises:
            EnvironmentLost: it died meanwhile; `blamed` if in this very call.
            DeadlineExceeded: it was killed, since this call took longer than `step_seconds`.
        """
        process = self._process
        if process is None or self._gone.is_set():
            raise EnvironmentLost(f"the worker {self._end}", blamed=False)
        self._asked += 1
        try:
            return await process.ask(request, answer)
        except ActorDead:
            await self._gone.wait()
            fate = self._fates.get(number)
            if fate is not None:
                raise fate from None
            blamed = process.progress().session == number
            whose = "in this call" if blamed else "in another session's call"
            raise EnvironmentLost(f"the worker {self._end}, {whose}", blamed=blamed) from None
        finally:
            self._asked -= 1

    async def census(self) -> Counted:
        """How many sessions are open in the process, after the calls before this one."""
        assert self._process is not None
        return await self._process.ask(Census(), Counted)

    def drain(self, why: str) -> None:
        """Take no new session, and end with the last one."""
        if not self.draining:
            self.draining = True
            _log.info("worker %s of %s is drained: it %s", self.pid, self._host.name, why)
            if not self._sessions:
                self._leave()
            self._host.changed()

    def hang_up(self) -> None:
        """Let the process end: everything does."""
        self._leaving = True
        if self._process is not None:
            self._process.hang_up()

    def lose(self, why: str) -> None:
        """It is gone: say so to whoever waits. Doing it again changes nothing."""
        self._end = self._end or why
        self._gone.set()
        self._up.set()
        self._host.forget(self)

    # -- its own tasks --------------------------------------------------------

    def _leave(self) -> None:
        self._leaving = True
        self._host.forget(self)
        self.stop()

    async def _live(self, process: WorkerProcess) -> None:
        up = False
        try:
            await process.run()
            up = self._up.is_set()
        finally:
            self.lose(process.describe())
        if not up or self._leaving:
            return  # `on_start` says what happened; or it was to end
        _log.warning("worker %s of %s %s", process.pid, self._host.name, self._end)
        if process.progress().steps == 0:
            raise EnvironmentLost(
                f"a worker of {self._host.name} {self._end}, before it had answered a single step"
            )
        self._leave()

    async def _watch(self, process: WorkerProcess) -> None:
        limits = self._limits
        seconds = min(_WATCH_SECONDS, limits.step_seconds / _LOOKS)
        calls, silent = -1, 0.0
        while True:
            await trio.sleep(seconds)
            progress = process.progress()
            if progress.session and progress.seconds > limits.step_seconds:
                self._kill_late(process, progress.session)
                return
            # A process that was stopped, or is stuck in our own code, is in nobody's call.
            silent = silent + seconds if self._asked and progress.calls == calls else 0.0
            calls = progress.calls
            if silent > 2 * limits.step_seconds:
                self._end = f"answered nothing for {silent:.0f} s, and was killed"
                process.kill()
                return
            resident = process.resident_mib()
            if resident > limits.hard_mib:
                self._end = f"was killed: it used {resident:.0f} MiB ({limits.hard_mib} allowed)"
                process.kill()
                return
            if resident > limits.memory_mib:
                self.drain(f"uses {resident:.0f} MiB ({limits.memory_mib} wanted)")

    def _kill_late(self, process: WorkerProcess, number: int) -> None:
        session = self._sessions.get(number)
        if session is not None:
            self._fates[number] = DeadlineExceeded(
                f"{session.doing()} took longer than {self._limits.step_seconds:g} s; its worker "
                "process was killed"
            )
        self._end = "was killed at the deadline of a call"
        process.kill()

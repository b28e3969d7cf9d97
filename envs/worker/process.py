"""One child process on the engine's side: its start, its last words, its end.

    process = WorkerProcess("worker-1", limits)
    nursery.start_soon(process.run)
    await process.connected()
    answer = await process.ask(Open(1), Done)
    await process.end()

Invariants: whatever ends `run`, the process is dead and reaped when it returns, and so is
whatever it had started in its own process group; an ask that waits then has failed.

Not here: whether another follows (`actor`), and the child's own side
(`main`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from ...engine.codec import Message, decoder, encode
from ...engine.errors import ActorDead, DeadlineExceeded, MessageError
from ...engine.last_words import last_words
from ...engine.remote import Remote, attach
from ...engine.wire import Asked
from .limits import WorkerLimits
from .page import Page, Progress
from .protocol import NAME, Raised

M = TypeVar("M", bound=Message)

CLOSE_SECONDS: Final = 1.0
"""For a process to close its sessions and end, once the connection is closed."""
TERMINATE_SECONDS: Final = 0.5
"""For it to end after SIGTERM; then it is killed."""
_REAP_SECONDS: Final = 5.0
"""For the kernel to end what was killed."""
_WORDS_SECONDS: Final = 0.2
"""For what it printed last to arrive, once it has ended."""
_WORDS: Final = 4096
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class WorkerProcess:
    """A running worker process."""

    def __init__(self, name: str, limits: WorkerLimits) -> None:
        """Start it. Takes some milliseconds, on the loop: the kernel kills the child with the
        thread that started it, which therefore has to be one that lasts.

        Raises:
            OSError: no process can be started.
        """
        self.name: Final = name
        self._words = b""
        self._remote: Remote | None = None
        self._leaving = False
        self._left = 0.0
        self._progress = Progress(0, 0.0, 0, 0, 0)
        self._ready = trio.Event()
        self.gone: Final = trio.Event()
        """Set when it has ended and is reaped."""
        with ExitStack() as failed, ExitStack() as handed:
            ours, theirs = socket.socketpair()
            failed.enter_context(ours)
            handed.enter_context(theirs)
            self._page, page = Page.create()
            failed.callback(self._page.close)
            handed.callback(os.close, page)
            words, output = os.pipe()
            failed.callback(os.close, words)
            handed.callback(os.close, output)
            numbers = (theirs.fileno(), page, os.getpid(), limits.niceness, limits.hard_mib)
            self._popen: Final = subprocess.Popen(  # noqa: S603 (ourselves)
                [sys.executable, "-P", "-m", _MAIN, *map(str, numbers)],
                pass_fds=(theirs.fileno(), page),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # Many processes share the cores: numeric libraries in each must not take all.
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
            failed.pop_all()
        self._socket: Final = trio.socket.from_stdlib_socket(ours)
        self._output: Final = trio.lowlevel.FdStream(words)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    # -- its life -------------------------------------------------------------

    async def run(self) -> None:
        """Carry messages until the process has ended; cancelled, kill it."""
        try:
            async with trio.open_nursery() as nursery:
                silent = trio.Event()
                nursery.start_soon(self._listen, silent)
                nursery.start_soon(self._carry)
                await self._ended()
                with trio.move_on_after(_WORDS_SECONDS):
                    await silent.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._progress = self._page.read()
            # Before it is reaped: until then nobody else can have its number.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True), trio.move_on_after(_REAP_SECONDS):
                await self._ended()
            self._popen.poll()
            self._page.close()
            self._socket.close()
            self._ready.set()
            self.gone.set()

    async def _carry(self) -> None:
        try:
            remote = self._remote = await attach(trio.SocketStream(self._socket), self.name)
        except (ActorDead, MessageError, DeadlineExceeded):
            self.kill()
            return
        self._ready.set()
        await remote.run()
        if not self._leaving:
            self.kill()  # it broke the connection: there is no way to go on

    async def _listen(self, silent: trio.Event) -> None:
        async with self._output as output:
            with suppress(trio.BrokenResourceError):
                async for data in output:
                    self._words = (self._words + bytes(data))[-_WORDS:]
        silent.set()

    async def _ended(self) -> None:
        """Wait until it has ended, and leave it to be reaped."""
        flags = os.WEXITED | os.WNOWAIT
        if os.waitid(os.P_PID, self.pid, flags | os.WNOHANG) is not None:  # noqa: ASYNC222
            return
        try:
            fd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old one
            await trio.to_thread.run_sync(
                os.waitid, os.P_PID, self.pid, flags, abandon_on_cancel=True
            )
            return
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)

    # -- messages -------------------------------------------------------------

    async def connected(self) -> None:
        """Wait until it takes messages.

        Raises:
            ActorDead: it ended instead.
        """
        await self._ready.wait()
        if self.gone.is_set():
            raise ActorDead(f"{self.name} {self.describe()}")

    async def ask(self, request: Message, answer: type[M]) -> M:
        """Send a request, and wait for its answer.

        Raises:
            ActorDead: the process has ended.
            MessageTooLarge: request or answer are.
            RollwaveError: what the world raised (see `protocol.Raised`).
        """
        assert self._remote is not None  # `connected` comes first
        payload = await self._remote.request(Asked, NAME, encode(request))
        decoded: Any = decoder(answer, Raised).decode(payload)
        if type(decoded) is Raised:
            raise decoded.error()
        return decoded  # type: ignore[no-any-return]

    def tell(self, request: Message) -> None:
        """Send what is wanted whatever else waits, and never hear of it again. Never raises."""
        if self._remote is not None:
            with suppress(ActorDead):
                self._remote.send(NAME, encode(request), urgent=True)

    # -- what it is doing -----------------------------------------------------

    def progress(self) -> Progress:
        """What it is doing, or was when it ended."""
        return self._progress if self.gone.is_set() else self._page.read()

    def resident_mib(self) -> float:
        """Its resident memory; 0 where the system does not tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0.0
        return int(pages) * _PAGE / 2**20

    def describe(self) -> str:
        """How it ended, with what it printed last, in one line."""
        return last_words(self._popen.returncode, self._words)

    # -- its end --------------------------------------------------------------

    def hang_up(self) -> None:
        """Close the connection: the process closes its sessions and ends."""
        if not self._leaving:
            self._leaving = True
            self._left = trio.current_time()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def end(self) -> None:
        """Close the connection; if it does not end by itself, terminate, then kill it."""
        self.hang_up()
        with trio.move_on_at(self._left + CLOSE_SECONDS):
            await self.gone.wait()
            return
        self._signal(signal.SIGTERM)
        with trio.move_on_after(TERMINATE_SECONDS):
            await self.gone.wait()
            return
        self.kill()
        await self.gone.wait()

    def kill(self) -> None:
        """Kill it now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self.gone.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


_MAIN: Final = f"{__package__}.main"

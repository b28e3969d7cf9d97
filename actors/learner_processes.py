"""An order that several processes of this machine do together, from the first to the last.

    learner ── order ──▶ process 0 … n−1 (`learners.member`) ── steps, report or error ──▶ learner

They are started for the order, and gone when it is answered, whatever the answer: done,
failed, cancelled or late. On Linux they also end with this process, however it ends; elsewhere
at their next optimiser step. What they had saved is there for the same order again.

Invariants: nothing runs on, and nothing is left to be reaped, when `train_together` is left;
one process that fails, or dies without a word, fails the order, and the error that is told is
that of the process it began with. The loop is never blocked for longer than a process takes to
be started (milliseconds).

Not here: the training (`learners.distributed`), deadlines (`learner`), and several machines.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Final

import msgspec
import trio

from ..engine.blocking import run_blocking
from ..engine.errors import AskFailed, LearnerError
from ..engine.last_words import last_words
from ..learners.base import Report
from ..learners.distributed import Order
from ..learners.member import HOST, Done, Failed, Said, Stepped

_COMMAND: Final = (sys.executable, "-P", "-m", "rollwave.learners.member")
_GRACE: Final = 5.0
"""Seconds in which the others may say what they know, when one has failed."""
_REAP: Final = 10.0
"""Longest wait for a killed process, in seconds."""
_WORDS_SECONDS: Final = 1.0
"""Longest wait for the last words of a process that has ended."""
_WORDS: Final = 8_192

Told = Callable[[int, int, Mapping[str, float]], None]


async def train_together(order: Order, count: int, told: Told) -> Report:
    """Do an order in several processes.

    Args:
        count: of processes.
        told: of every optimiser step, on the loop.

    Raises:
        AskFailed: it cannot be done; the kind is the name of our error, or the fault kind of a
            foreign one.
        LearnerError: a process died, or cannot be started.
    """
    members: list[Member] = []
    try:
        _start(members, count)
        async with trio.open_nursery() as nursery:
            text = msgspec.json.encode(order)
            for member in members:
                nursery.start_soon(member.run, text, told, partial(_end_soon, nursery.cancel_scope))
    finally:
        for member in members:
            member.drop()
        with trio.CancelScope(shield=True):
            for member in members:
                await member.reaped()
    report = members[0].report
    if report is not None:
        return report
    raise _reason(members)


def _start(members: list[Member], count: int) -> None:
    """Start all processes, one after the other.

    Raises:
        LearnerError: the system refuses; those that were started are among the members.
    """
    try:
        with socket.create_server((HOST, 0)) as listener:
            for rank in range(count):
                members.append(Member(rank, count, listener))
    except OSError as error:
        raise LearnerError(
            f"process {len(members) + 1} of {count} of the learner cannot be started: {error}; "
            "run.learner_processes asks for fewer"
        ) from error


def _end_soon(scope: trio.CancelScope) -> None:
    """One has failed: the others wait for it in vain."""
    scope.deadline = min(scope.deadline, trio.current_time() + _GRACE)


def _reason(members: list[Member]) -> AskFailed | LearnerError:
    """Tell the error that the others follow from: ours, or a death, before what torch says of
    a peer that is gone."""
    failures = [member.failure for member in members if member.failure is not None]
    ours = [failure for failure in failures if failure.ours]
    dead = [member for member in members if member.failure is None and member.died]
    if ours or (failures and not dead):
        failure = (ours or failures)[0]
        return AskFailed(failure.kind, failure.text)
    silent = (dead or members)[0]
    return LearnerError(f"process {silent.rank + 1} of {len(members)} {silent.describe()}")


class Member:
    """One process, from its start until it is reaped."""

    def __init__(self, rank: int, size: int, listener: socket.socket) -> None:
        """Start it; the first process takes over the listening socket.

        Raises:
            OSError: it cannot be started.
        """
        self.rank: Final = rank
        self.report: Report | None = None
        """Once it is done."""
        self.failure: Failed | None = None
        """Once it has said so."""
        self.died = False
        """Whether it ended by itself, without a word."""
        self._words = b""
        fd = listener.fileno()
        numbers = (os.getpid(), rank, size, listener.getsockname()[1], fd)
        with ExitStack() as failed, ExitStack() as handed:
            order, to_order = _pipe(handed, failed)
            from_said, said = _pipe(failed, handed)
            from_printed, printed = _pipe(failed, handed)
            # Not by trio, which starts processes from a thread that may end before them: the
            # kernel would take that for the end of the parent.
            self._popen: Final = subprocess.Popen(  # noqa: S603 (ourselves)
                [*_COMMAND, *map(str, numbers)],
                pass_fds=(fd,) if rank == 0 else (),
                stdin=order,
                stdout=said,
                stderr=printed,
                start_new_session=True,  # Ctrl-C is for the campaign, which then kills it
                env=_ENVIRONMENT | os.environ,
            )
            failed.pop_all()
        self._order = trio.lowlevel.FdStream(to_order)
        self._said = trio.lowlevel.FdStream(from_said)
        self._printed = trio.lowlevel.FdStream(from_printed)

    async def run(self, order: bytes, told: Told, failed: Callable[[], None]) -> None:
        """Hand the order over, and listen until the process has ended.

        Args:
            failed: called when it has, without being done.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hand, order)
            nursery.start_soon(self._keep_words)
            await self._listen(told, failed)
            await run_blocking(self._popen.wait, abandon_on_cancel=True)
            # Whatever it may have left behind could hold its output open.
            nursery.cancel_scope.deadline = trio.current_time() + _WORDS_SECONDS
        if self.report is None and self.failure is None:
            self.died = True
            failed()

    async def reaped(self) -> None:
        """Wait until it has ended; bounded, since a dying process may hang in the kernel."""
        with trio.move_on_after(_REAP):
            await run_blocking(self._popen.wait, abandon_on_cancel=True)

    def drop(self) -> None:
        """Kill it if it lives. It is not asked: what it saves is whole at any moment."""
        self._popen.kill()
        for stream in (self._order, self._said, self._printed):
            stream.close()

    def describe(self) -> str:
        """How it ended, with what it printed last, in one line."""
        return last_words(self._popen.returncode, self._words)

    async def _hand(self, order: bytes) -> None:
        with suppress(trio.BrokenResourceError):  # it ended; `run` says how
            async with self._order as stream:
                await stream.send_all(order)

    async def _keep_words(self) -> None:
        async with self._printed as stream:
            async for data in stream:
                self._words = (self._words + bytes(data))[-_WORDS:]

    async def _listen(self, told: Told, failed: Callable[[], None]) -> None:
        begun = b""
        async with self._said as stream:
            async for data in stream:
                *lines, begun = (begun + bytes(data)).split(b"\n")
                for line in lines:
                    self._hear(msgspec.json.decode(line, type=Said), told)
                    if self.failure is not None:
                        failed()

    def _hear(self, said: Said, told: Told) -> None:
        match said:
            case Stepped():
                told(said.step, said.steps, _numbers(said.metrics))
            case Done():
                self.report = Report(_numbers(said.metrics), said.kept, said.dropped)
            case Failed():
                self.failure = said


_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1"} | (
    # They talk to each other on this machine alone.
    {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Two ends, each closed with the stack that it is given to."""
    ends = os.pipe()
    for stack, end in zip((reader, writer), ends, strict=True):
        stack.callback(os.close, end)
    return ends


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}

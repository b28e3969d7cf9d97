"""Many logical sessions of ScienceWorld over the live ones of one Java process.

    simulators = Simulators()
    session = simulators.open()
    session.load("boil", 0)
    moved = session.step("look around")

A session is its task and the actions taken; the live one in the Java process is a copy of
that, which may be let go at any time and made again when it is next called. So a limit of
live sessions limits nothing but memory, and a Java process that dies takes no session with
it but for the call it died in.

Which to let go: of a few drawn at random, the one that was called last. Where many sessions
are called in turn, as those of a wave are, it is the one that will be called last again; by
age, or by the least work done, it would be the one called next, and every call a rebuild.

Invariants:

* a session that was made again answers as before, word for word: the answers to its actions
  are compared by their digest, and a difference is an `EnvironmentFault`;
* nothing is started before a session is loaded; `close` leaves neither process nor file;
* a forked child has the sessions, and makes them again in a Java process of its own;
* no more than `live` sessions are held, and fewer where the heap is short.

Not here: one live session (`simulator`), the solutions on disk (`gold`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final, TypeVar

from ...engine.errors import ConfigError, EnvironmentFault, EnvironmentLost
from ..worker.limits import WorkerLimits
from . import gold, simulator
from .forks import leave_when_forked
from .jvm import Jvm
from .machinery import Live, Machinery
from .simulator import Moved

T = TypeVar("T")

HEAP_MIB: Final = 1024
LIVE: Final = 1200
"""A session takes 0.3 to 0.7 MB, so that these fill no more than most of `HEAP_MIB`."""
MOST_PROCESSES: Final = 4
"""Worker processes, each with a Java process: four take some 600 steps a second."""
LIMITS: Final = WorkerLimits(
    workers=min(MOST_PROCESSES, os.cpu_count() or 1),
    sessions_per_worker=4096,  # logical ones
    memory_mib=2048,  # Java inherits twice as much as its limit, which its heap is well below
)
_CLOSED: Final = "this session of ScienceWorld is closed: open another"
_DRAWN: Final = 4
"""Of as many one is let go. What nobody calls goes when nobody calls any of those drawn."""
_LOADS: Final = 32
"""Between two looks at the heap."""
_LOW: Final = 0.25
"""Of the heap: with less free, collect; with less free after that, let go of some."""


class Simulators:
    """The sessions of one Java process. Threads may share it; their calls wait for each other."""

    def __init__(self, *, heap_mib: int = HEAP_MIB, live: int = LIVE) -> None:
        """
        Args:
            heap_mib: of the Java process, at most. It takes some 150 MiB beside.
            live: sessions held in it at most.

        Raises:
            ConfigError: with too little of either.
        """
        if heap_mib < 128 or live < 1:
            raise ConfigError(
                "ScienceWorld needs a heap of 128 MiB or more and room for one live session, "
                f"not {heap_mib} MiB and {live}"
            )
        self.heap_mib: Final = heap_mib
        self.live: Final = live
        self.lock = threading.RLock()
        self.rebuilt = 0
        """Live sessions made again so far."""
        self.evicted = 0
        """Live sessions let go so far, to make room."""
        self.losses = 0
        """Java processes that died."""
        self._machinery: Machinery | None = None
        self._held: dict[Simulator, Live] = {}
        self._order: list[Simulator] = []
        self._late: deque[Simulator] = deque()
        self._random = Random(0)  # noqa: S311 (nothing that is answered depends on it)
        self._loads = 0
        self._calls = 0
        self._inherited: list[Machinery] = []
        leave_when_forked(self)

    def open(self) -> Simulator:
        """A session in which nothing is loaded yet. Costs nothing."""
        return Simulator(self)

    def close(self) -> None:
        """End the Java process. A session that is called again starts another."""
        with self.lock:
            self._forget_all()
            machinery, self._machinery = self._machinery, None
            if machinery is not None:
                machinery.jvm.close()

    @property
    def pid(self) -> int | None:
        """Of the Java process, if there is one."""
        machinery = self._machinery
        return None if machinery is None else machinery.jvm.pid

    @property
    def held(self) -> int:
        """Live sessions."""
        return len(self._held)

    # -- for sessions, which hold the lock -------------------------------------

    def machinery(self) -> Machinery:
        """The Java process's, started if need be.

        Raises:
            MissingDependency: no Java, or no `scienceworld`.
            EnvironmentFault: it does not start.
        """
        if self._machinery is None:
            jvm = Jvm(heap_mib=self.heap_mib)
            try:
                self._machinery = Machinery(jvm)
            except BaseException:
                jvm.close()
                raise
        return self._machinery

    def lost(self) -> None:
        """The Java process is gone, and what was live in it."""
        self.losses += 1
        self.close()

    def get(self, session: Simulator) -> Live | None:
        """Its live session, if it has one. It is called now."""
        self._calls += 1
        session.called = self._calls
        return self._held.get(session)

    def make(self, session: Simulator, task: str, variation: int, simplifications: str) -> Live:
        """Load a live session for it, and let go of others to make room."""
        machinery = self.machinery()
        self.get(session)
        self.release(session)
        while self._late:
            self.release(self._late.popleft())
        while len(self._order) >= self.live:
            self._evict()
        self._loads += 1
        if self._loads % _LOADS == 0:
            self._relieve(machinery)
        live = machinery.load(task, variation, simplifications)
        self._held[session] = live
        self._order.append(session)
        if session.closed:  # meanwhile, by another thread, when there was nothing to let go of
            self.release(session)
            raise EnvironmentFault(_CLOSED)
        return live

    def release_later(self, session: Simulator) -> None:
        """As `release`, for who does not hold the lock."""
        self._late.append(session)

    def release(self, session: Simulator) -> None:
        """Let go of its live session, if it has one."""
        live = self._held.pop(session, None)
        if live is not None:
            self._order.remove(session)
            if self._machinery is not None:
                self._machinery.forget(live)

    def _forget_all(self) -> None:
        self._held.clear()
        self._order.clear()

    def leave(self) -> None:
        """In a forked child: the Java process is the parent's, and the lock may be held by a
        thread that is not here."""
        self.lock = threading.RLock()
        self._late.clear()
        self._forget_all()
        if self._machinery is not None:
            # Its reader may be locked by such a thread, too: freeing it would wait for ever.
            self._inherited.append(self._machinery)
            self._machinery = None

    def _evict(self) -> None:
        some = [self._random.choice(self._order) for _ in range(_DRAWN)]
        self.release(max(some, key=lambda session: session.called))
        self.evicted += 1

    def _relieve(self, machinery: Machinery) -> None:
        enough = self.heap_mib * _LOW
        if machinery.free_mib() >= enough or machinery.free_mib(collect=True) >= enough:
            return
        for _ in range(len(self._order) // 4):
            self._evict()


class Simulator:
    """One logical session. Made by `Simulators.open`. One call at a time.

    After an `EnvironmentLost` it is as it was before the call, and may be called again.
    """

    __slots__ = ("_actions", "_answers", "_owner", "_task", "called", "closed")

    def __init__(self, owner: Simulators) -> None:
        self._owner: Final = owner
        self._task: tuple[str, int, str] | None = None
        self._actions: list[str] = []
        self._answers = array("Q")
        self.closed = False
        """For good."""
        self.called = 0
        """When it was last called, in calls of its owner's sessions."""

    def load(self, task: str, variation: int, simplification: str = "easy") -> None:
        """Begin a task anew.

        Args:
            task: the package's own name, such as "boil".
            variation: of that task, from 0.
            simplification: comma-separated, as the package spells them; "" for none.

        Raises:
            ConfigError: there is no such task, variation or simplification.
            MissingDependency: no Java, or no `scienceworld`.
            EnvironmentLost: the Java process died.
        """
        with self._owner.lock:
            self._open()
            self._task = None
            self._actions.clear()
            del self._answers[:]
            try:
                self._owner.make(self, task, variation, simplification)
            except EnvironmentLost:
                self._owner.lost()
                raise
            self._task = task, variation, simplification

    def task_description(self) -> str:
        """What is to be done."""
        with self._owner.lock:
            return self._live()[1].description

    def step(self, action: str) -> Moved:
        """Take an action.

        Raises:
            EnvironmentFault: the simulator raised; or nothing is loaded, or it is closed.
            EnvironmentLost: the Java process died.
        """
        with self._owner.lock:
            machinery, live = self._live()
            try:
                moved = simulator.step(machinery, live, action)
            except EnvironmentLost:
                self._owner.lost()
                raise
            except BaseException:
                self._owner.release(self)  # half a step may be done: make it again without
                raise
            self._actions.append(action[: simulator.LONGEST])
            self._answers.append(_digest(moved))
            return moved

    def look(self) -> str:
        """The room. Costs no move."""
        return self._told(simulator.look)

    def inventory(self) -> str:
        """What is carried. Costs no move."""
        return self._told(simulator.inventory)

    def valid_actions(self) -> tuple[str, ...]:
        """Every action that does something now, in order. Slow."""
        return self._told(simulator.valid_actions)

    def gold_path(self) -> tuple[str, ...]:
        """Actions that solve the loaded task from its start: computed once, then on disk.

        Raises:
            EnvironmentFault: nothing is loaded, or it is closed.
            EnvironmentLost: the Java process died.
        """
        with self._owner.lock:
            self._open()
            if self._task is None:
                raise EnvironmentFault("nothing is loaded: load a task first")
            machinery = self._owner.machinery()
            try:
                return gold.path(machinery, *self._task)
            except EnvironmentLost:
                self._owner.lost()
                raise

    def close(self) -> None:
        """Let go of it. Never raises; may be called again, and from another thread."""
        self.closed = True
        if self._owner.lock.acquire(blocking=False):
            try:
                self._owner.release(self)
            finally:
                self._owner.lock.release()
        else:
            self._owner.release_later(self)

    # -- inside ---------------------------------------------------------------

    def _open(self) -> None:
        if self.closed:
            raise EnvironmentFault(_CLOSED)

    def _live(self) -> tuple[Machinery, Live]:
        """It, made again if need be."""
        self._open()
        if self._task is None:
            raise EnvironmentFault("nothing is loaded: load a task first")
        owner = self._owner
        live = owner.get(self)
        if live is None:
            try:
                live = self._again(self._task)
            except EnvironmentLost:
                owner.lost()
                raise
        return owner.machinery(), live

    def _again(self, task: tuple[str, int, str]) -> Live:
        owner = self._owner
        live = owner.make(self, *task)
        machinery = owner.machinery()
        for number, action in enumerate(self._actions):
            if _digest(simulator.step(machinery, live, action)) != self._answers[number]:
                owner.release(self)
                raise EnvironmentFault(
                    f"ScienceWorld answered action {number} ({action[:80]!r}) of {task[0]} "
                    f"{task[1]} differently when it was repeated"
                )
        owner.rebuilt += 1
        return live

    def _told(self, question: Callable[[Machinery, Live], T]) -> T:
        with self._owner.lock:
            machinery, live = self._live()
            try:
                return question(machinery, live)
            except EnvironmentLost:
                self._owner.lost()
                raise


def _digest(moved: Moved) -> int:
    text = f"{moved.score} {moved.done} {moved.moves} {moved.observation}"
    data = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data)

"""Everything that a long run does, over and over, with faults all the time: for the soak.

    main engine, open throughout   rollouts │ abandoned rollouts │ weight swaps │ backend deaths
                                   │ worker processes killed
    engines that come and go       played to the end │ cancelled from outside │ under asyncio
                                   │ with workers of their own
    runs on disk                   a store, two waves played and sealed, read back, removed

Worlds: one on the loop that raises and answers garbage; one in threads that also hangs, and
is cut off by the turn's deadline; one in worker processes, whose process is killed when it
hangs, and replaced after some hundred episodes.

Invariant: each rollout that was not abandoned gives as many records as were planned; the
churn fails if one does not.

Not here: looking for leaks (`vitals`, `trend`).
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from ..actors.backends.base import Backend
from ..actors.backends.latency import UniformLatency
from ..actors.backends.scripted import ScriptedBackend
from ..actors.embedding import Engine, EngineSettings, open_engine
from ..actors.guest import open_engine_asyncio
from ..actors.policy_source import PolicySource
from ..actors.protocol import Generate
from ..actors.waves import WavePlan, play_wave
from ..engine.errors import WeightSwapFailed
from ..engine.journal import Journal
from ..engine.mailbox import MailboxStatistics
from ..engine.seeds import derive, generator
from ..engine.store import Store
from ..engine.trajectory import Outcome
from ..envs.base import Environment, EnvSpec, Task
from ..envs.registry import resolve
from ..envs.worker.host import WorkerHost
from ..envs.worker.limits import WorkerLimits
from ..envs.wrappers import Flaky, Trouble

CONCURRENCY: Final = 64
_TURN_SECONDS: Final = 3.0
"""A world that hangs is cut off then."""
_WAVE: Final = 20
"""Episodes of a wave that is sealed."""
_WORKERS: Final = WorkerLimits(workers=1, step_seconds=1.0, episodes_per_worker=500)
_FAULTS: Final = 0.02
"""Share of the steps that go wrong."""
_TASKS: Final = 200
"""Of each world, the same ones again and again: caches of tasks would look like leaks."""
_WORDS: Final = ("up", "down", "left", "right")


class Churn:
    """The load of a soak.

    Args:
        directory: for journals and runs; what is made there is removed there.
        seconds: how long it will run: whatever is done rarely is done four times at least.
        seed: of everything that is drawn.
    """

    def __init__(self, directory: Path, seconds: float, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        """What was begun, and how episodes ended."""
        self._directory = directory
        self._seed = seed
        self._number = 0
        self._main: Engine | None = None
        self._backend: _Backend | None = None
        # An engine gives up after five restarts in a minute, and waits ever longer for one that
        # dies again within it.
        self._rare = min(75.0, seconds / 4)
        self._often = min(3.0, seconds / 4)
        *self._specs, self._worker = _worlds(seed)
        # So that a short run gets to the end of its rollouts, too.
        self._limit = min(_TASKS, max(20, int(2 * seconds)))
        self._tasks = self._some(*self._specs)

    def mailboxes(self) -> Mapping[str, MailboxStatistics]:
        """Those of the main engine's cast, by actor."""
        if self._main is None:
            return {}
        return {name: actor.mailbox for name, actor in self._main.statistics().items()}

    async def run(self) -> None:
        """Go on until cancelled."""
        async with self._engine(self._source(self._serve)) as engine:
            engine.use(self._worker)
            self._main = engine
            async with trio.open_nursery() as nursery:
                for activity, pause in (
                    (self._play, 0.0),
                    (self._abandon, self._often / 3),
                    (self._swap, self._often),
                    (self._kill, self._rare),
                    (self._kill_worker, self._rare / 4),
                    (self._workers, self._rare / 2),
                    (self._come_and_go, self._often),
                    (self._cancel, self._often),
                    (self._guest, self._rare),
                    (self._keep, self._often),
                ):
                    nursery.start_soon(self._repeat, activity, pause)

    async def _repeat(self, activity: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            await trio.sleep(pause)
            self.counts[activity.__name__.strip("_")] += 1
            await activity()

    # -- the main engine --------------------------------------------------------

    async def _play(self) -> None:
        """A journalled rollout to its end."""
        assert self._main is not None  # `run` opened it
        number = self._next()
        path = self._directory / f"rollout-{number}.msgpack"
        async with await Journal.open(path) as journal:
            tasks = [*self._tasks, *self._some(self._worker)]
            await self._rollout(self._main, number, tasks, journal)
        path.unlink()

    async def _abandon(self) -> None:
        """A rollout that is left in the middle."""
        assert self._main is not None  # `run` opened it
        async with self._main.rollout(self._tasks, wave=self._next()) as rollout:
            left = len(self._tasks) // 2
            async for _ in rollout:
                left -= 1
                if not left:
                    break

    async def _swap(self) -> None:
        """New weights."""
        assert self._main is not None  # `run` opened it
        await self._main.swap_weights(self._next(), "")

    async def _kill(self) -> None:
        """The backend dies; every second time of weights that it cannot load."""
        assert self._main is not None  # `run` opened it
        assert self._backend is not None  # the engine started it
        if self.counts["kill"] % 2 == 0:
            with suppress(WeightSwapFailed):
                await self._main.swap_weights(0, _BROKEN)
        else:
            self._backend.die()

    async def _kill_worker(self) -> None:
        """The process of some sessions is killed; they go on in another one."""
        assert self._main is not None  # `run` opened it
        host = self._main.host(self._worker)
        assert isinstance(host, WorkerHost)
        for worker in host.workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)

    # -- engines that come and go -------------------------------------------------

    async def _come_and_go(self) -> None:
        """An engine of its own, played to the end of a rollout."""
        async with self._engine(self._source(_Backend)) as engine:
            await self._rollout(engine, self._next(), self._tasks)

    async def _cancel(self) -> None:
        """The same, cancelled from outside at some moment."""
        number = self._next()
        with trio.move_on_after(generator(self._seed, "cancel", number).uniform(0.0, 1.0)):
            async with self._engine(self._source(_Backend)) as engine:
                await self._rollout(engine, number, self._tasks)

    async def _workers(self) -> None:
        """An engine with worker processes of its own; every second time cancelled."""
        number = self._next()
        patience = math.inf if self.counts["workers"] % 2 else 2.0
        with trio.move_on_after(patience):
            async with self._engine(self._source(_Backend)) as engine:
                engine.use(self._worker)
                await self._rollout(engine, number, self._some(self._worker))

    async def _guest(self) -> None:
        """An engine under asyncio, in a thread; the expert plays."""

        async def play() -> int:
            count = 0
            async with open_engine_asyncio("expert", concurrency=8) as engine:
                tasks = engine.tasks("maze-grid-v1?style=terse", "train", limit=20)
                async for _ in engine.rollout(tasks):
                    count += 1
            return count

        if await trio.to_thread.run_sync(asyncio.run, play()) != 20:
            raise RuntimeError("a rollout under asyncio lost an episode")

    async def _keep(self) -> None:
        """A run on disk: opened, two waves sealed, read back, closed, removed."""
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            with Store.open(directory) as store:
                async with self._engine(self._source(_Backend)) as engine:
                    for number in range(2):
                        plan = WavePlan(number=number, tasks=self._tasks[:_WAVE])
                        wave = await play_wave(engine, store, plan)
                        if len(wave.trajectories) != _WAVE:
                            raise RuntimeError("a sealed wave lost an episode")
            with Store.open(directory, exclusive=False) as store:
                store.read(0)

    # -- parts ----------------------------------------------------------------------

    async def _rollout(
        self, engine: Engine, wave: int, tasks: Sequence[Task], journal: Journal | None = None
    ) -> None:
        count = 0
        async with engine.rollout(tasks, wave=wave, journal=journal) as rollout:
            async for trajectory in rollout:
                count += 1
                self.counts[trajectory.outcome.value] += 1
                self.counts["turns"] += len(trajectory.turns)
                if trajectory.fault is not None:
                    self.counts[f"fault: {trajectory.fault.kind.value}"] += 1
                if trajectory.outcome is Outcome.CANCELLED:
                    raise RuntimeError(f"{trajectory.id} was cancelled, and nobody had asked to")
        if count != len(tasks):
            raise RuntimeError(f"{count} of {len(tasks)} episodes came back")

    def _some(self, *specs: EnvSpec) -> list[Task]:
        return [task for spec in specs for task in spec.tasks("train", limit=self._limit)]

    @asynccontextmanager
    async def _engine(self, source: PolicySource) -> AsyncIterator[Engine]:
        settings = EngineSettings(
            concurrency=CONCURRENCY,
            seed=derive(self._seed, "engine", self._next()),
            turn_seconds=_TURN_SECONDS,
        )
        async with open_engine(source, settings=settings) as engine:
            for spec in self._specs:
                engine.use(spec)
            yield engine

    def _source(self, make: Callable[[int, str], Backend]) -> PolicySource:
        return PolicySource(kind="model", name="scripted", make_backend=make)

    def _serve(self, version: int, path: str) -> Backend:
        self._backend = _Backend(version, path)
        return self._backend

    def _next(self) -> int:
        self._number += 1
        return self._number


class _Backend(ScriptedBackend):
    """Wanders, takes 30 to 150 ms, and cannot load what is broken."""

    def __init__(self, version: int, _path: str) -> None:
        super().__init__(UniformLatency(0.03, 0.15), answer=_wander, takes_tokens=False)
        self.policy_version = version

    async def swap_weights(self, version: int, path: str) -> None:
        """Serve other weights.

        Raises:
            WeightSwapFailed: they are broken.
        """
        if path == _BROKEN:
            raise WeightSwapFailed("injected: the weights are broken")
        await super().swap_weights(version, path)


_BROKEN: Final = "broken"


def _wander(request: Generate) -> str:
    return _WORDS[request.seed % 4]


_MAZE: Final = resolve("maze-grid-v1?size=4&style=terse")
_BRIEF: Final = (Trouble.RAISE, Trouble.GARBAGE)


def _flaky(kinds: tuple[Trouble, ...], seed: int) -> Environment:
    """A maze with faults. At the top of a module, so that a worker process can import it."""
    return Flaky(_MAZE.make(), rate=_FAULTS, kinds=kinds, seed=seed)


def _in_worker(seed: int) -> Environment:
    """One that hangs too, but seldom: it takes its process with it."""
    return Flaky(_flaky(_BRIEF, seed), rate=_FAULTS / 50, kinds=(Trouble.HANG,), seed=seed)


def _worlds(seed: int) -> list[EnvSpec]:
    """Mazes with faults: on the loop, in threads, in worker processes."""

    def spec(name: str, make: Callable[[], Environment], **changes: Any) -> EnvSpec:
        return replace(_MAZE, id=f"soak-{name}-v1", make=make, **changes)

    return [
        spec("loop", partial(_flaky, _BRIEF, seed)),
        spec("thread", partial(_flaky, tuple(Trouble), seed), cost="thread"),
        spec("worker", partial(_in_worker, seed), cost="worker", workers=_WORKERS),
    ]

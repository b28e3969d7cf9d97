"""A whole rollout on the virtual clock: what it takes, and where it waits.

    settings ─▶ draws ─▶ the real engine, dispatcher, sessions, collector, journal
                          │ replicas that only wait, a world that only counts
                          └▶ figures, timeline, event digest, trace

Everything but the backend and the world is what a real run has: permits, mailboxes,
messages as bytes, deadlines, supervision, and a journal on a real file (without fsync,
which would measure this machine's disk). Our own work takes no virtual time, so the
figures are those of an engine without cost: `cpu_seconds` is what it did cost.

Invariants: the same settings give the same digest, in any process; every admitted
episode has one `end`; `wall_seconds` is at least the lower bound.

Not here: the models (`draws`, `replicas`, `world`), bounds (`bounds`), what breaks
(`injection`), and crashes with resume (`drill`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ...engine.disk import Disk
from ...engine.errors import ConfigError
from ...engine.journal import Journal
from ...engine.testing import run_simulated
from ...engine.trajectory import Outcome, Trajectory
from ...engine.virtual_clock import VirtualClock
from ...envs.base import Task
from ...envs.hosting import Host, Hosted, InlineHost
from ...envs.rebuilding import Rebuilding
from ..backends.base import Backend
from ..embedding import Engine, EngineSettings, open_engine
from ..monitor import Snapshot, Watch
from ..policy_source import PolicySource
from ..protocol import Sampling
from .bounds import Demand, LowerBound, lock_step_seconds
from .draws import Draws, Latencies
from .events import Events
from .replicas import ReplicaBackend
from .timeline import Point, Timeline
from .world import LatencyHost, Pace, world

if TYPE_CHECKING:
    from .fault_plan import FaultPlan
    from .injection import Injector

_LOOK_SECONDS: Final = 0.25
"""Real seconds between two snapshots for who watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """What is simulated."""

    sessions: int
    """Episodes in all, one a task."""
    latencies: Latencies
    concurrency: int = 1024
    """Live sessions at most."""
    replicas: int = 1
    batch: int = 256
    """Slots of each replica; 0 = without bound."""
    seed: int = 0
    turn_seconds: float = 120.0
    episode_seconds: float = 3600.0
    faults: FaultPlan | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the option."""
        for key, least in (("sessions", 1), ("concurrency", 1), ("replicas", 1), ("batch", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key} must be at least {least}, not {getattr(self, key)}")
        if self.replicas > 1 and not self.batch:
            raise ConfigError(
                "several replicas make a difference only where each has a bound: give --batch"
            )

    @property
    def slots(self) -> int:
        """Requests that are served at once, at most; 0 = without bound."""
        return self.replicas * self.batch


@dataclass(frozen=True, slots=True)
class Queue:
    """How full a queue was."""

    capacity: int
    """0 = without bound."""
    peak: int
    peak_waiting: int
    """Most that waited for room in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """The figures of a simulation; seconds are virtual unless they say CPU."""

    digest: str
    events: int
    sessions: int
    turns: int
    concurrency: int
    replicas: int
    batch: int
    wall_seconds: float
    cpu_seconds: float
    turns_per_second: float
    episodes_per_second: float
    batch_fill: float | None
    """Mean share of the slots in use; None where they are without bound."""
    running_mean: float
    """Mean requests in service."""
    waiting_mean: float
    """Mean requests without a slot."""
    lower_bound_seconds: float
    bounds: LowerBound
    efficiency: float
    """lower_bound_seconds / wall_seconds."""
    limit: str
    """Which bound is the largest: what to have more of."""
    lock_step_seconds: float | None
    """The same draws in lock-step groups; None where faults changed what was played."""
    outcomes: Mapping[str, int]
    faults: Mapping[str, int]
    """Faulted episodes by kind."""
    struck: Mapping[str, int]
    """Injected faults by `boundary.kind`."""
    resumed: int
    restarted: int
    restarts: Mapping[str, int]
    """Of the cast, by name."""
    queues: Mapping[str, Queue]
    """`inference`, `collector` and `dispatcher` are mailboxes; `batch` is the requests
    without a slot; `permits` the live sessions."""
    journal_bytes: int
    timeline: list[Point] = field(repr=False)


class _WithoutSync(Disk):
    """The real disk, whose fsync would take real time and prove nothing here."""

    def sync(self, descriptor: int) -> None:
        """Nothing."""

    def sync_directory(self, path: Path) -> None:
        """Nothing."""


class _DrawnPace(Pace):
    """The world's share of the draws; notes what came to its end."""

    def __init__(self, draws: Draws, demand: Demand, events: Events) -> None:
        self._draws = draws
        self._demand = demand
        self._events = events

    def reset(self, task: Task) -> float:
        return self._draws.open[task.index]

    def step(self, task: Task, turn: int) -> float:
        return self._draws.step[self._draws.first(task.index) + turn]

    def was_reset(self, task: Task) -> None:
        self._demand.episodes[task.index] += self._draws.open[task.index]

    def was_stepped(self, task: Task, turn: int) -> None:
        self._demand.episodes[task.index] += self.step(task, turn)
        self._events("turn", task.index, turn)


class _RebuildingHost(Host):
    """Sessions as environment workers give them: one whose process dies goes on in another."""

    def __init__(self, inner: Host) -> None:
        self._inner = inner

    async def open(self) -> Hosted:
        session = Rebuilding(self._inner.open, replay=True)
        await session.open()
        return session


class _Simulation:
    """One simulation while it runs."""

    def __init__(
        self, settings: SimulationSettings, draws: Draws, events: Events, watch: Watch | None
    ) -> None:
        self.settings = settings
        self.draws = draws
        self.events = events
        self.demand = Demand(settings.sessions)
        self.timeline = Timeline()
        self.injector = _injector(settings.faults)
        self._watch = watch
        self._looked = 0.0
        self.snapshot: Snapshot
        self.queues: dict[str, Queue] = {}
        self.restarts: dict[str, int] = {}
        self.journal_bytes = 0
        self.seconds = 0.0

    def _backend(self, version: int, _path: str) -> Backend:
        settings = self.settings
        return ReplicaBackend(
            self.draws,
            settings.replicas,
            settings.batch,
            settings.latencies.generate.per_request,
            self.demand,
            self.timeline,
            self.events,
            version,
        )

    async def run(self, directory: Path) -> None:
        """Play every episode."""
        settings, injector = self.settings, self.injector
        make, disk = self._backend, _WithoutSync()
        spec = world(settings.sessions, self.draws.turns, self.draws.longest)
        pace = _DrawnPace(self.draws, self.demand, self.events)
        host: Host = LatencyHost(InlineHost(spec.make), pace)
        source = PolicySource(
            kind="model",
            name="simulated",
            make_backend=injector.backend(make) if injector else make,
        )
        limits = EngineSettings(
            concurrency=settings.concurrency,
            seed=settings.seed,
            turn_seconds=settings.turn_seconds,
            episode_seconds=settings.episode_seconds,
        )
        async with (
            await Journal.open(
                directory / "journal", disk=injector.disk(disk) if injector else disk
            ) as journal,
            open_engine(source, settings=limits, observe=self.events.observe) as engine,
            trio.open_nursery() as nursery,
        ):
            engine.use(spec, _RebuildingHost(injector.host(host)) if injector else host)
            if injector is not None:
                nursery.start_soon(injector.disturb, engine)
            await self._play(engine, spec.tasks("test"), journal)
            self.journal_bytes = journal.statistics().length
            nursery.cancel_scope.cancel()

    async def _play(self, engine: Engine, tasks: list[Task], journal: Journal) -> None:
        began = trio.current_time()
        self.timeline.live = lambda: engine.permits.held
        rollout = engine.rollout(tasks, sampling=Sampling(max_tokens=4), journal=journal)
        timeline = self.timeline
        async with rollout:
            async for first in rollout:
                timeline.advance(trio.current_time())
                self._ended(first)
                for trajectory in rollout.ready():
                    self._ended(trajectory)
                now = time.monotonic()
                if self._watch is not None and now - self._looked >= _LOOK_SECONDS:
                    self._looked = now
                    stage = f"simulated {trio.current_time() - began:,.0f} s"
                    self._watch(rollout.snapshot(stage))
            self.seconds = trio.current_time() - began
            timeline.advance(trio.current_time())
            self.snapshot = rollout.snapshot()
        self._count(engine)

    def _ended(self, trajectory: Trajectory) -> None:
        fault = trajectory.fault.kind.value if trajectory.fault is not None else ""
        number = int(trajectory.task_id.rpartition("_")[2])
        self.events("end", number, trajectory.outcome.value, len(trajectory.turns), fault)

    def _count(self, engine: Engine) -> None:
        """Take the figures of the queues, before the cast goes."""
        for name, statistics in engine.statistics().items():
            box = statistics.mailbox
            self.queues[name] = Queue(box.capacity, box.peak_size, box.peak_waiting)
            self.restarts[name] = statistics.restarts
        permits = engine.permits.statistics()
        self.queues["permits"] = Queue(permits.size, permits.peak_held, permits.peak_waiting)
        self.queues["batch"] = Queue(0, self.timeline.peak_waiting, 0)


def simulate(
    settings: SimulationSettings, *, trace: Path | None = None, watch: Watch | None = None
) -> Simulated:
    """Run one simulation.

    Args:
        settings: what is simulated.
        trace: every event is written there, a JSON object a line.
        watch: told a snapshot a few times a (real) second.

    Raises:
        ConfigError: the settings cannot work.
        StorageFailed: the trace or the journal cannot be written.
        RestartLimitExceeded: the plan's faults took the engine down.
    """
    cpu = time.process_time()
    draws = Draws(settings.latencies, settings.sessions, settings.seed)
    with tempfile.TemporaryDirectory(prefix="rollwave-") as directory, Events(trace) as events:
        simulation = _Simulation(settings, draws, events, watch)
        run_simulated(
            simulation.run,
            Path(directory),
            seed=settings.seed,
            interruptible=True,
            clock=VirtualClock(),
        )
        digest = events.digest()
    return _figures(simulation, digest, cpu)


def _figures(simulation: _Simulation, digest: str, cpu: float) -> Simulated:
    settings, timeline, snapshot = simulation.settings, simulation.timeline, simulation.snapshot
    seconds = simulation.seconds
    bound = simulation.demand.lower_bound(settings.concurrency, settings.slots)
    lock_step = None
    if simulation.injector is None and set(snapshot.outcomes) == {Outcome.SUCCESS.value}:
        lock_step = lock_step_seconds(
            simulation.draws,
            settings.concurrency,
            settings.replicas,
            settings.batch,
            settings.latencies.generate.per_request,
        )
    share = _share(seconds)
    return Simulated(
        digest=digest,
        events=simulation.events.count,
        sessions=settings.sessions,
        turns=snapshot.turns,
        concurrency=settings.concurrency,
        replicas=settings.replicas,
        batch=settings.batch,
        wall_seconds=seconds,
        cpu_seconds=time.process_time() - cpu,
        turns_per_second=share(snapshot.turns),
        episodes_per_second=share(snapshot.episodes_done),
        batch_fill=share(timeline.running_seconds) / settings.slots if settings.slots else None,
        running_mean=share(timeline.running_seconds),
        waiting_mean=share(timeline.waiting_seconds),
        lower_bound_seconds=bound.seconds,
        bounds=bound,
        efficiency=bound.seconds / seconds if seconds else 1.0,
        limit=bound.limit,
        lock_step_seconds=lock_step,
        outcomes=dict(snapshot.outcomes),
        faults=dict(snapshot.faults),
        struck=dict(simulation.injector.struck) if simulation.injector else {},
        resumed=snapshot.resumed,
        restarted=snapshot.restarted,
        restarts=simulation.restarts,
        queues=simulation.queues,
        journal_bytes=simulation.journal_bytes,
        timeline=timeline.points,
    )


def _share(seconds: float) -> Callable[[float], float]:
    """Per second; 0 where no time passed at all."""
    return lambda amount: amount / seconds if seconds else 0.0


def _injector(plan: FaultPlan | None) -> Injector | None:
    if plan is None:
        return None
    from .injection import Injector

    return Injector(plan)

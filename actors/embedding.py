"""The engine as others embed it: open it, give it tasks, stream trajectories.

    async with rollwave.open_engine(policy="models/base") as engine:
        async for trajectory in engine.rollout(engine.tasks("textcraft-v1", "test")):
            ...

`open_engine` wires the cast under one supervisor: collector, inference (if a
model acts), dispatcher. There is no global state: any number of engines can be
open at once, each with its own seed, permits and backend.

Invariants: leaving the block stops every session, in reverse order of start,
within the shutdown deadline; a rollout yields each of its episodes exactly once;
a slow consumer slows the sessions down and loses nothing.

Not here: evolution (`campaign`), asyncio (`guest`), the command line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import trio

from ..engine.actor import Actor
from ..engine.blocking import simulated
from ..engine.clock import rolling_deadline
from ..engine.codec import Message
from ..engine.errors import ActorDead, ActorRestarted, ConfigError
from ..engine.journal import Journal
from ..engine.permits import Permits
from ..engine.ref import ActorRef, ActorStatistics
from ..engine.supervisor import ChildSpec, LifecycleEvent
from ..engine.system import ActorSystem
from ..engine.trajectory import Trajectory
from ..envs.base import EnvSpec, Task
from ..envs.formats import get_format
from ..envs.hosting import Host, Hosted, InlineHost, ThreadHost, closing
from ..envs.registry import resolve
from ..envs.worker.host import Owner, WorkerHost
from .collector import Collector
from .dispatcher import Dispatcher, trajectory_id
from .episode import SessionSettings
from .inference import Inference, PolicyHolder
from .ledger import Ledger, RolloutBook
from .policies import ExpertPolicy, ModelPolicy, Policy, RandomPolicy
from .policy_source import PolicySource, policy_source
from .protocol import Accepted, CancelRollout, Opening, RunRollout, Sampling, TurnTaken
from .rollout import Rollout as Rollout
from .turnlog import TurnLog
from .weights import PUBLISH_SECONDS, publish

_CONTROL_SECONDS: Final = 60.0
"""Deadline of a control message (begin or cancel a rollout)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits of one engine; every deadline is finite unless set otherwise."""

    concurrency: int = 64
    """Live sessions at most."""
    seed: int = 0
    turn_seconds: float = 120.0
    episode_seconds: float = 3600.0
    swap_seconds: float = PUBLISH_SECONDS
    """Of a weight swap: running requests end, the weights are loaded."""
    shutdown_seconds: float = 10.0
    workers: int = 0
    """Run each environment in this many worker processes; 0 = where, and in as many, as the
    environment says (`EnvSpec.cost`)."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the key."""
        if self.concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {self.concurrency}")
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 or more, not {self.workers}")
        for key in ("turn_seconds", "episode_seconds", "swap_seconds", "shutdown_seconds"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key} must be above 0, not {getattr(self, key)}")


class Engine:
    """A running cast. Made by `open_engine`, used in the task that opened it or its children."""

    def __init__(
        self,
        settings: EngineSettings,
        source: PolicySource,
        ledger: Ledger,
        permits: Permits,
        dispatcher: ActorRef,
        inference: ActorRef | None,
        holder: PolicyHolder | None,
        collector: ActorRef | None = None,
        workers: Owner | None = None,
        made: list[Host] | None = None,
    ) -> None:
        self.settings: Final = settings
        self.source: Final = source
        self.inference: Final = inference
        self.permits: Final = permits
        self.ledger: Final = ledger
        self._dispatcher = dispatcher
        self._cast = {"collector": collector, "inference": inference, "dispatcher": dispatcher}
        self._holder = holder
        self._workers = workers or Owner()
        self._specs: dict[str, EnvSpec] = {}
        self._hosts: dict[str, Host] = {}
        self._made = made if made is not None else []
        # The permits bound threads already.
        self._threads = trio.CapacityLimiter(math.inf)

    def actor(self, name: str) -> ActorRef | None:
        """An actor of the cast: "collector", "dispatcher", "inference"; None if it has none."""
        return self._cast.get(name)

    def spec(self, env: str) -> EnvSpec:
        """The environment of that id, resolved once.

        Raises:
            UnknownEnvironment, ConfigError: see `envs.registry.resolve`.
        """
        if env not in self._specs:
            self._specs[env] = resolve(env)
        return self._specs[env]

    def tasks(self, env: str, split: str, *, limit: int | None = None) -> list[Task]:
        """The tasks of one split of an environment."""
        return self.spec(env).tasks(split, limit=limit)

    def use(self, spec: EnvSpec, host: Host | None = None) -> EnvSpec:
        """Make an environment known to this engine alone, without the registry.

        Args:
            spec: rollouts begun from now on take it for its id.
            host: opens its sessions, and is closed by who made it; None = one as its cost
                class says, which the engine closes at its end.
        """
        self._specs[spec.id] = spec
        self._hosts.pop(spec.id, None)
        if host is not None:
            self._hosts[spec.id] = host
        return spec

    def host(self, spec: EnvSpec) -> Host:
        """Where the sessions of an environment run, by its cost class.

        Raises:
            ConfigError: worker processes cannot make it, or have too few seats.
            MissingDependency: the machine lacks what it needs.
        """
        if spec.id not in self._hosts:
            self._hosts[spec.id] = self._new_host(spec)
            self._made.append(self._hosts[spec.id])
        return self._hosts[spec.id]

    def _new_host(self, spec: EnvSpec) -> Host:
        if spec.host is not None:
            return spec.host()
        if spec.needs is not None:
            spec.needs()
        cost = "worker" if self.settings.workers else spec.cost
        if cost == "inline" or (cost == "worker" and simulated()):  # processes take real time
            return InlineHost(spec.make)
        if cost == "thread":
            return ThreadHost(spec.make, self._threads)
        limits = replace(spec.workers, workers=self.settings.workers or spec.workers.workers)
        host = WorkerHost(self._workers, spec, limits)
        if host.seats < self.settings.concurrency:
            raise ConfigError(
                f"{self.settings.concurrency} live sessions of {spec.id} do not fit in "
                f"{host.processes} worker processes of {limits.sessions_per_worker} sessions "
                "each: lower the concurrency, or raise workers or sessions_per_worker"
            )
        return host

    def rollout(
        self,
        tasks: Sequence[Task],
        *,
        attempts: int = 1,
        wave: int = 0,
        sampling: Sampling | None = None,
        turn_limit: int = 0,
        journal: Journal | None = None,
        skip: Sequence[str] = (),
        resume: Mapping[str, Sequence[TurnTaken]] | None = None,
        openings: Mapping[str, Opening] | None = None,
    ) -> Rollout:
        """Play every task `attempts` times; iterate over the result to start it.

        Args:
            tasks: what to play, of any number of environments.
            attempts: episodes a task; each has its own seed, below the task's.
            wave: names the episodes and seeds them; give each rollout its own.
            sampling: how completions are drawn; greedy by default.
            turn_limit: turns an episode may take; 0 = the environment's own limit.
            journal: where each record is made durable before it is yielded.
            skip: trajectory ids that exist already (resume); they are not played.
            resume: turns of episodes that had begun before a crash, by trajectory id
                (`turnlog.read_progress`): they go on behind them.
            openings: turns of somebody else's, by trajectory id: these episodes go on behind
                them, or are faults where they cannot be rebuilt.

        Raises:
            ConfigError: `attempts` is below 1, or two tasks have the same id.
        """
        if attempts < 1:
            raise ConfigError(f"attempts must be at least 1, not {attempts}")
        repeated = [id_ for id_, n in Counter(task.id for task in tasks).items() if n > 1]
        if repeated:
            raise ConfigError(f"task {repeated[0]} is given twice; use attempts to repeat tasks")
        sampling = sampling or Sampling(temperature=0.0)
        live: dict[str, rolling_deadline] = {}
        turn_log = TurnLog(journal, self.ledger.stir) if journal is not None else None
        settings = {
            env: self._session_settings(self.spec(env), sampling, turn_limit, turn_log, live)
            for env in dict.fromkeys(task.env for task in tasks)
        }
        skipped = frozenset(skip)
        planned = sum(
            trajectory_id(wave, task.id, attempt) not in skipped
            for task in tasks
            for attempt in range(attempts)
        )
        send, receive = trio.open_memory_channel[Trajectory](math.inf)
        book = RolloutBook(
            settings, planned, send, journal, dict(resume or {}), openings or {}, live
        )
        number = self.ledger.open_book(book)
        order = RunRollout(
            number, tuple(tasks), attempts, wave, self.settings.seed, sampling, tuple(skip)
        )
        return Rollout(self, order, book, receive)

    def _session_settings(
        self,
        spec: EnvSpec,
        sampling: Sampling,
        turn_limit: int,
        turn_log: TurnLog | None,
        live: dict[str, rolling_deadline],
    ) -> SessionSettings:
        source = self.source
        action_format = get_format(spec.action_format)
        inference = self.inference

        def make_policy(environment: Hosted) -> Policy:
            if source.kind == "expert":
                return ExpertPolicy(environment, action_format)
            if source.kind == "random":
                return RandomPolicy(environment, action_format)
            assert inference is not None  # open_engine starts it for every other kind
            return ModelPolicy(inference, sampling, source.renderer, source.context)

        return SessionSettings(
            spec=spec,
            host=self.host(spec),
            action_format=action_format,
            policy_name=source.name,
            make_policy=make_policy,
            temperature=sampling.temperature,
            turn_limit=turn_limit,
            turn_seconds=self.settings.turn_seconds,
            episode_seconds=self.settings.episode_seconds,
            turn_log=turn_log,
            live=live,
        )

    async def begin(self, order: RunRollout) -> None:
        """Hand a rollout to the dispatcher."""
        await self._control(order)

    async def cancel(self, rollout: int) -> None:
        """Stop a rollout's sessions; their records still reach its stream."""
        await self._control(CancelRollout(rollout))

    async def _control(self, message: Message) -> None:
        while True:
            try:
                await self._dispatcher.ask(message, Accepted, timeout=_CONTROL_SECONDS)
            except ActorRestarted:
                continue  # both may be repeated
            except ActorDead:
                await _reason()
                raise
            return

    def statistics(self) -> dict[str, ActorStatistics]:
        """What each of the cast did so far, its mailbox's peaks among it, by name."""
        return {name: ref.statistics() for name, ref in self._cast.items() if ref is not None}

    def batch_fill(self) -> float:
        """Mean share of the inference batch in use; 0 where it is unbounded or no model acts."""
        return self._holder.batch_fill if self._holder is not None else 0.0

    async def swap_weights(self, version: int, path: str) -> None:
        """Serve the weights of this model directory from now on, as that policy version.

        Raises:
            ConfigError: no model acts in this engine.
            WeightSwapFailed: they could not be loaded; the old version still serves.
        """
        if self.inference is None or self._holder is None:
            raise ConfigError(f"the policy {self.source.name!r} has no weights to swap")
        try:
            seconds = self.settings.swap_seconds
            await publish(self.inference, self._holder, version, path, seconds=seconds)
        except ActorDead:
            await _reason()
            raise


@asynccontextmanager
async def open_engine(
    policy: str | PolicySource = "expert",
    *,
    concurrency: int = 64,
    seed: int = 0,
    settings: EngineSettings | None = None,
    observe: Callable[[LifecycleEvent], None] | None = None,
) -> AsyncIterator[Engine]:
    """Open an engine under trio.

    Args:
        policy: "expert", "random", a Hugging Face model directory, the URL of an
            OpenAI-compatible server, or a `PolicySource`.
        concurrency: live sessions at most.
        seed: the root of every seed in this engine.
        settings: all limits; replaces `concurrency` and `seed`.
        observe: told each start and end of an actor; it must not block or raise.

    Raises:
        ConfigError: the policy or a limit cannot work.
        MissingDependency: the backend's package is not installed.
        RestartLimitExceeded: the backend died again and again; the block is cancelled.
    """
    limits = settings or EngineSettings(concurrency=concurrency, seed=seed)
    source = policy if isinstance(policy, PolicySource) else policy_source(policy)
    ledger, permits = Ledger(), Permits(limits.concurrency)
    system = ActorSystem(
        seed=limits.seed, shutdown_seconds=limits.shutdown_seconds, observe=observe
    )
    made: list[Host] = []
    async with closing(made), _closing(ledger), system:

        async def start(name: str, factory: Callable[[], Actor]) -> ActorRef:
            return await system.start(ChildSpec(name=name, factory=factory))

        inference, holder, workers = None, None, Owner()
        await start("workers", workers.actor)
        collector = await start("collector", lambda: Collector(ledger))
        make_backend = source.make_backend
        if make_backend is not None:
            holder = PolicyHolder(0, source.path)
            serving = holder
            inference = await start("inference", lambda: Inference(make_backend, serving))
        dispatcher = await start("dispatcher", lambda: Dispatcher(ledger, permits, collector))
        yield Engine(
            limits,
            source,
            ledger,
            permits,
            dispatcher,
            inference,
            holder,
            collector,
            workers,
            made,
        )


async def _reason() -> None:
    """Give way to the cancellation, if the engine gave up: what it gave up for is the error
    to tell, and a dead actor only follows from it."""
    await trio.lowlevel.checkpoint()


@asynccontextmanager
async def _closing(ledger: Ledger) -> AsyncIterator[None]:
    """At the end, tell those who still iterate that nothing more will come."""
    try:
        yield
    finally:
        for book in ledger.books.values():
            if not (book.complete and book.delivered == book.ended):
                book.fail(ActorDead("the engine closed before the rollout had ended"))

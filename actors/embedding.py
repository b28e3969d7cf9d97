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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import trio

from ..engine.actor import Actor
from ..engine.codec import Message
from ..engine.errors import ActorDead, ActorRestarted, ConfigError
from ..engine.journal import Journal
from ..engine.permits import Permits
from ..engine.ref import ActorRef
from ..engine.supervisor import ChildSpec
from ..engine.system import ActorSystem
from ..engine.trajectory import Outcome, Trajectory
from ..envs.base import Environment, EnvSpec, Task
from ..envs.formats import get_format
from ..envs.registry import resolve
from .collector import Collector
from .dispatcher import Dispatcher, trajectory_id
from .inference import Inference, PolicyHolder
from .ledger import Ledger, RolloutBook
from .monitor import Snapshot
from .policies import ExpertPolicy, ModelPolicy, Policy, RandomPolicy
from .policy_source import PolicySource, policy_source
from .protocol import Accepted, CancelRollout, RunRollout, Sampling
from .session import SessionSettings
from .weights import publish

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
    shutdown_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the key."""
        if self.concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {self.concurrency}")
        for key in ("turn_seconds", "episode_seconds", "shutdown_seconds"):
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
    ) -> None:
        self.settings: Final = settings
        self.source: Final = source
        self.inference: Final = inference
        self.permits: Final = permits
        self.ledger: Final = ledger
        self._dispatcher = dispatcher
        self._holder = holder
        self._specs: dict[str, EnvSpec] = {}
        self._threads = trio.CapacityLimiter(math.inf)

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

    def use(self, spec: EnvSpec) -> EnvSpec:
        """Make an environment known to this engine alone, without the registry."""
        self._specs[spec.id] = spec
        return spec

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

        Raises:
            ConfigError: `attempts` is below 1, or two tasks have the same id.
        """
        if attempts < 1:
            raise ConfigError(f"attempts must be at least 1, not {attempts}")
        repeated = [id_ for id_, n in Counter(task.id for task in tasks).items() if n > 1]
        if repeated:
            raise ConfigError(f"task {repeated[0]} is given twice; use attempts to repeat tasks")
        sampling = sampling or Sampling(temperature=0.0)
        settings = {
            env: self._session_settings(self.spec(env), sampling, turn_limit)
            for env in dict.fromkeys(task.env for task in tasks)
        }
        skipped = frozenset(skip)
        planned = sum(
            trajectory_id(wave, task.id, attempt) not in skipped
            for task in tasks
            for attempt in range(attempts)
        )
        send, receive = trio.open_memory_channel[Trajectory](math.inf)
        book = RolloutBook(settings, planned, send, journal)
        number = self.ledger.open_book(book)
        order = RunRollout(
            number, tuple(tasks), attempts, wave, self.settings.seed, sampling, tuple(skip)
        )
        return Rollout(self, order, book, receive)

    def _session_settings(
        self, spec: EnvSpec, sampling: Sampling, turn_limit: int
    ) -> SessionSettings:
        source = self.source
        action_format = get_format(spec.action_format)
        inference = self.inference

        def make_policy(environment: Environment) -> Policy:
            if source.kind == "expert":
                return ExpertPolicy(environment, action_format)
            if source.kind == "random":
                return RandomPolicy(environment, action_format)
            assert inference is not None  # open_engine starts it for every other kind
            return ModelPolicy(inference, sampling, source.renderer, source.context)

        return SessionSettings(
            spec=spec,
            action_format=action_format,
            policy_name=source.name,
            make_policy=make_policy,
            temperature=sampling.temperature,
            turn_limit=turn_limit,
            turn_seconds=self.settings.turn_seconds,
            episode_seconds=self.settings.episode_seconds,
            threads=self._threads,
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
            await publish(self.inference, self._holder, version, path)
        except ActorDead:
            await _reason()
            raise


class Rollout:
    """The trajectories of one rollout, in the order in which they end.

    Iterate over it; leaving an `async with` on it early cancels what still runs.
    """

    def __init__(
        self,
        engine: Engine,
        order: RunRollout,
        book: RolloutBook,
        stream: trio.MemoryReceiveChannel[Trajectory],
    ) -> None:
        self._engine = engine
        self._order = order
        self._book = book
        self._stream = stream
        self._begun = False
        self._started = trio.current_time()

    @property
    def planned(self) -> int:
        """Episodes of this rollout in all, without those skipped."""
        return self._book.planned

    def snapshot(self, stage: str = "") -> Snapshot:
        """The figures of this moment."""
        book = self._book
        scored = sum(n for outcome, n in book.outcomes.items() if outcome.scored)
        elapsed = trio.current_time() - self._started
        return Snapshot(
            stage=stage,
            sessions_live=len(book.open),
            episodes_done=book.ended,
            episodes_total=book.planned,
            turns=book.turns,
            turns_per_second=book.turns / elapsed if elapsed > 0 else 0.0,
            batch_fill=self._engine.batch_fill(),
            outcomes={outcome.value: n for outcome, n in book.outcomes.items()},
            success_rate=book.outcomes[Outcome.SUCCESS] / scored if scored else None,
        )

    def __aiter__(self) -> Self:
        """Iterate; a rollout can be iterated once, and is closed at its end."""
        return self

    async def __anext__(self) -> Trajectory:
        """The next trajectory to end."""
        if not self._begun:
            self._begun = True
            self._started = trio.current_time()
            if self._book.planned == 0:
                self._book.stream.close()
            else:
                await self._engine.begin(self._order)
        try:
            trajectory = await self._stream.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            await self.aclose()  # where it ended early, its sessions still run
            if self._book.error is not None:
                raise self._book.error from None
            raise StopAsyncIteration from None
        self._book.take()
        return trajectory

    def ready(self) -> list[Trajectory]:
        """What has ended already, without waiting."""
        trajectories: list[Trajectory] = []
        while True:
            try:
                trajectories.append(self._stream.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                self._book.take(len(trajectories))
                return trajectories

    async def aclose(self) -> None:
        """Cancel what still runs, and wait until it has ended, also when cancelled; finished
        records that were not yet taken are dropped here (a journal has them)."""
        self._stream.close()
        self._book.cancel()
        try:
            if self._begun and not self._book.complete:
                # Shielded: the mailbox skips an ask whose asker has gone. It is short, since
                # sessions are cancelled, and has the deadline of a control message.
                with trio.CancelScope(shield=True), suppress(ActorDead):
                    await self._engine.cancel(self._order.rollout)
        finally:
            # Whatever happened: nothing may reach a closed journal.
            self._engine.ledger.close_book(self._order.rollout)

    async def __aenter__(self) -> Self:
        """Enter; `async with` guarantees the cancellation of what was not iterated."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what still runs."""
        await self.aclose()


@asynccontextmanager
async def open_engine(
    policy: str | PolicySource = "expert",
    *,
    concurrency: int = 64,
    seed: int = 0,
    settings: EngineSettings | None = None,
) -> AsyncIterator[Engine]:
    """Open an engine under trio.

    Args:
        policy: "expert", "random", a Hugging Face model directory, the URL of an
            OpenAI-compatible server, or a `PolicySource`.
        concurrency: live sessions at most.
        seed: the root of every seed in this engine.
        settings: all limits; replaces `concurrency` and `seed`.

    Raises:
        ConfigError: the policy or a limit cannot work.
        MissingDependency: the backend's package is not installed.
        RestartLimitExceeded: the backend died again and again; the block is cancelled.
    """
    limits = settings or EngineSettings(concurrency=concurrency, seed=seed)
    source = policy if isinstance(policy, PolicySource) else policy_source(policy)
    ledger, permits = Ledger(), Permits(limits.concurrency)
    system = ActorSystem(seed=limits.seed, shutdown_seconds=limits.shutdown_seconds)
    async with _closing(ledger), system:

        async def start(name: str, factory: Callable[[], Actor]) -> ActorRef:
            return await system.start(ChildSpec(name=name, factory=factory))

        inference, holder = None, None
        collector = await start("collector", lambda: Collector(ledger))
        make_backend = source.make_backend
        if make_backend is not None:
            holder = PolicyHolder(0, source.path)
            serving = holder
            inference = await start("inference", lambda: Inference(make_backend, serving))
        dispatcher = await start("dispatcher", lambda: Dispatcher(ledger, permits, collector))
        yield Engine(limits, source, ledger, permits, dispatcher, inference, holder)


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

"""Plays one fault plan: the scenario's campaign under it, killed and begun again until done.

    play(FaultPlan.parse(text), directory) → Story        (in virtual time)

Each run of the command is a trio run of its own, on one directory. A killed one is frozen:
the directory is set back to what it was in that moment, whatever the torn-down cast still
wrote. In the end the finished command is run once more, which must change nothing.

Invariant: the same plan and scenario give the same story, event for event.

Not here: what must hold of a story (`invariants`), and many plans (`benchmarks/torture`).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import trio

from ...engine.disk import Disk
from ...engine.errors import ActorDead, AskFailed, LearnerError, StoreError, storage_error
from ...engine.incarnation import sole
from ...engine.ref import ActorRef
from ...engine.seeds import derive
from ...engine.store import Store
from ...engine.supervisor import ChildSpec
from ...engine.system import ActorSystem
from ...engine.testing import run_simulated
from ...engine.trajectory import Trajectory
from ...envs.hosting import InlineHost
from ..embedding import Engine, EngineSettings, open_engine
from ..inference import MakeBackend
from ..learner import learner_error, stage_of
from ..ledger import RolloutBook
from ..policy_source import PolicySource
from ..protocol import PolicyUpdated, Sampling, UpdatePolicy
from ..rollout import Rollout
from ..turnlog import read_progress
from ..waves import WavePlan, play_wave
from .fault_plan import FaultPlan
from .injection import Injector
from .scenario import (
    Scenario,
    ScriptedLearner,
    corridor,
    read_weights,
    source,
    write_model,
)
from .story import ProcessStory, RolloutStory, Story

EVER: Final = 1e7
"""Virtual seconds: far beyond every deadline there is. What takes longer, hangs."""

_AGAIN: Final = 3
"""Runs of the command beyond those that are struck; the first of them must end it."""

_WAVE_SECONDS: Final = 3600.0


class QuickDisk(Disk):
    """A disk whose fsyncs cost nothing: which of them happened is `FaultyDisk`'s to know."""

    def sync(self, descriptor: int) -> None:
        """Nothing to wait for."""

    def sync_directory(self, path: Path) -> None:
        """Nothing to wait for."""


def play(plan: FaultPlan, directory: Path, scenario: Scenario | None = None) -> Story:
    """Play a plan in an empty directory, to its end.

    The schedule of each process is seeded by the plan's seed.
    """
    story = Story(plan)
    scenario = scenario or Scenario()
    for number in range(plan.processes + _AGAIN):
        process = _Process(plan, number, directory, scenario).run()
        story.processes.append(process)
        if process.ended == "stuck":
            return story
        if process.ended == "done":
            break
    else:
        return story
    again = _Process(FaultPlan(seed=plan.seed), len(story.processes), directory, scenario)
    story.processes.append(again.run())
    with Store.open(directory, exclusive=False) as store:
        story.waves = {info.number: store.read(info.number) for info in store.waves()}
    story.weights = {
        version: read_weights(_model(directory, version)) for version in range(scenario.waves + 1)
    }
    return story


class _Process:
    """One run of the command, on the virtual clock."""

    def __init__(self, plan: FaultPlan, number: int, directory: Path, scenario: Scenario) -> None:
        self._directory = directory
        self._scenario = scenario
        self._schedule = derive(plan.seed, "process", number)
        self._story = ProcessStory(number, directory=str(directory))
        self._injector = Injector(plan, process=number)
        self._injector.crash = self._crash
        self._disk = self._injector.disk(QuickDisk())
        self._frozen: dict[Path, bytes | None] | None = None
        self._everything: trio.CancelScope | None = None
        self._engine: Engine | None = None
        self._books: list[RolloutBook] = []

    def run(self) -> ProcessStory:
        """Run it to whatever end it comes to."""
        story = self._story
        try:
            run_simulated(self._main, seed=self._schedule)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if self._frozen is None:
                story.ended = "stuck" if isinstance(error, trio.TooSlowError) else "failed"
                story.error = sole(error)
        if self._frozen is not None:
            story.ended = "killed"
            _thaw(self._directory, self._frozen)
        story.struck = self._injector.struck
        story.surprises = self._injector.surprises
        self._look()
        return story

    def _look(self) -> None:
        """What is left of it: on the disk, in the books, in use."""
        story, directory = self._story, self._directory
        story.rollouts = [
            RolloutStory(
                book.planned,
                book.admitted,
                book.ended,
                book.delivered,
                tuple(book.open),
                book.error is not None,
                book.cancelled,
            )
            for book in self._books
        ]
        if self._engine is not None:
            story.permits_held = self._engine.permits.statistics().held
        try:
            story.journalled, _ = read_progress(directory / "journal.msgpack")
        except StoreError as error:
            story.damage = str(error)
        story.sealed = {
            int(path.stem.removeprefix("wave-")): path.read_bytes()
            for path in sorted((directory / "waves").glob("wave-*.parquet"))
        }

    def _crash(self, _how: str) -> None:
        """The process dies now: nothing that happens from here on reaches the disk."""
        if self._frozen is None:
            self._frozen = _freeze(self._directory)
            assert self._everything is not None  # strikes come from inside of it
            self._everything.cancel()

    # -- the command --------------------------------------------------------------------

    async def _main(self) -> None:
        counter = _Steps()
        trio.lowlevel.add_instrument(counter)
        story = self._story
        try:
            with trio.fail_after(EVER):
                async with trio.open_nursery() as nursery:
                    self._everything = nursery.cancel_scope
                    with trio.CancelScope() as self._injector.campaign:
                        await self._campaign(nursery)
                        story.ended = "done"
                    if story.ended != "done":
                        story.ended = "cancelled"
                    nursery.cancel_scope.cancel()
        finally:
            story.steps, story.seconds = counter.count, trio.current_time()

    async def _campaign(self, nursery: trio.Nursery) -> None:
        injector, scenario, directory = self._injector, self._scenario, self._directory
        with Store.open(directory, disk=self._disk) as store:
            first = _model(directory, 0)
            if not (first / "config.json").is_file():
                _saving(first, partial(write_model, self._disk, first, scenario.seed))
            async with ActorSystem(seed=scenario.seed) as system:
                injector.cast["learner"] = learner = await system.start(
                    ChildSpec(
                        "learner", lambda: ScriptedLearner(self._disk, injector.training_step)
                    )
                )
                limits = EngineSettings(
                    concurrency=scenario.concurrency,
                    seed=scenario.seed,
                    turn_seconds=30.0,
                    episode_seconds=200.0,
                    swap_seconds=60.0,
                )
                who = source(scenario, first)
                assert who.make_backend is not None
                who = _with_backend(who, injector.backend(who.make_backend))
                async with open_engine(who, settings=limits) as engine:
                    spec = corridor(scenario)
                    engine.use(spec, injector.host(InlineHost(spec.make)))
                    nursery.start_soon(injector.disturb, engine)
                    self._engine = engine
                    for wave in range(1, scenario.waves + 1):
                        await self._wave(engine, store, learner, wave)

    async def _wave(self, engine: Engine, store: Store, learner: ActorRef, number: int) -> None:
        scenario, directory = self._scenario, self._directory
        plan = WavePlan(
            number=number,
            tasks=engine.tasks("corridor-v1", "train"),
            attempts=scenario.attempts,
            sampling=Sampling(1.0, 16),
            policy_version=number - 1,
        )
        witness = cast(Engine, _Witness(engine, self))
        await play_wave(witness, store, plan, seconds=_WAVE_SECONDS)
        out = _model(directory, number)
        order = UpdatePolicy(
            "scripted",
            b"",
            (),
            (str(directory / "waves" / f"wave-{number:04d}.parquet"),),
            {"last": str(_model(directory, number - 1))},
            (),
            str(out),
        )
        if not (out / "config.json").is_file():
            await _learn(learner, order)
        await engine.swap_weights(number, str(out))
        if not self.dead:
            self._story.confirmed.append((trio.current_time(), number))

    # -- what it comes to ----------------------------------------------------------------

    @property
    def dead(self) -> bool:
        """Whether it was killed: what happens now happens nowhere."""
        return self._frozen is not None

    def watch(self, rollout: Rollout) -> None:
        """Keep the book of a rollout."""
        self._books.append(rollout._book)

    async def take(self, record: Trajectory) -> None:
        """Note a record that a rollout gave, and be as slow a consumer as is planned."""
        if not self.dead:
            self._story.yielded.append(record)
        if pause := self._injector.pause(record.id):
            await trio.sleep(pause)


async def _learn(learner: ActorRef, order: UpdatePolicy) -> None:
    """One evolution step, with the errors that a campaign makes of the learner's."""
    try:
        await learner.ask(order, PolicyUpdated)
    except AskFailed as error:
        raise learner_error(order, error) from error
    except ActorDead as error:
        await trio.lowlevel.checkpoint()  # where its supervisor gave up, that is the error
        raise LearnerError(
            f"{stage_of(order)}: the learner died; the same command goes on"
        ) from error


class _Witness:
    """Stands for the engine before `play_wave`, and sees what its rollouts give."""

    def __init__(self, engine: Engine, process: _Process) -> None:
        self._engine = engine
        self._process = process

    def rollout(self, *arguments: Any, **named: Any) -> Rollout:
        """As `Engine.rollout`, watched."""
        rollout = self._engine.rollout(*arguments, **named)
        self._process.watch(rollout)
        return cast(Rollout, _Watched(rollout, self._process))


class _Watched:
    """A rollout whose records are noted."""

    def __init__(self, rollout: Rollout, process: _Process) -> None:
        self._rollout = rollout
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollout, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Trajectory:
        record = await self._rollout.__anext__()
        await self._process.take(record)
        return record

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._rollout.__aexit__(kind, error, traceback)


class _Steps(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def _model(directory: Path, version: int) -> Path:
    return directory / "models" / f"policy-{version:04d}"


def _with_backend(who: PolicySource, make: MakeBackend) -> PolicySource:
    return dataclasses.replace(who, make_backend=make)


def _saving(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise storage_error(error, path) from error


def _freeze(directory: Path) -> dict[Path, bytes | None]:
    """Every file of a directory with its content, and None for each folder."""
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))
    }


def _thaw(directory: Path, frozen: dict[Path, bytes | None]) -> None:
    """Set a directory back."""
    shutil.rmtree(directory)
    directory.mkdir()
    for path, content in frozen.items():
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)

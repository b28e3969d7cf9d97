"""The single stages of a campaign: the base model, the experts' wave, one evolution step.

Invariant: every stage is idempotent. A sealed wave is read, a finished model directory is
kept, and both appear whole or not at all.

Not here: their order (`campaign`, `evolution`), and how a step is trained (`learner`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Final

import msgspec
import trio

from ..engine.blocking import run_blocking
from ..engine.clock import deadline
from ..engine.errors import ActorDead, AskFailed, ConfigError, LearnerError
from ..engine.ref import ActorRef
from ..engine.store import Store
from ..envs.base import EnvSpec
from ..learners.settings import TrainingSettings
from .arena import Curriculum
from .config import CampaignConfig
from .embedding import EngineSettings, open_engine
from .expert_files import require_unchanged, write_record
from .imported import Imported, read_experts
from .learner import learner_error, stage_of
from .monitor import Snapshot, Watch
from .protocol import PolicyUpdated, UpdatePolicy
from .sections import TinySection
from .waves import WavePlan, play_wave, read_sealed

EXPERT_WAVE: Final = 0
"""The main store's wave 0 holds the experts; exploration waves count from 1."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What is settled before anything runs, and what is done step by step."""

    config: CampaignConfig
    out: Path
    tasks: Curriculum
    watch: Watch

    def base_model(self) -> str:
        """The model directory that everything starts from; made here if it is a tiny one."""
        tiny = self.config.model.tiny
        if tiny is None:
            return self.config.model.path
        self.require_vocabulary()
        path = self.model_path("base")
        if not (path / "config.json").is_file():
            _make_tiny(path, self.tasks.spec, tiny, self.config.run.seed)  # whole or not at all
        return str(path)

    def require_vocabulary(self) -> None:
        """Refuse a tiny model of a world whose words are not known.

        Raises:
            ConfigError: it cannot be made.
        """
        spec = self.tasks.spec
        if self.config.model.tiny is not None and not spec.vocabulary:
            raise ConfigError(
                f"model.tiny needs an environment with a closed vocabulary, and {spec.id} has "
                "none: use maze-grid-v1?style=terse, or give model.path"
            )

    async def imports(self) -> Imported | None:
        """Read the files of experts; None where there are none, or wave 0 holds them already.

        Raises:
            BadDataFile: a file is missing, damaged, or in no known format.
            ConfigError: nothing in them can be cloned, or they name too few tasks to explore.
            DeadlineExceeded: it took longer than a wave may.
        """
        if not self.tasks.imports or self.wave_path(EXPERT_WAVE).is_file():
            return None
        stage = "read experts"
        with deadline(stage, self.config.run.wave_seconds):
            self.watch(Snapshot(stage=stage))
            left = Event()
            try:
                found = await run_blocking(
                    read_experts, self.config, self.tasks, left.is_set, abandon_on_cancel=True
                )
            finally:
                left.set()
        self.tasks.following(found.trajectories, self.config)  # refused before there is a run
        return found

    async def experts(self, main: Store, imported: Imported | None = None) -> Stages:
        """Wave 0: what the environment's expert does on the expert tasks, or what was imported.

        Gives the stages with the tasks that are known then.

        Raises:
            ConfigError: the files are not what the run read.
        """
        run = self.config.run
        share = run.max_fault_share
        if not self.tasks.clones:
            return self
        sealed = await read_sealed(main, EXPERT_WAVE, max_fault_share=share)
        if sealed is None and imported is not None:
            await run_blocking(write_record, self.out, imported.record)
            await run_blocking(main.seal, EXPERT_WAVE, 0, imported.trajectories)
            sealed = await read_sealed(main, EXPERT_WAVE)
        elif self.tasks.imports:
            await run_blocking(require_unchanged, self.out, abandon_on_cancel=True)
        if self.tasks.imports:
            assert sealed is not None  # `imports` read them where they were not sealed
            return replace(self, tasks=self.tasks.following(sealed.trajectories, self.config))
        if sealed is not None:
            return self
        plan = WavePlan(
            number=EXPERT_WAVE,
            tasks=self.tasks.experts,
            turn_limit=self.config.environment.turn_limit,
        )
        async with open_engine("expert", settings=self.limits()) as engine:
            await play_wave(
                engine,
                main,
                plan,
                watch=self.watch,
                stage="experts",
                max_fault_share=share,
                seconds=run.wave_seconds,
            )
        return self

    async def clone(
        self, learner: ActorRef, start: str, name: str, settings: TrainingSettings
    ) -> str:
        """Clone the experts from `start` into models/`name`."""
        order = UpdatePolicy(
            "clone",
            msgspec.json.encode(settings),
            self.expert_paths(),
            (),
            {"last": start},
            self.tasks.evaluation,
            str(self.model_path(name)),
        )
        return await self.step(learner, order)

    async def step(self, learner: ActorRef, order: UpdatePolicy) -> str:
        """One evolution step; a finished model directory is the proof that it was done.

        Raises:
            LearnerError, StoreError, ConfigError, DeadlineExceeded: as the learner failed.
        """
        if is_finished(order.out):
            # Its checkpoints, if it was killed just before it removed them.
            await run_blocking(shutil.rmtree, f"{order.out}.training", True)
            return order.out
        try:
            await learner.ask(order, PolicyUpdated)  # the learner owns the deadline
        except AskFailed as error:
            raise learner_error(order, error) from error
        except ActorDead as error:
            await trio.lowlevel.checkpoint()  # where its supervisor gave up, that is the error
            raise LearnerError(
                f"{stage_of(order)}: the learner died ({error}); the same command goes on from "
                "the last checkpoint"
            ) from error
        return order.out

    def limits(self) -> EngineSettings:
        """The limits of every engine of this campaign."""
        run = self.config.run
        return EngineSettings(
            concurrency=run.concurrency,
            workers=run.workers,
            seed=run.seed,
            turn_seconds=run.turn_seconds,
            episode_seconds=run.episode_seconds,
            swap_seconds=run.swap_seconds,
            shutdown_seconds=run.shutdown_seconds,
        )

    def expert_paths(self) -> tuple[str, ...]:
        """Where the experts' wave is; nothing where there are no experts."""
        return (str(self.wave_path(EXPERT_WAVE)),) if self.tasks.clones else ()

    def wave_path(self, number: int) -> Path:
        """Where the main store keeps a wave."""
        return self.out / "waves" / f"wave-{number:04d}.parquet"

    def model_path(self, name: str) -> Path:
        """Where a model directory is."""
        return self.out / "models" / name


def is_finished(model: str | Path) -> bool:
    """Whether the evolution step that writes this model directory was done."""
    return (Path(model) / "training.json").is_file()


def _make_tiny(path: Path, spec: EnvSpec, tiny: TinySection, seed: int) -> None:
    from ..learners.model.tiny import make_tiny_model
    from ..learners.training.directories import atomic_directory

    with atomic_directory(path) as draft:
        make_tiny_model(
            draft, vocabulary=spec.vocabulary, seed=seed, **msgspec.structs.asdict(tiny)
        )

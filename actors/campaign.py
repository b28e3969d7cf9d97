"""The composition root: waves of rollouts, evolution steps between them, one policy at the end.

| loop       | waits for                               | is unblocked by                        |
|------------|-----------------------------------------|----------------------------------------|
| session    | a completion                            | inference, or the turn's deadline      |
| inference  | requests                                | sessions                               |
| dispatcher | a permit, and a consumer not far behind | a session that ended; the consumer     |
| collector  | records; the disk, once for all waiting | sessions; the disk                     |
| learner    | a sealed wave                           | the campaign, when the wave is sealed  |
| campaign   | a wave, then the new policy, then its   | collector; learner; inference, within  |
|            | confirmation by inference               | their deadlines                        |

While the learner holds a wave nothing asks for episodes, so the dispatcher admits
none, and nothing is dropped. One wave m ≥ 1 (algorithms 1.11):

    explore with π_{m-1} → seal → select → train → publish π_m → evaluate → accept or roll back

Invariants:

* every stage is idempotent: a sealed wave is read, a finished model directory is
  kept, so a campaign that was killed anywhere goes on with the same command;
* dev tasks choose, test tasks only report, and neither is ever learned from;
* a wave with too many faults stops the campaign rather than teach from a broken world;
  one without a success ends it with the policies it has, and says so.

Not here: how a wave is played (`arena`, `waves`), how a step is trained (`learner`),
and the rule for stopping (`learners.stopping`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import trio

from ..engine.blocking import run_blocking
from ..engine.errors import ActorDead, AskFailed, ConfigError, EmptyWave, LearnerError
from ..engine.ref import ActorRef
from ..engine.store import Store
from ..engine.supervisor import ChildSpec
from ..engine.system import ActorSystem
from ..envs.base import EnvSpec
from ..learners.settings import TrainingSettings
from ..learners.stopping import Decision, Score, judge
from .arena import Arena, Curriculum, curriculum
from .config import CampaignConfig
from .embedding import EngineSettings, open_engine
from .evaluator import standard_error
from .learner import LearnerActor, learner_error, stage_of
from .monitor import Watch
from .policy_source import policy_source
from .protocol import PolicyUpdated, UpdatePolicy
from .report import CampaignResult, Row, read_training
from .waves import WavePlan, play_wave, require_settings

_EXPERT_WAVE: Final = 0
"""The main store's wave 0 holds the experts; exploration waves count from 1."""

_FREE: Final = frozenset(
    {
        "run.out",
        "run.concurrency",
        "run.workers",
        "run.threads",
        "run.turn_seconds",
        "run.episode_seconds",
        "run.wave_seconds",
        "run.step_seconds",
        "run.swap_seconds",
        "run.shutdown_seconds",
        "run.max_fault_share",
        "cloning.checkpoint_every",
        "cloning.checkpoint_seconds",
        "learner.training.checkpoint_every",
        "learner.training.checkpoint_seconds",
    }
)
"""Settings that may change when a campaign goes on: where it is, how fast it runs, how
often it saves, and when it gives up. None of them changes what is learned."""


async def run_campaign(
    config: CampaignConfig, out: str | Path, watch: Watch | None = None
) -> CampaignResult:
    """Run a campaign in a directory, or go on with it, to the end.

    Args:
        config: what to do.
        out: the run directory.
        watch: told a snapshot for each record and each optimiser step.

    Raises:
        ConfigError: the config cannot work, or the directory holds another campaign.
        TooManyFaults: a wave had a larger share of faults than allowed.
        LearnerError: an evolution step could not be done (no expert can be learned from, say).
        DeadlineExceeded: a stage took too long; the text names it.
        StorageFailed: the disk refused; what was sealed is intact.
    """
    campaign = _Campaign(config, Path(out), curriculum(config), watch or (lambda _: None))
    settings = _flat(config)
    with ExitStack() as stack:
        main = stack.enter_context(Store.open(campaign.out, settings=settings))
        _require_same(main, settings)
        dev = stack.enter_context(Store.open(campaign.out / "evaluations" / "dev"))
        test = stack.enter_context(Store.open(campaign.out / "evaluations" / "test"))
        base = await run_blocking(campaign.base_model)
        async with ActorSystem(
            seed=config.run.seed, shutdown_seconds=config.run.shutdown_seconds
        ) as system:
            learner = await system.start(
                ChildSpec(
                    name="learner",
                    factory=lambda: LearnerActor(
                        config.run.threads, campaign.watch, config.run.step_seconds
                    ),
                )
            )
            await campaign.experts(main)
            cloned = base
            if campaign.tasks.experts:
                cloned = await campaign.clone(learner, base, "policy-0000", config.cloning)
            source = policy_source(
                cloned,
                backend=config.inference.backend,
                context=config.inference.context,
                batch=config.inference.batch,
                kv_cache_gib=config.inference.kv_cache_gib,
                seed=config.run.seed,
            )
            async with open_engine(source, settings=campaign.limits()) as engine:
                arena = Arena(config, campaign.tasks, engine, campaign.watch)
                waves = _Waves(campaign, learner, arena, main, dev, test)
                stopped = await waves.evolve(base, cloned)
                if config.control.enabled:
                    await waves.control(cloned)
    best = judge([_score(row) for row in waves.rows if row.arm == "evolution"]).best
    result = CampaignResult(tuple(waves.rows), best, stopped, arena.turns, str(campaign.out))
    result.write()
    return result


@dataclass(frozen=True, slots=True)
class _Campaign:
    """What is settled before anything runs, and the stages before the first wave."""

    config: CampaignConfig
    out: Path
    tasks: Curriculum
    watch: Watch

    def base_model(self) -> str:
        """The model directory that everything starts from; made here if it is a tiny one."""
        tiny = self.config.model.tiny
        if tiny is None:
            return self.config.model.path
        path = self.model_path("base")
        if not (path / "config.json").is_file():
            _make_tiny(path, self.tasks.spec, self.config)  # whole or not at all
        return str(path)

    async def experts(self, main: Store) -> None:
        """Wave 0: what the environment's expert does on the expert tasks."""
        if not self.tasks.experts:
            return
        plan = WavePlan(
            number=_EXPERT_WAVE,
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
                max_fault_share=self.config.run.max_fault_share,
                seconds=self.config.run.wave_seconds,
            )

    async def clone(
        self, learner: ActorRef, start: str, name: str, settings: TrainingSettings
    ) -> str:
        """Clone the experts from `start` into models/`name`."""
        order = UpdatePolicy(
            "clone",
            msgspec.json.encode(settings),
            (str(self.wave_path(_EXPERT_WAVE)),),
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
        if (Path(order.out) / "training.json").is_file():
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

    def wave_path(self, number: int) -> Path:
        """Where the main store keeps a wave."""
        return self.out / "waves" / f"wave-{number:04d}.parquet"

    def model_path(self, name: str) -> Path:
        """Where a model directory is."""
        return self.out / "models" / name


@dataclass(frozen=True, slots=True)
class _Waves:
    """The loop, once an engine is open."""

    campaign: _Campaign
    learner: ActorRef
    arena: Arena
    main: Store
    dev: Store
    test: Store
    rows: list[Row] = field(default_factory=list)

    async def evolve(self, base: str, cloned: str) -> str:
        """The evolution arm: waves until a rule says stop. Returns the reason."""
        campaign, config = self.campaign, self.campaign.config
        experts = len(campaign.tasks.experts)
        steps = read_training(cloned).steps if experts else 0
        rows = [await self._evaluate("evolution", 0, 0, steps, experts, cloned)]
        last = cloned
        for wave in range(1, config.stop.waves + 1):
            await self.arena.explore(wave, self.main)
            order = UpdatePolicy(
                "evolve",
                msgspec.json.encode(config.learner),
                (str(campaign.wave_path(_EXPERT_WAVE)),) if experts else (),
                tuple(str(campaign.wave_path(m)) for m in self._history(wave)),
                {"base_bc": cloned, "pretrained": base, "last": last},
                campaign.tasks.evaluation,
                str(campaign.model_path(f"policy-{wave:04d}")),
                wave,
            )
            try:
                last = await campaign.step(self.learner, order)
            except EmptyWave as error:
                return str(error)  # nothing succeeded: the policies so far stand
            await self.arena.publish(wave, last)
            training = read_training(last)
            steps += training.steps
            rows.append(await self._evaluate("evolution", wave, wave, steps, training.kept, last))
            verdict = judge(
                [_score(row) for row in rows],
                min_gain=config.stop.min_gain,
                patience=config.stop.patience,
                fall=config.stop.rollback_errors,
            )
            if verdict.decision is Decision.ROLL_BACK:
                return f"dev reward fell in wave {wave}: rolled back to wave {verdict.best}"
            if verdict.decision is Decision.STOP:
                return (
                    f"dev reward gained less than {config.stop.min_gain} "
                    f"in {config.stop.patience} waves"
                )
        return f"all {config.stop.waves} waves were run"

    def _history(self, wave: int) -> range:
        """The waves that the algorithm learns from after this one."""
        everything = self.campaign.config.learner.history == "all"
        return range(1 if everything else wave, wave + 1)

    async def control(self, cloned: str) -> None:
        """The control arm: the same base and optimiser steps, experts only.

        Each stage goes on from the one before, so that at the same wave both arms have
        spent the same total of optimiser steps.
        """
        training = self.campaign.config.learner.training
        evolution = list(self.rows)
        last, version = cloned, len(evolution)
        for before, row in pairwise(evolution):
            settings = msgspec.structs.replace(
                training, max_steps=row.steps - before.steps, seed=training.seed + row.wave
            )
            name = f"control-{row.wave:04d}"
            last = await self.campaign.clone(self.learner, last, name, settings)
            await self.arena.publish(version, last)
            kept = read_training(last).kept
            await self._evaluate("control", row.wave, version, row.steps, kept, last)
            version += 1

    async def _evaluate(
        self, arm: str, wave: int, version: int, steps: int, kept: int, model: str
    ) -> Row:
        """Evaluate the policy that serves now, and enter it into the table."""
        tasks = self.campaign.tasks
        dev = await self.arena.evaluate(version, self.dev, tasks.dev)
        test = await self.arena.evaluate(version, self.test, tasks.test) if tasks.test else None
        explored = self.arena.explored if arm == "evolution" else 0
        row = Row(arm, wave, version, steps, explored, kept, dev, test, model)
        self.rows.append(row)
        return row


def _make_tiny(path: Path, spec: EnvSpec, config: CampaignConfig) -> None:
    from ..learners.directories import atomic_directory
    from ..learners.tiny import make_tiny_model

    tiny = config.model.tiny
    if tiny is None or not spec.vocabulary:
        raise ConfigError(
            f"model.tiny needs an environment with a closed vocabulary, and {spec.id} has none: "
            "use maze-grid-v1?style=terse, or give model.path"
        )
    with atomic_directory(path) as draft:
        make_tiny_model(
            draft, vocabulary=spec.vocabulary, seed=config.run.seed, **msgspec.structs.asdict(tiny)
        )


def _score(row: Row) -> Score:
    return Score(row.dev.average_reward, standard_error(row.dev))


def _require_same(store: Store, settings: Mapping[str, str]) -> None:
    """Refuse to go on with anything but this campaign.

    Raises:
        ConfigError: it is no campaign, or a setting differs; the text names the first.
    """
    had = {key: value for key, value in store.settings.items() if key not in _FREE}
    if not had.keys() & settings.keys():
        raise ConfigError(
            f"{store.path} holds a run of another command, no campaign: choose another --out "
            "directory"
        )
    require_settings(store, settings)
    for key in sorted(had.keys() - settings.keys()):
        raise ConfigError(
            f"{store.path} holds a run with {key} = {had[key]!r}, which is not set now: give the "
            "same settings to go on with it, or choose another --out directory"
        )


def _flat(config: CampaignConfig) -> dict[str, str]:
    """The settings that make a campaign what it is, as `section.key`."""
    flat: dict[str, str] = {}

    def put(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                put(f"{prefix}.{key}" if prefix else str(key), inner)
        elif prefix not in _FREE and not prefix.startswith("inference."):
            flat[prefix] = str(value)

    put("", msgspec.to_builtins(config))
    return flat

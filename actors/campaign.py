"""The composition root: waves of rollouts, evolution steps between them, one policy at the end.

| loop       | waits for                               | is unblocked by                        |
|------------|-----------------------------------------|----------------------------------------|
| session    | a completion                            | inference, or the turn's deadline      |
| inference  | requests                                | sessions                               |
| dispatcher | a permit, and a consumer not far behind | a session that ended; the consumer     |
| collector  | records; the disk, once for all waiting | sessions; the disk                     |
| explorer   | its turn: that the learner is not too   | a published policy                     |
|            | far behind it; then a wave              |                                        |
| learner    | a sealed wave                           | the campaign, when the wave is sealed  |
| campaign   | a wave, then the new policy, then its   | explorer; learner; inference, within   |
|            | confirmation by inference               | their deadlines                        |

With `run.max_staleness` = 0 explorer and campaign are one loop: while the learner holds a
wave nothing asks for episodes, so the dispatcher admits none, and nothing is dropped.
Above 0 the explorer is a task of its own (`ahead`), so many waves ahead at most. One wave
m ≥ 1:

    explore with π_{m-1} → seal → select → train → publish π_m → evaluate → accept or roll back

Invariants:

* every stage is idempotent: a sealed wave is read, a finished model directory is
  kept, so a campaign that was killed anywhere goes on with the same command;
* with `max_staleness` = 0 the same seed gives the same run, killed or not;
* a wave with too many faults stops the campaign rather than teach from a broken world;
  one without a success ends it with the policies it has, and says so.

Not here: the loop (`evolution`), the stages (`stages`), how a wave is played (`arena`,
`explorer`, `waves`), and how a step is trained (`learner`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..engine.actor import Actor
from ..engine.blocking import run_blocking
from ..engine.store import Store
from ..engine.supervisor import ChildSpec
from ..engine.system import ActorSystem
from ..engine.trajectory import Trajectory
from ..learners.stopping import judge
from .arena import Arena, curriculum
from .backends.head_sizes import require_head_size
from .config import CampaignConfig
from .evolution import Evolution, evaluated
from .explorer import Explorer
from .lasting import lasting, require_same
from .learner import LearnerActor
from .monitor import Watch
from .named_models import require_named
from .policies import Renderer
from .policy_source import PolicySource, policy_source, serving
from .report import CampaignResult, has_ended, turns_of, unused_episodes
from .stages import EXPERT_WAVE, Stages
from .tracking import tracked


def _learner(config: CampaignConfig, watch: Watch) -> Actor:
    run = config.run
    return LearnerActor(run.threads, watch, run.step_seconds, processes=run.learner_processes)


def _source(config: CampaignConfig, model: str) -> PolicySource:
    inference = config.inference
    return policy_source(
        model,
        backend=inference.backend,
        context=inference.context,
        batch=inference.batch,
        kv_cache_gib=inference.kv_cache_gib,
        seed=config.run.seed,
    )


def _require_served(config: CampaignConfig) -> None:
    """Refuse a model that nothing here can serve, before anything is played or trained."""
    tiny = config.model.tiny
    if tiny is None:
        _source(config, config.model.path)
    elif serving(config.inference.backend) == "vllm":
        require_head_size(tiny.width // tiny.heads, "model.tiny")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who trains and who samples: another learner or backend for a test or a measurement."""

    learner: Callable[[CampaignConfig, Watch], Actor] = _learner
    """Takes `UpdatePolicy` and leaves a model directory with its training.json."""
    source: Callable[[CampaignConfig, str], PolicySource] = _source
    """What serves the policy of a model directory."""


CAST: Final = Cast()


async def run_campaign(
    config: CampaignConfig, out: str | Path, watch: Watch | None = None, *, cast: Cast = CAST
) -> CampaignResult:
    """Run a campaign in a directory, or go on with it, to the end.

    Args:
        config: what to do.
        out: the run directory.
        watch: told a snapshot for each record and each optimiser step.
            The trackers of `config.track` are told of steps and policies (`tracking`).
        cast: who trains and who samples.

    Raises:
        ConfigError: the config cannot work, or names what is not there; the directory holds
            another campaign; or the files of experts hold nothing to clone, or something else
            than when they were read.
        TooManyFaults: a wave had a larger share of faults than allowed.
        LearnerError: an evolution step could not be done (no expert can be learned from, say).
        DeadlineExceeded: a stage took too long; the text names it.
        StorageFailed: the disk refused; what was sealed is intact.
        MissingDependency: a tracker's extra is not installed.
    """
    stages = Stages(config, Path(out), curriculum(config), watch or (lambda _: None))
    if not has_ended(stages.out):  # then they are only read about
        await run_blocking(require_named, config)
    if cast.source is _source:
        await run_blocking(_require_served, config)
    stages.require_vocabulary()  # before there is a run that a wrong setting would be kept in
    imported = await stages.imports()
    settings = lasting(config)
    with ExitStack() as stores:
        main = stores.enter_context(Store.open(stages.out, settings=settings))
        require_same(main, settings)
        dev = stores.enter_context(Store.open(stages.out / "evaluations" / "dev"))
        test = stores.enter_context(Store.open(stages.out / "evaluations" / "test"))
        base = await run_blocking(stages.base_model)
        async with (
            tracked(stages.out, config.track, settings, created=main.created) as tracking,
            ActorSystem(
                seed=config.run.seed, shutdown_seconds=config.run.shutdown_seconds
            ) as system,
            AsyncExitStack() as engines,
        ):
            watch = tracking.watching(stages.watch)
            learner = await system.start(
                ChildSpec(name="learner", factory=lambda: cast.learner(config, watch))
            )
            stages = await stages.experts(main, imported)
            cloned = base
            if stages.tasks.clones:
                cloned = await stages.clone(learner, base, "policy-0000", config.cloning)

            def source() -> PolicySource:
                return cast.source(config, cloned)

            def experts() -> list[Trajectory]:
                return list(main.read(EXPERT_WAVE).trajectories)

            def renderer() -> Renderer | None:
                return source().renderer

            arena = Arena(config, engines, source, stages.limits(), stages.watch)
            explorer = Explorer(config, stages.tasks.explore, arena, main, experts, renderer)
            evolution = Evolution(
                stages, learner, arena, explorer, main=main, dev=dev, test=test, told=tracking.told
            )
            stopped = await evolution.evolve(base, cloned, finished=has_ended(stages.out))
            if config.control.enabled:
                await evolution.control()
            unused = await run_blocking(unused_episodes, main, evolution.learned)
    scored, scores = evaluated(evolution.rows)
    result = CampaignResult(
        tuple(evolution.rows),
        scored[judge(scores).best].wave,
        stopped,
        turns_of(evolution.rows),
        str(stages.out),
        unused,
    )
    result.write()
    return result

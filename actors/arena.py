"""Where a campaign's policies play: evaluation, the swap between policies, and the engine.

Invariants: what is sealed is read and not played again, and a campaign that only reads
starts no engine; a set of episodes with more faults than allowed stops the campaign;
evaluations are greedy, and of one policy.

Not here: which policy plays next and why (`evolution`), and what is explored (`explorer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from ..engine.errors import ConfigError
from ..engine.store import Store
from ..engine.trajectory import Trajectory, Wave
from ..envs.base import EnvSpec, Task
from ..envs.registry import resolve
from .config import CampaignConfig
from .embedding import Engine, EngineSettings, open_engine
from .evaluator import Evaluation, summarise
from .monitor import Snapshot, Watch
from .policy_source import PolicySource
from .protocol import Sampling
from .waves import WavePlan, play_wave, read_sealed


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The tasks of every part of a campaign; evaluation shares none with training."""

    spec: EnvSpec
    experts: list[Task]
    """Those of experts that files bring are known once these are read (`following`)."""
    explore: list[Task]
    dev: list[Task]
    test: list[Task]
    imports: bool = False
    """The experts come from files."""

    @property
    def clones(self) -> bool:
        """Whether there are experts to clone."""
        return self.imports or bool(self.experts)

    def following(self, shown: Sequence[Trajectory], config: CampaignConfig) -> Curriculum:
        """The same with the tasks of experts that files brought.

        Raises:
            ConfigError: these tasks are to be explored, and they are too few.
        """
        named = {t.task_id: t for t in shown if t.split}
        numbers = [int(name.rpartition("_")[2]) for name in named]
        experts = self.spec.numbered(numbers) if numbers else []
        if config.learner.scope != "expert_tasks":
            return replace(self, experts=experts)
        if len(experts) < max(1, config.rollout.batch):
            least = f"rollout.batch = {config.rollout.batch}" if experts else "any exploration"
            raise ConfigError(
                f"learner.scope = 'expert_tasks': the experts of experts.path name {len(experts)} "
                f"tasks of {self.spec.id}, too few for {least}: bring experts that name their "
                "tasks (item_id), or explore others (learner.scope = 'all_tasks')"
            )
        return replace(self, experts=experts, explore=experts)

    @property
    def evaluation(self) -> tuple[Task, ...]:
        """What must never be learned from."""
        return (*self.dev, *self.test)


def curriculum(config: CampaignConfig) -> Curriculum:
    """Choose the tasks of a campaign.

    Raises:
        ConfigError: a split does not exist, an evaluation task is also trained on, or the
            environment cannot be played as the algorithm needs it.
    """
    spec = resolve(config.environment.id)

    def some(split: str, first: int, tasks: int) -> list[Task]:
        found = spec.tasks(split, limit=first + tasks)[first:]
        if len(found) < tasks:
            raise ConfigError(
                f"split {split!r} of {spec.id} has no {tasks} tasks from number {first} on"
            )
        return found

    imports = bool(config.experts.paths)
    experts: list[Task] = []
    if not imports:
        experts = some(config.experts.split, config.experts.first, config.experts.tasks)
    explore = some(config.rollout.split, config.rollout.first, config.rollout.tasks)
    if config.learner.scope == "expert_tasks":
        explore = experts  # of files: none before they are read
    dev = some(config.evaluate.dev_split, config.evaluate.dev_first, config.evaluate.dev_tasks)
    test = some(config.evaluate.test_split, config.evaluate.test_first, config.evaluate.test_tasks)
    seen = {task.id for task in (*experts, *explore)}
    shared = [task.id for task in (*dev, *test) if task.id in seen]
    if shared:
        raise ConfigError(f"task {shared[0]} is both trained on and evaluated: choose other splits")
    if config.learner.exploration != "tasks" and not spec.deterministic:
        raise ConfigError(
            f"{spec.id} is not deterministic, so nobody can go on behind an expert's turns in it: "
            "contrast whole trajectories"
        )
    return Curriculum(spec, experts, explore, dev, test, imports)


class Arena:
    """An engine, once one is needed, and the policy that it serves.

    Args:
        config: of the campaign.
        stack: closes the engine; entered in the task that opens it.
        source: gives the policy that the engine starts with: version 0.
        limits: of the engine.
        watch: told a snapshot for each record, swap and stage.
    """

    def __init__(
        self,
        config: CampaignConfig,
        stack: AsyncExitStack,
        source: Callable[[], PolicySource],
        limits: EngineSettings,
        watch: Watch,
    ) -> None:
        self._config = config
        self._stack = stack
        self._source = source
        self._limits = limits
        self._watch = watch
        self._engine: Engine | None = None
        self._served = 0
        self._policy: tuple[int, str] = (0, "")
        self._published = trio.Event()

    @property
    def version(self) -> int:
        """Of the policy that was published last."""
        return self._policy[0]

    async def engine(self) -> Engine:
        """The engine, opened now if it is the first to ask; it serves the published policy."""
        if self._engine is None:
            opened = open_engine(self._source(), settings=self._limits)
            self._engine = await self._stack.enter_async_context(opened)
        await self._serve(self._engine)
        return self._engine

    async def publish(self, version: int, model: str) -> None:
        """Serve a new policy from now on, to episodes that have begun, too."""
        self._policy = (version, model)
        if self._engine is not None:
            await self._serve(self._engine)
        self._published.set()
        self._published = trio.Event()

    async def reached(self, version: int) -> None:
        """Wait until a policy of that version, or a newer one, was published."""
        while self.version < version:
            await self._published.wait()

    async def _serve(self, engine: Engine) -> None:
        version, model = self._policy
        if version != self._served:
            self._watch(Snapshot(stage=f"publish {Path(model).name}"))
            await engine.swap_weights(version, model)
            self._served = version

    async def evaluate(self, store: Store, tasks: Sequence[Task]) -> Evaluation:
        """Evaluate the policy that was published last, greedily.

        Raises:
            TooManyFaults: the world is broken.
        """
        config = self._config
        horizon = config.rollout.horizon
        plan = WavePlan(
            number=self.version,
            tasks=tasks,
            sampling=Sampling(0.0, config.evaluate.max_tokens or config.rollout.max_tokens),
            turn_limit=horizon[-1] if horizon else config.environment.turn_limit,
            policy_version=self.version,
        )
        name = store.path.name
        sealed = await self.play(store, plan, f"evaluate policy {self.version} on {name}")
        return summarise(name, sealed.trajectories)

    async def play(self, store: Store, plan: WavePlan, stage: str) -> Wave:
        """Play a wave with the policy that was published last, or read it.

        Raises:
            TooManyFaults: the world is broken.
        """
        run = self._config.run
        sealed = await read_sealed(store, plan.number, max_fault_share=run.max_fault_share)
        if sealed is not None:
            return sealed
        engine = await self.engine()
        self._watch(Snapshot(stage=stage))
        return await play_wave(
            engine,
            store,
            plan,
            watch=self._watch,
            stage=stage,
            max_fault_share=run.max_fault_share,
            seconds=run.wave_seconds,
        )

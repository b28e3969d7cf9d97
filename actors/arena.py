"""Where a campaign's policies play: exploration, evaluation, and the swap between them.

Invariants: what is sealed is read and not played again; a set of episodes with more
faults than allowed stops the campaign; evaluations are greedy.

Not here: which policy plays next and why (`campaign`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.errors import ConfigError
from ..engine.store import Store
from ..engine.trajectory import Wave
from ..envs.base import EnvSpec, Task
from ..envs.registry import resolve
from .config import CampaignConfig
from .embedding import Engine
from .evaluator import Evaluation, summarise
from .monitor import Snapshot, Watch
from .protocol import Sampling
from .waves import WavePlan, play_wave


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The tasks of every part of a campaign; evaluation shares none with training."""

    spec: EnvSpec
    experts: list[Task]
    explore: list[Task]
    dev: list[Task]
    test: list[Task]

    @property
    def evaluation(self) -> tuple[Task, ...]:
        """What must never be learned from."""
        return (*self.dev, *self.test)


def curriculum(config: CampaignConfig) -> Curriculum:
    """Choose the tasks of a campaign.

    Raises:
        ConfigError: a split does not exist, or an evaluation task is also trained on.
    """
    spec = resolve(config.environment.id)

    def some(split: str, first: int, tasks: int) -> list[Task]:
        found = spec.tasks(split, limit=first + tasks)[first:]
        if len(found) < tasks:
            raise ConfigError(
                f"split {split!r} of {spec.id} has no {tasks} tasks from number {first} on"
            )
        return found

    experts = some(config.experts.split, config.experts.first, config.experts.tasks)
    explore = some(config.rollout.split, config.rollout.first, config.rollout.tasks)
    if config.learner.scope == "expert_tasks":
        explore = experts
    dev = some(config.evaluate.dev_split, config.evaluate.dev_first, config.evaluate.dev_tasks)
    test = some(config.evaluate.test_split, config.evaluate.test_first, config.evaluate.test_tasks)
    seen = {task.id for task in (*experts, *explore)}
    shared = [task.id for task in (*dev, *test) if task.id in seen]
    if shared:
        raise ConfigError(f"task {shared[0]} is both trained on and evaluated: choose other splits")
    return Curriculum(spec, experts, explore, dev, test)


class Arena:
    """An open engine and the stores of a campaign."""

    def __init__(
        self, config: CampaignConfig, tasks: Curriculum, engine: Engine, watch: Watch
    ) -> None:
        self.turns = 0
        """Turns played so far, those of waves that were read back included."""
        self.explored = 0
        """Episodes explored so far."""
        self._config = config
        self._tasks = tasks
        self._engine = engine
        self._watch = watch

    async def explore(self, wave: int, store: Store) -> Wave:
        """Explore with the policy that serves now, and seal the wave.

        Raises:
            TooManyFaults: the world is broken.
        """
        rollout = self._config.rollout
        plan = WavePlan(
            number=wave,
            tasks=self._tasks.explore,
            attempts=rollout.attempts,
            sampling=Sampling(rollout.temperature, rollout.max_tokens),
            turn_limit=self._config.environment.turn_limit,
            policy_version=wave - 1,
        )
        sealed = await self._play(store, plan, f"wave {wave}: explore")
        self.explored += len(sealed.trajectories)
        return sealed

    async def publish(self, version: int, model: str) -> None:
        """Serve a new policy from now on."""
        self._watch(Snapshot(stage=f"publish {Path(model).name}"))
        await self._engine.swap_weights(version, model)

    async def evaluate(self, version: int, store: Store, tasks: Sequence[Task]) -> Evaluation:
        """Evaluate the policy that serves now, greedily.

        Raises:
            TooManyFaults: the world is broken.
        """
        config = self._config
        plan = WavePlan(
            number=version,
            tasks=tasks,
            sampling=Sampling(0.0, config.evaluate.max_tokens or config.rollout.max_tokens),
            turn_limit=config.environment.turn_limit,
            policy_version=version,
        )
        name = store.path.name
        sealed = await self._play(store, plan, f"evaluate policy {version} on {name}")
        return summarise(name, sealed.trajectories)

    async def _play(self, store: Store, plan: WavePlan, stage: str) -> Wave:
        run = self._config.run
        sealed = await play_wave(
            self._engine,
            store,
            plan,
            watch=self._watch,
            stage=stage,
            max_fault_share=run.max_fault_share,
            seconds=run.wave_seconds,
        )
        self.turns += sum(len(t.turns) for t in sealed.trajectories)
        return sealed

"""What a wave of exploration is: its tasks, its parts in the store, and when it is full.

    wave m ─▶ part 0: B tasks ─▶ part 1: more, where groups say nothing ─▶ …
           └▶ the last part: branches behind the experts' turns

A wave of one part is the store's wave of the same number. Where waves may have P parts,
the store's wave of part p of wave m is (m - 1) P + p + 1; not every number is used.

Invariants:

* which tasks a part plays depends on the run's seed and on the waves before alone, so that
  a campaign that goes on after a crash plays the same;
* no task twice in a wave; with dynamic sampling, never more useful groups than were asked
  for, and every episode that was played is in the wave, useful or not;
* nothing of one wave is explored before all of the wave before is sealed.

Not here: playing (`waves`), the policy that plays (`arena`), and what is learned (`learner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..engine.errors import EmptyWave
from ..engine.store import Store
from ..engine.trajectory import Trajectory, Wave
from ..envs.base import Task
from ..learners.curriculum import horizon
from .arena import Arena
from .batches import TaskStream
from .branches import branches
from .config import CampaignConfig
from .policies import Renderer
from .protocol import Sampling
from .wave_figures import differs
from .waves import WavePlan


@dataclass(frozen=True, slots=True)
class Explored:
    """A wave, all of its parts sealed."""

    wave: int
    parts: tuple[int, ...]
    """The store's waves that it consists of."""
    trajectories: tuple[Trajectory, ...]
    rounds: int
    useful: int
    """Groups that a comparison learns from."""
    turn_limit: int
    """0: the environment's own."""


class Explorer:
    """Explores wave after wave, in order.

    Args:
        tasks: the pool.
        experts: trajectories to go on behind; asked for where branches are played.
        renderer: of the policy; likewise.
    """

    def __init__(
        self,
        config: CampaignConfig,
        tasks: list[Task],
        arena: Arena,
        store: Store,
        experts: Callable[[], list[Trajectory]] = list,
        renderer: Callable[[], Renderer | None] = lambda: None,
    ) -> None:
        self._config = config
        self._pool = tasks
        self._arena = arena
        self._store = store
        self._experts = experts
        self._renderer = renderer
        self._stream = TaskStream(tasks, config.run.seed)
        self._kind = config.learner.exploration

    def part(self, wave: int, part: int) -> int:
        """The store's number of a part, counted from 0."""
        return (wave - 1) * self._parts + part + 1

    @property
    def _parts(self) -> int:
        """Most parts of a wave."""
        rounds = self._config.rollout.rounds if self._kind != "branches" else 0
        return rounds + (self._kind != "tasks")

    async def explore(self, wave: int) -> Explored:
        """Explore with the policy that serves, or read what was; waves come in order.

        Raises:
            TooManyFaults: the world is broken.
            EmptyWave: dynamic sampling found no group that says anything.
        """
        config, stream = self._config.rollout, self._stream
        stream.begin()
        wanted = config.batch or len(self._pool)
        drawn: list[Task] = []
        parts: list[Wave] = []
        useful = 0
        for round_ in range(config.rounds):
            tasks = stream.draw(wanted - useful) if config.batch else self._pool
            if not tasks:
                break  # the wave has had the whole pool
            drawn += tasks
            if self._kind == "branches":
                break
            sealed = await self._play(wave, round_, tasks)
            parts.append(sealed)
            useful += sum(differs(group.rewards()) for group in sealed.groups())
            if useful >= wanted:
                break
        rounds = max(1, len(parts))
        if config.rounds > 1 and not useful:
            raise EmptyWave(
                f"wave {wave}: after {rounds} rounds with {len(drawn)} tasks every group's rewards "
                "are equal, so that no comparison says anything: choose easier or harder tasks, "
                "more rollout.attempts, or more rollout.rounds"
            )
        if self._kind != "tasks":
            parts.append(await self._branch(wave, drawn))
        return Explored(
            wave,
            tuple(part.number for part in parts),
            tuple(t for part in parts for t in part.trajectories),
            rounds,
            useful,
            self._turn_limit(wave),
        )

    async def _play(self, wave: int, round_: int, tasks: list[Task]) -> Wave:
        config = self._config.rollout
        plan = WavePlan(
            number=self.part(wave, round_),
            tasks=tasks,
            attempts=config.attempts,
            sampling=self._sampling(),
            turn_limit=self._turn_limit(wave),
            policy_version=self._arena.version,
        )
        again = f", round {round_ + 1}" if config.rounds > 1 else ""
        return await self._arena.play(self._store, plan, f"wave {wave}: explore{again}")

    async def _branch(self, wave: int, tasks: list[Task]) -> Wave:
        """Play on behind every turn of the experts at these tasks."""
        number = self.part(wave, self._parts - 1)
        wanted = {task.id for task in tasks}
        experts = [t for t in self._experts() if t.task_id in wanted and t.outcome.scored]
        shown = {t.task_id for t in experts}
        if not experts:
            raise EmptyWave(f"wave {wave}: no expert trajectory to go on behind")
        sealed = self._store.sealed(number)  # then it is read, and needs no openings
        plan = WavePlan(
            number=number,
            tasks=[task for task in tasks if task.id in shown],
            attempts=max(len(t.turns) for t in experts) + 1,
            sampling=self._sampling(),
            turn_limit=self._turn_limit(wave),
            policy_version=self._arena.version,
            openings={} if sealed else branches(experts, number, self._renderer()),
        )
        return await self._arena.play(self._store, plan, f"wave {wave}: explore branches")

    def _sampling(self) -> Sampling:
        return Sampling(self._config.rollout.temperature, self._config.rollout.max_tokens)

    def _turn_limit(self, wave: int) -> int:
        config = self._config
        if not config.rollout.horizon:
            return config.environment.turn_limit
        return horizon(wave, config.rollout.horizon, config.rollout.horizon_waves)

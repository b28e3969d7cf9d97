"""The two arms of a campaign: evolution, wave by wave, and the control beside it.

    explore with π_{m-1} → seal → select → train → publish π_m → evaluate → judge → wave m+1

With `run.max_staleness` above 0 the next waves are explored meanwhile (`ahead`).

Invariants:

* dev tasks choose, test tasks only report, and neither is ever learned from;
* step m is trained on wave m, each wave once, and never before it is sealed;
* a campaign that goes on after a crash first takes up what is on disk, in the order in which
  it was learned, and explores nothing ahead before it has;
* an end that a rule brings about is an end like any other: the policies so far stand.

Not here: the stages one by one (`stages`), the rules (`learners.stopping`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count, pairwise
from typing import TYPE_CHECKING

import msgspec

from ..engine.blocking import run_blocking
from ..engine.errors import EmptyWave
from ..engine.ref import ActorRef
from ..engine.store import Store
from ..learners.stopping import Decision, Score, collapse, judge
from .ahead import exploring_ahead
from .arena import Arena
from .expert_files import read_record
from .explorer import Explored, Explorer
from .protocol import UpdatePolicy
from .report import Row, read_training
from .stages import EXPERT_WAVE, Stages, is_finished
from .wave_figures import Solved, WaveFigures, describe

if TYPE_CHECKING:
    from .evaluator import Evaluation


Told = Callable[[Row], Awaitable[None]]
"""Somebody who is told of a policy in the table."""


class Evolution:
    """The loop over waves, and the table that it leaves."""

    def __init__(
        self,
        stages: Stages,
        learner: ActorRef,
        arena: Arena,
        explorer: Explorer,
        *,
        main: Store,
        dev: Store,
        test: Store,
        told: Told,
    ) -> None:
        """`told` is told of every policy, once it is in the table and again if it is evaluated
        later."""
        self.rows: list[Row] = []
        self.learned: set[int] = set()
        """The store's waves that a policy was trained on, the experts' among them."""
        self._stages = stages
        self._config = stages.config
        self._learner = learner
        self._arena = arena
        self._explorer = explorer
        self._main = main
        self._dev = dev
        self._test = test
        self._told = told
        self._parts: dict[int, tuple[int, ...]] = {}
        self._solved = Solved()
        self._base = self._cloned = ""

    async def evolve(self, base: str, cloned: str, *, finished: bool) -> str:
        """The evolution arm: waves until a rule says stop. Returns the reason.

        Args:
            base: the model before cloning.
            cloned: the policy of wave 0.
            finished: it has ended before: all of it is read, and nothing explored ahead.
        """
        self._base, self._cloned = base, cloned
        await self._start()
        try:
            reason = await self._waves(0 if finished else self._config.run.max_staleness)
        except EmptyWave as error:
            reason = str(error)  # nothing to learn from: the policies so far stand
        if self.rows[-1].dev is None:
            self.rows[-1] = await self._evaluated(self.rows[-1])
            await self._told(self.rows[-1])
        return reason

    async def _start(self) -> None:
        """Wave 0: the cloned policy."""
        row = Row("evolution", 0, 0, 0, 0, 0, None, None, self._cloned)
        await self._arena.publish(0, self._cloned)
        if self._stages.tasks.clones:
            training = read_training(self._cloned)
            imported = read_record(self._stages.out) if self._stages.tasks.imports else None
            left_out = Counter(imported.left_out if imported else {})
            row = replace(
                row,
                steps=training.steps,
                kept=training.kept,
                metrics=training.metrics,
                dropped=dict(left_out + Counter(training.dropped)),
            )
            shown = await run_blocking(self._main.read, EXPERT_WAVE)
            self._solved.add(shown.trajectories)
            self.learned.add(EXPERT_WAVE)
        self.rows.append(await self._evaluated(row))
        await self._told(self.rows[-1])

    async def _waves(self, max_staleness: int) -> str:
        last = self._config.stop.waves
        on_disk = self._on_disk() if max_staleness else last
        for wave in range(1, min(on_disk, last) + 1):
            if reason := await self._learn(await self._explorer.explore(wave)):
                return reason
        left = range(on_disk + 1, last + 1)
        if left:
            await self._arena.engine()
            async with exploring_ahead(self._explorer, self._arena, left, max_staleness) as ahead:
                for _ in left:
                    if reason := await self._learn(await ahead.take()):
                        return reason
        return _all_run(last)

    def _on_disk(self) -> int:
        """How many waves have been trained on already."""
        path = self._stages.model_path
        return next(m for m in count() if not is_finished(path(f"policy-{m + 1:04d}")))

    async def _learn(self, explored: Explored) -> str:
        """Train on a wave, publish, evaluate, judge; gives the reason to stop, if there is one.

        Raises:
            EmptyWave: there is nothing to learn from.
        """
        wave = explored.wave
        self._parts[wave] = explored.parts
        figures = describe(
            explored.trajectories,
            self._solved,
            trained_from=wave - 1,
            rounds=explored.rounds,
            turn_limit=explored.turn_limit,
        )
        model = await self._stages.step(self._learner, self._order(wave))
        self.learned.update(explored.parts)
        await self._arena.publish(wave, model)
        self._enter(wave, model, figures)
        collapsed, spent = self._collapsed(), self._spent()
        due = wave % self._config.evaluate.every == 0 or wave == self._config.stop.waves
        if due or collapsed or spent:
            self.rows[-1] = await self._evaluated(self.rows[-1])
        await self._told(self.rows[-1])
        return self._verdict(collapsed) or spent

    def _order(self, wave: int) -> UpdatePolicy:
        stages, learner = self._stages, self._config.learner
        history = range(1 if learner.history == "all" else wave, wave + 1)
        return UpdatePolicy(
            "evolve",
            msgspec.json.encode(learner),
            stages.expert_paths(),
            tuple(str(stages.wave_path(n)) for m in history for n in self._parts[m]),
            {"base_bc": self._cloned, "pretrained": self._base, "last": self.rows[-1].model},
            stages.tasks.evaluation,
            str(stages.model_path(f"policy-{wave:04d}")),
            wave,
        )

    def _enter(self, wave: int, model: str, figures: WaveFigures) -> None:
        """Put a new policy into the table, not evaluated yet."""
        before, training = self.rows[-1], read_training(model)
        row = Row(
            "evolution",
            wave,
            wave,
            before.steps + training.steps,
            before.explored + figures.episodes,
            training.kept,
            None,
            None,
            model,
            before.turns + figures.turns,
            figures,
            training.metrics,
            training.dropped,
        )
        self.rows.append(row)

    async def _evaluated(self, row: Row) -> Row:
        """Evaluate the policy that serves now, which is the row's."""
        tasks = self._stages.tasks
        dev = await self._arena.evaluate(self._dev, tasks.dev)
        test = await self._arena.evaluate(self._test, tasks.test) if tasks.test else None
        return replace(row, dev=dev, test=test)

    def _spent(self) -> str:
        """Say which budget is used up, if one is."""
        stop, row = self._config.stop, self.rows[-1]
        steps = row.steps - self.rows[0].steps
        if stop.steps and steps >= stop.steps:
            return f"the budget of {stop.steps} optimiser steps is used up, after wave {row.wave}"
        if stop.episodes and row.explored >= stop.episodes:
            return f"the budget of {stop.episodes} episodes is used up, after wave {row.wave}"
        return ""

    def _collapsed(self) -> str:
        """Say how the newest policy has collapsed, if it has."""
        stop, rows = self._config.stop, self.rows
        found = [row.figures for row in rows if row.figures is not None]
        kls = [row.metrics.get("kl") for row in rows]
        return collapse(
            kls=[kl for kl in kls if kl is not None],
            entropies=[f.entropy for f in found if f.entropy is not None],
            format_errors=found[-1].format_errors,
            max_kl=stop.max_kl,
            min_entropy=stop.min_entropy,
            max_format_errors=stop.max_format_errors,
        )

    def _verdict(self, collapsed: str) -> str:
        """Say why to stop after the newest wave, if there is a reason."""
        stop, newest = self._config.stop, self.rows[-1]
        scored, scores = evaluated(self.rows)
        verdict = judge(
            scores,
            min_gain=stop.min_gain,
            patience=stop.patience,
            fall=stop.rollback_errors,
        )
        best = scored[verdict.best].wave
        if collapsed:
            kept = f"rolled back to wave {best}"
            if best == newest.wave:
                kept = "dev tasks choose it all the same"
            return f"collapse in wave {newest.wave}: {collapsed}; {kept}"
        if newest.dev is None:
            return ""
        if verdict.decision is Decision.ROLL_BACK:
            return f"dev reward fell in wave {newest.wave}: rolled back to wave {best}"
        if verdict.decision is Decision.STOP:
            times = "waves" if self._config.evaluate.every == 1 else "evaluations"
            return f"dev reward gained less than {stop.min_gain} in {stop.patience} {times}"
        return ""

    async def control(self) -> None:
        """The control arm: the same base and optimiser steps, experts only.

        Each stage goes on from the one before, so that at the same wave both arms have
        spent the same total of optimiser steps.
        """
        training = self._config.learner.training
        evolution = list(self.rows)
        last, version = self._cloned, len(evolution)
        for before, row in pairwise(evolution):
            settings = msgspec.structs.replace(
                training, max_steps=row.steps - before.steps, seed=training.seed + row.wave
            )
            name = f"control-{row.wave:04d}"
            last = await self._stages.clone(self._learner, last, name, settings)
            await self._arena.publish(version, last)
            trained = read_training(last)
            entry = Row(
                "control",
                row.wave,
                version,
                row.steps,
                0,
                trained.kept,
                None,
                None,
                last,
                metrics=trained.metrics,
                dropped=trained.dropped,
            )
            self.rows.append(entry if row.dev is None else await self._evaluated(entry))
            await self._told(self.rows[-1])
            version += 1


def _all_run(waves: int) -> str:
    if waves > 1:
        return f"all {waves} waves were run"
    return "the one wave was run" if waves else "no wave was asked for"


def evaluated(rows: list[Row]) -> tuple[list[Row], list[Score]]:
    """The policies of the evolution arm that were evaluated, and their scores on dev tasks."""
    scored: list[Row] = []
    scores: list[Score] = []
    for row in rows:
        if row.arm == "evolution" and row.dev is not None:
            scored.append(row)
            scores.append(_score(row.dev))
    return scored, scores


def _score(dev: Evaluation) -> Score:
    return Score(dev.average_reward, dev.average_reward_error)

"""From what a file says to a `Trajectory`: what is missing is filled in, and counted.

Rules: the last turn earns the whole reward; an episode without an outcome succeeded if its
reward is 1 or more; attempts at a task are numbered in the order of the file.

Invariant: what is built satisfies `Trajectory.check`.

Not here: reading (the formats), actions (they are read off completions by whoever knows the
environment's action format).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final, Literal

import msgspec

from ...engine.agenttraj import Cut, is_item_id
from ...engine.errors import BadDataFile
from ...engine.trajectory import Outcome, Trajectory, Turn
from .base import Reading, Tally

_SUCCESS: Final = 1.0


class About(msgspec.Struct, kw_only=True):
    """What a record may say about its episode besides the conversation.

    TRL's and LLaMA-Factory's files carry these as columns of their own, which both leave alone.
    """

    id: str | None = None
    env: str | None = None
    task_id: str | None = None
    split: str | None = None
    wave: int | None = None
    attempt: int | None = None
    outcome: Literal["success", "failure", "truncated"] | None = None
    reward: float | None = None
    policy: str | None = None
    final_observation: str | None = None


def about(trajectory: Trajectory) -> dict[str, Any]:
    """Give the columns of `About` for a scored trajectory."""
    return {
        "id": trajectory.id,
        "env": trajectory.env,
        "task_id": trajectory.task_id,
        "split": trajectory.split,
        "wave": trajectory.wave,
        "attempt": trajectory.attempt,
        "outcome": trajectory.outcome.value,
        "reward": trajectory.reward,
        "policy": trajectory.policy,
        "final_observation": trajectory.final_observation,
    }


class Builder:
    """Builds the trajectories of one file, in order."""

    def __init__(self, reading: Reading, tally: Tally) -> None:
        self._reading = reading
        self._tally = tally
        self._attempts: Counter[str] = Counter()

    def build(self, where: str, number: int, found: Cut, said: About) -> Trajectory:
        """Build the trajectory of one record.

        Args:
            where: the place, for the error.
            number: of the record in its file.
            found: its conversation.
            said: what else it says.

        Raises:
            BadDataFile: a value is one that no episode has.
        """
        task = self._task(number, said.task_id)
        attempt = self._attempts[task] if said.attempt is None else said.attempt
        self._attempts[task] += 1
        wave = said.wave or 0
        reward = self._assumed("reward", said.reward, self._reading.reward)
        if not math.isfinite(reward):
            raise BadDataFile(f"{where}: reward is {reward}, not a finite number")
        outcome = Outcome(said.outcome or ("success" if reward >= _SUCCESS else "failure"))
        last = len(found.turns) - 1
        return Trajectory(
            id=f"w{wave}/{task}/{attempt}" if said.id is None else said.id,
            env=self._reading.env or ("unknown" if said.env is None else said.env),
            task_id=task,
            split=self._assumed("split", said.split, self._reading.split),
            wave=wave,
            attempt=attempt,
            seed=0,
            outcome=outcome,
            reward=reward,
            terminated=outcome is not Outcome.TRUNCATED,
            prompt=found.prompt,
            turns=tuple(
                Turn(seen, written, "", reward if place == last else 0.0)
                for place, (seen, written) in enumerate(found.turns)
            ),
            final_observation=found.final or said.final_observation or "",
            policy=said.policy or "",
        )

    def _task(self, number: int, named: str | None) -> str:
        """Name the task; in a given environment, as its own tasks are named."""
        env = self._reading.env
        family = env.partition("?")[0].rpartition("-v")[0] or "record"
        if named is None:
            return f"{family}_{number}"
        if env and is_item_id(named):
            return f"{family}_{int(named.rpartition('_')[2])}"
        return named

    def _assumed(self, field: str, value: Any, otherwise: Any) -> Any:
        if value is not None:
            return value
        self._tally.assumed[field] += 1
        return otherwise

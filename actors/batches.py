"""Which tasks a wave plays, where it does not play all of them: a stream through the pool.

    pass 0: every task once, shuffled | pass 1: every task once, shuffled otherwise | …

Invariants: within a pass no task is drawn twice, nor within a wave; the same draws in the
same order give the same tasks, so a campaign that goes on after a crash draws as it did.

Not here: playing them (`explorer`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.seeds import generator
from ..envs.base import Task


class TaskStream:
    """Draws tasks of a pool, pass after pass."""

    def __init__(self, pool: Sequence[Task], seed: int) -> None:
        """`seed` is the run's."""
        self._pool = list(pool)
        self._tasks = len({task.id for task in pool})
        self._seed = seed
        self._passes = 0
        self._rest: list[Task] = []
        self._drawn: set[str] = set()

    def begin(self) -> None:
        """Begin a wave: what the wave before has drawn may come again."""
        self._drawn.clear()

    def draw(self, tasks: int) -> list[Task]:
        """Draw so many; fewer only where the wave has had the whole pool.

        What this wave had already waits for the next one, in its place.
        """
        found: list[Task] = []
        while len(found) < tasks and len(self._drawn) < self._tasks:
            place = next((i for i, t in enumerate(self._rest) if t.id not in self._drawn), None)
            if place is None:
                self._rest += self._next_pass()
                continue
            task = self._rest.pop(place)
            self._drawn.add(task.id)
            found.append(task)
        return found

    def _next_pass(self) -> list[Task]:
        order = list(self._pool)
        generator(self._seed, "pass", self._passes).shuffle(order)
        self._passes += 1
        return order

"""Which tasks there are, and which are trained on.

The numbers 0 to 2419 (train) and 2420 to 2619 (test) are AgentGym's: the type of task, the
thing, its target and the room of a number are those of its published list, so that its item
ids mean the same tasks here. How the room is furnished is ours. AgentGym's test has goals
that also occur in training (it is ALFWorld's `valid_train`); its rooms are furnished anew.

The 200 numbers after these (dev) are goals that occur in neither, in the same 108 rooms; the
last 300 (unseen) are goals in the 12 rooms that neither has, ALFRED's unseen rooms.

Invariants: splits are disjoint; no two tasks of different splits are the same furnished
game; what a number means never changes.

Not here: sessions (`environment`), and how rooms are furnished (`generate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Final

from ...engine.errors import ConfigError
from ...engine.seeds import generator
from .game import Game
from .generate import generate, possible
from .tables import KINDS, Kind, Wanted, tables

SPLITS: Final[Mapping[str, Sequence[int]]] = {
    "train": range(2420),
    "dev": range(2620, 2820),
    "test": range(2420, 2620),
    "unseen": range(2820, 3120),
}

_COUNT: Final = 3120


@cache
def unseen_rooms() -> frozenset[int]:
    """The rooms in which no published task takes place."""
    facts = tables()
    return frozenset(facts.plans) - {wanted.room for wanted in facts.goals}


def wanted(index: int) -> Wanted:
    """The goal of a task.

    Raises:
        ConfigError: there is no such task.
    """
    if not 0 <= index < _COUNT:
        raise ConfigError(f"alfworld has tasks 0 to {_COUNT - 1}, not {index}")
    published = tables().goals
    return published[index] if index < len(published) else _more()[index - len(published)]


@lru_cache(maxsize=2048)
def numbered(index: int) -> Game:
    """The game of a task, shared by all sessions on it. About 0.5 ms.

    Raises:
        ConfigError: there is no such task.
    """
    return generate(wanted(index), generator(0, "alfworld", index))


@cache
def _more() -> tuple[Wanted, ...]:
    """The goals of dev and unseen: types in turn, then a room, then what is possible there."""
    facts = tables()
    known = set(facts.goals)
    goals: list[Wanted] = []
    for split in ("dev", "unseen"):
        rooms = unseen_rooms() if split == "unseen" else facts.plans.keys() - unseen_rooms()
        chance = generator(0, "alfworld", split)
        for number in range(len(SPLITS[split])):
            kind = KINDS[number % len(KINDS)]
            while True:
                room = chance.choice(sorted(rooms & facts.rooms[kind]))
                choices = [goal for goal in _goals(kind, room) if goal not in known]
                if choices:
                    goals.append(chance.choice(choices))
                    break
    return tuple(goals)


@cache
def _goals(kind: Kind, room: int) -> tuple[Wanted, ...]:
    """All goals of a type in a room."""
    plan = tables().plans[room]
    targets = plan.things if kind == "look" else plan.places
    drawn = [Wanted(kind, thing, target, room) for thing in plan.things for target in targets]
    return tuple(goal for goal in drawn if possible(goal))

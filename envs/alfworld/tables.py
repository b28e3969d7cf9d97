"""The published facts: which rooms there are, what may lie where, what can be done to what.

`tables.json` is derived from the tables of the package alfworld and from AgentGym's list of
tasks (`derive` says how, LICENSE-tables.txt under which terms). Types are written as there:
"CounterTop", "ButterKnife".

Invariant: the table is read once and never changed.

Not here: a single game (`game`), or how games are made of the facts (`generate`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

Kind = Literal["place", "two", "look", "clean", "heat", "cool"]
"""The six types of task."""

KINDS: Final[tuple[Kind, ...]] = ("place", "two", "look", "clean", "heat", "cool")

PUBLISHED_KINDS: Final[Mapping[str, Kind]] = {
    "pick_and_place_simple": "place",
    "pick_two_obj_and_place": "two",
    "look_at_obj_in_light": "look",
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
"""ALFWorld's names of the six types of task."""


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """One room, empty."""

    number: int
    """1 to 30 are kitchens, 201 to 230 living rooms, 301 to 330 bedrooms, 401 to 430 bathrooms."""
    places: Mapping[str, tuple[int, ...]]
    """For each type of receptacle, the number of the place where each one stands. Receptacles
    at one place are reached together."""
    things: tuple[str, ...]
    """Types of things that are found in the room."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A goal in a room, as the published lists of tasks name it."""

    kind: Kind
    thing: str
    target: str
    """Type of the receptacle to put it into; of the lamp, for `look`."""
    room: int


@dataclass(frozen=True)
class Tables:
    """All facts."""

    plans: Mapping[int, FloorPlan]
    goals: tuple[Wanted, ...]
    """By AgentGym's task number."""
    rooms: Mapping[Kind, frozenset[int]]
    """Rooms in which a type of task makes sense."""
    holds: Mapping[str, frozenset[str]]
    """Types of things that a type of receptacle may hold."""
    openable: frozenset[str]
    containers: frozenset[str]
    """Things that things may lie in: bowls, boxes."""
    fixed: frozenset[str]
    """Things that cannot be taken."""
    heatable: frozenset[str]
    coolable: frozenset[str]
    cleanable: frozenset[str]
    toggleable: frozenset[str]
    sliceable: frozenset[str]


@cache
def tables() -> Tables:
    """Read the table. About 3 ms, once."""
    raw = json.loads(Path(__file__).with_name("tables.json").read_text(encoding="utf-8"))
    sorts = {name: range(first, last + 1) for name, (first, last) in raw["rooms"].items()}
    plans = {
        int(number): FloorPlan(
            int(number),
            {kind: tuple(places) for kind, places in plan["places"].items()},
            tuple(plan["things"]),
        )
        for number, plan in raw["plans"].items()
    }
    goals: list[Wanted] = []
    for line in raw["goals"]:
        kind, thing, target, room, *repeat = line.split()
        count = int(repeat[0][1:]) if repeat else 1
        goals += [Wanted(kind, thing, target, int(room))] * count
    sets = ("openable", "containers", "fixed", "heatable", "coolable", "cleanable")
    return Tables(
        plans=plans,
        goals=tuple(goals),
        rooms={
            kind: frozenset(n for name in raw["kinds"][kind] for n in sorts[name]) for kind in KINDS
        },
        holds={kind: frozenset(things) for kind, things in raw["holds"].items()},
        **{name: frozenset(raw[name]) for name in (*sets, "toggleable", "sliceable")},
    )

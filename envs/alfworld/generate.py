"""Furnishes rooms: from a goal in a room, and a seed, to a game.

Receptacles and types of things are those of the published floor plan; how many of each
thing there are, and where they lie, is drawn, within what may lie where. One to three of a
type, as in ALFRED's scenes; of the wanted type one or two, for `two` two or three.

Invariants: the same goal and seed give the same game; the goal can be reached and is not
reached at the start; what is wanted never lies where it is to be put (for `two`, at most
one does).

Not here: which goals there are (`tasks`).
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Final

from .game import Game, Goal, Receptacle, Thing, names, sort_key
from .tables import FloorPlan, Tables, Wanted, tables

SENTENCES: Final = {
    "place": ("put a {0} in {1}", "put some {0} on {1}"),
    "two": ("put two {0} in {1}", "find two {0} and put them in {1}"),
    "look": ("look at {0} under the {1}", "examine the {0} with the {1}"),
    "clean": ("put a clean {0} in {1}", "clean some {0} and put it in {1}"),
    "heat": ("put a hot {0} in {1}", "heat some {0} and put it in {1}"),
    "cool": ("put a cool {0} in {1}", "cool some {0} and put it in {1}"),
}
"""The published goal sentences: two for each type of task."""

_MOST: Final = 3
"""Most things of a type in a room."""


def generate(wanted: Wanted, chance: Random) -> Game:
    """Furnish the goal's room."""
    facts = tables()
    plan = facts.plans[wanted.room]
    receptacles, kinds = _receptacles(plan, facts)
    placed: list[tuple[str, int]] = []  # type, receptacle
    for kind in plan.things:
        where = _where(kind, kinds, facts)
        if kind == wanted.thing:
            placed += _place_wanted(wanted, where, kinds, chance)
        elif where:
            count = 1 if kind in facts.fixed else chance.randint(1, _MOST)
            placed += [(kind, chance.choice(where)) for _ in range(count)]
    goal = Goal(wanted.kind, wanted.thing.lower(), wanted.target.lower())
    sentence = chance.choice(SENTENCES[wanted.kind]).format(goal.thing, goal.target)
    return Game(receptacles, _things(placed, facts), goal, sentence, _holds())


def possible(wanted: Wanted) -> bool:
    """Whether the room has what the goal needs, and another place for what is wanted."""
    facts = tables()
    plan = facts.plans[wanted.room]
    kinds = [kind for kind, places in plan.places.items() for _ in places]
    where = _where(wanted.thing, kinds, facts)
    if wanted.thing not in plan.things or wanted.thing in facts.fixed or not where:
        return False
    if wanted.kind == "look":
        return wanted.target in plan.things and wanted.target in facts.toggleable
    treated = {
        "heat": (facts.heatable, "Microwave"),
        "cool": (facts.coolable, "Fridge"),
        "clean": (facts.cleanable, "SinkBasin"),
    }
    if wanted.kind in treated:
        able, place = treated[wanted.kind]
        if wanted.thing not in able or place not in plan.places:
            return False
    elsewhere = any(kinds[r] != wanted.target for r in where)
    here = wanted.target in plan.places and wanted.thing in facts.holds[wanted.target]
    return elsewhere and here


def _receptacles(plan: FloorPlan, facts: Tables) -> tuple[tuple[Receptacle, ...], list[str]]:
    """The receptacles in the order of their ids, and the type of each as in the tables."""
    found = []
    for kind, places in plan.places.items():
        for number, place in enumerate(places):
            whole = kind.removesuffix("Basin")
            id = f"{whole}|{number + 1:02d}" + (f"|{kind}" if whole != kind else "")
            found.append((id, kind, place))
    found.sort(key=lambda entry: sort_key(entry[0]))
    spoken = names([id for id, _, _ in found])
    receptacles = tuple(
        Receptacle(id, name, kind.lower(), place, kind in facts.openable)
        for (id, kind, place), name in zip(found, spoken, strict=True)
    )
    return receptacles, [kind for _, kind, _ in found]


def _where(kind: str, kinds: list[str], facts: Tables) -> list[int]:
    """Numbers of the receptacles in which things of a type may lie."""
    if kind in facts.fixed:  # no table says where lamps and plants stand: where books may lie
        kind = "Book"
        closed = facts.openable
        return [r for r, k in enumerate(kinds) if kind in facts.holds[k] and k not in closed]
    return [r for r, k in enumerate(kinds) if kind in facts.holds[k]]


def _place_wanted(
    wanted: Wanted, where: list[int], kinds: list[str], chance: Random
) -> list[tuple[str, int]]:
    count = chance.randint(1, 2) + (wanted.kind == "two")
    elsewhere = [r for r in where if kinds[r] != wanted.target]
    first = [chance.choice(elsewhere) for _ in range(count)]
    if wanted.kind == "two" and chance.random() < 0.25:
        there = [r for r in where if kinds[r] == wanted.target]
        first[0] = chance.choice(there)
    return [(wanted.thing, r) for r in first]


def _things(placed: list[tuple[str, int]], facts: Tables) -> tuple[Thing, ...]:
    found = []
    count: dict[str, int] = {}
    for kind, receptacle in placed:
        count[kind] = count.get(kind, 0) + 1
        found.append((f"{kind}|{count[kind]:02d}", kind, receptacle))
    found.sort(key=lambda entry: sort_key(entry[0]))
    spoken = names([id for id, _, _ in found])
    return tuple(
        Thing(
            id,
            name,
            kind.lower(),
            receptacle,
            takeable=kind not in facts.fixed,
            heatable=kind in facts.heatable,
            coolable=kind in facts.coolable,
            cleanable=kind in facts.cleanable,
            toggleable=kind in facts.toggleable,
            sliceable=kind in facts.sliceable,
            container=kind in facts.containers,
        )
        for (id, kind, receptacle), name in zip(found, spoken, strict=True)
    )


@cache
def _holds() -> dict[str, frozenset[str]]:
    """What may lie where, in lower case as games have it; shared by all games."""
    return {
        kind.lower(): frozenset(thing.lower() for thing in things)
        for kind, things in tables().holds.items()
        if things
    }

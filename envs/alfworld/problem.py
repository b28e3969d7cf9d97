"""Games as planning problems: the PDDL text that alfworld's own engine plays.

Invariant: `reading.read(write(game))` is the same game, text for text.

Not here: reading problems (`reading`), and the domain, which is alfworld's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .game import NOWHERE, Game, Goal, mangled
from .rules import KNIVES, TREATED

FLAGS: Final = ("heatable", "coolable", "cleanable", "toggleable", "sliceable")
"""What can be done to a thing, in the words of the domain and of `Thing`."""


def write(game: Game, *, name: str = "rollwave") -> str:
    """The problem of a game, in the form of the published `initial_state.pddl`."""
    places = sorted(game.at)
    kinds = {receptacle.kind for receptacle in game.receptacles}
    held = {kind for things in game.holds.values() for kind in things}
    things = {thing.kind for thing in game.things} | held | {game.goal.thing} | KNIVES
    if game.goal.kind == "look":
        things.add(game.goal.target)
    else:
        kinds.add(game.goal.target)
    # The domain names the knives and what treats things, so that a problem has to declare them.
    objects = [
        "agent1 - agent",
        *(f"loc{place:03d} - location" for place in places),
        "locstart - location",
        *(f"{mangled(r.id)} - receptacle" for r in game.receptacles),
        *(f"{mangled(t.id)} - object" for t in game.things),
        *(
            f"{kind}Type - rtype"
            for kind in sorted(kinds | set(game.holds) | set(TREATED.values()))
        ),
        *(f"{kind}Type - otype" for kind in sorted(things)),
    ]
    return "\n".join(
        [
            f"(define (problem {name})",
            "(:domain alfred)",
            "(:objects",
            *objects,
            ")",
            "(:init",
            *_facts(game),
            ")",
            f"(:goal {_goal(game.goal)})",
            ")\n",
        ]
    )


def _facts(game: Game) -> Iterator[str]:
    start = "locstart" if game.start == NOWHERE else f"loc{game.start:03d}"
    yield f"(atLocation agent1 {start})"
    for number, r in enumerate(game.receptacles):
        id = mangled(r.id)
        yield f"(receptacleType {id} {r.kind}Type)"
        yield f"(receptacleAtLocation {id} loc{r.place:03d})"
        if r.openable:
            yield f"(openable {id})"
        if number in game.opened:
            yield f"(opened {id})"
    for kind, things in sorted(game.holds.items()):
        for thing in sorted(things):
            yield f"(canContain {kind}Type {thing}Type)"
    ids = {t.name: t.id for t in game.things}
    for t in game.things:
        id = mangled(t.id)
        yield f"(objectType {id} {t.kind}Type)"
        if t.takeable:
            yield f"(pickupable {id})"
        for flag in FLAGS:
            if getattr(t, flag):
                yield f"({flag} {id})"
        if t.container:
            yield f"(isReceptacleObject {id})"
        for name in t.inside:
            yield f"(inReceptacleObject {mangled(ids[name])} {id})"
        if t.start != NOWHERE:
            receptacle = game.receptacles[t.start]
            yield f"(inReceptacle {id} {mangled(receptacle.id)})"
            yield f"(objectAtLocation {id} loc{receptacle.place:03d})"


_PLACED: Final = (
    "(exists (?r - receptacle) (exists (?o - object) (and {0}(objectType ?o {1}Type) "
    "(receptacleType ?r {2}Type) {3}(inReceptacle ?o ?r))))"
)
_TWO: Final = (
    "(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {0}Type) "
    "(receptacleType ?r {1}Type) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and "
    "(not (= ?o1 ?o2)) (objectType ?o2 {0}Type) (receptacleType ?r {1}Type) "
    "(inReceptacle ?o2 ?r))))))"
)
_LOOK: Final = (
    "(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and "
    "(objectType ?ot {1}Type) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) "
    "(atLocation ?a ?l) (inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and "
    "(objectType ?o {0}Type) (holds ?a ?o)))"
)
_TREATED: Final[Mapping[str, tuple[str, str]]] = {
    "heat": ("(heatable ?o) ", "(isHot ?o) "),
    "cool": ("(coolable ?o) ", "(isCool ?o) "),
    "clean": ("(cleanable ?o) ", "(isClean ?o) "),
}


def _goal(goal: Goal) -> str:
    if goal.kind == "two":
        inner = _TWO.format(goal.thing, goal.target)
    elif goal.kind == "look":
        inner = _LOOK.format(goal.thing, goal.target)
    else:
        able, done = _TREATED.get(goal.kind, ("", ""))
        inner = _PLACED.format(able, goal.thing, goal.target, done)
    return f"(and {inner})"

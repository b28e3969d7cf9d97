"""One game: a furnished room, where the agent starts, and the goal.

Receptacles and things are numbered in the order of their ids, which is the order in which
every text lists them. Names count downwards in that order ("apple 3, apple 2, apple 1"), as
ALFWorld's do.

Invariant: a game is never changed; sessions share it and keep a `State` each.

Not here: how a game is made (`generate`) or read from a file (`gamefile`), and its rules
(`rules`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .tables import Kind

NOWHERE: Final = -1
"""In no receptacle: the agent's place at the start; a thing that stands on the floor."""


@dataclass(frozen=True, slots=True)
class Receptacle:
    """What things lie in or on."""

    id: str
    name: str
    kind: str
    """Its type in lower case: "countertop"."""
    place: int
    """Receptacles at one place are reached together."""
    openable: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    """What lies in receptacles."""

    id: str
    name: str
    kind: str
    start: int
    """The number of the receptacle that it lies in at first, or NOWHERE."""
    takeable: bool = True
    heatable: bool = False
    coolable: bool = False
    cleanable: bool = False
    toggleable: bool = False
    sliceable: bool = False
    container: bool = False
    inside: tuple[str, ...] = ()
    """Names of what lies in the thing itself. Nothing can be put there or taken out."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What ends the game: types in lower case, as in `Receptacle` and `Thing`."""

    kind: Kind
    thing: str
    target: str
    """The type of receptacle; of the lamp, for `look`."""


@dataclass(frozen=True, eq=False)
class Game:
    """A furnished room with a goal. Compared by identity."""

    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    goal: Goal
    sentence: str
    """The goal in words, without the full stop."""
    holds: Mapping[str, frozenset[str]]
    """Types of things that may be put into a type of receptacle, in lower case."""
    opened: frozenset[int] = frozenset()
    """Receptacles that are open at first."""
    start: int = NOWHERE
    """The agent's place."""
    at: Mapping[int, tuple[int, ...]] = field(init=False)
    """Receptacles at each place."""

    def __post_init__(self) -> None:
        at: dict[int, tuple[int, ...]] = {}
        for number, receptacle in enumerate(self.receptacles):
            at[receptacle.place] = (*at.get(receptacle.place, ()), number)
        object.__setattr__(self, "at", at)

    def admits(self, receptacle: Receptacle, thing: Thing) -> bool:
        """Whether the thing may be put there."""
        return thing.kind in self.holds.get(receptacle.kind, ())


def names(ids: Sequence[str]) -> list[str]:
    """Names for ids in their order: the type in lower case, and a number that counts down.

    An id is `Type|…`, or `Sink|…|SinkBasin`, whose type is that of its part.
    """
    kinds = [kind_of(id) for id in ids]
    left = Counter(kinds)
    found = []
    for kind in kinds:
        found.append(f"{kind} {left[kind]}")
        left[kind] -= 1
    return found


def kind_of(id: str) -> str:
    """The type in an id, in lower case."""
    kind = id.partition("|")[0].lower()
    return f"{kind}basin" if "basin" in id.lower() and not kind.endswith("basin") else kind


def sort_key(id: str) -> str:
    """Ids sort as they are spelled in a problem file, where a bar is a word."""
    return mangled(id).lower()


_SPELLED: Final = {"|": "_bar_", "-": "_minus_", "+": "_plus_", ".": "_dot_", ",": "_comma_"}


def mangled(id: str) -> str:
    """An id as problem files spell it."""
    for mark, word in _SPELLED.items():
        id = id.replace(mark, word)
    return id


def unmangled(id: str) -> str:
    """An id from its spelling in a problem file."""
    for mark, word in _SPELLED.items():
        id = id.replace(word, mark)
    return id

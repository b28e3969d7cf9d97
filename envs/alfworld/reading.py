"""Reads planning problems: from the PDDL text of a game, generated or published, to the game.

A problem is data: it is cut into words and brackets and looked at, never run. What a file
may hold is limited, and whatever is not understood is one ConfigError.

Invariant: `read(write(game))` is the same game, text for text.

Not here: the other direction (`problem`), and files (`gamefile`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from ...engine.errors import ConfigError
from .game import NOWHERE, Game, Goal, Receptacle, Thing, names, unmangled
from .problem import FLAGS
from .tables import Kind

MAX_CHARACTERS: Final = 4_000_000
"""Longest problem accepted; the published ones have some 100,000."""
MAX_DEPTH: Final = 64
MAX_NAMES: Final = 5_000

Node = str | list["Node"]
"""A word, or what stands in brackets."""

_STATE: Final = ("isHot", "isCool", "isClean", "isToggled", "isSliced")


class _Facts:
    """The facts of a problem, by predicate in lower case."""

    def __init__(self, nodes: list[Node]) -> None:
        self._by: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for node in nodes:
            words = [node] if isinstance(node, str) else node
            if not words or not isinstance(words[0], str):
                raise ConfigError("a fact of the problem does not begin with a word")
            if words[0] == "=":  # distances and costs
                continue
            if not all(isinstance(word, str) for word in words):
                raise ConfigError(f"the fact {words[0]!r:.60} of the problem is not plain")
            first, *rest = (str(word) for word in words)
            self._by[first.lower()].append(tuple(rest))

    def one(self, name: str) -> set[str]:
        """What a predicate of one argument holds of."""
        return {self._argument(name, fact, 1)[0] for fact in self._by[name.lower()]}

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """What a predicate of two arguments holds of, without repeats."""
        found = [self._argument(name, fact, 2) for fact in self._by[name.lower()]]
        return list(dict.fromkeys((one, two) for one, two in found))

    def mapping(self, name: str) -> dict[str, str]:
        """As `pairs`, where the first argument may have one partner only."""
        found = dict(self.pairs(name))
        if len(found) != len(self.pairs(name)):
            twice = next(one for one, two in self.pairs(name) if found[one] != two)
            raise ConfigError(f"the problem says {name} of {unmangled(twice)!r:.80} twice")
        return found

    @staticmethod
    def _argument(name: str, fact: tuple[str, ...], count: int) -> tuple[str, ...]:
        if len(fact) != count:
            raise ConfigError(f"{name} takes {count} arguments in a problem, not {len(fact)}")
        return fact


def read(text: str, sentence: str) -> Game:
    """The game of a problem.

    Args:
        text: the problem, as in `initial_state.pddl`.
        sentence: the goal in words, which problems do not have.

    Raises:
        ConfigError: the text is no problem of this domain, or of a type of task that
            ALFWorld itself leaves out.
    """
    sections = _sections(text)
    facts = _Facts(sections[":init"])
    types = facts.mapping("receptacleType")
    at = facts.mapping("receptacleAtLocation")
    things = facts.mapping("objectType")
    located = facts.mapping("inReceptacle")
    if not at or at.keys() - types.keys():
        raise ConfigError("the problem has no receptacles, or one in the room without a type")
    if unknown := (located.keys() - things.keys()) | (set(located.values()) - types.keys()):
        raise ConfigError(f"{unmangled(min(unknown))!r:.80} holds something or lies there untyped")
    for flag in _STATE:
        if facts.one(flag):
            raise ConfigError(f"the problem begins with {flag} of something: not supported")
    if facts.pairs("holds"):
        raise ConfigError("the agent of the problem begins with something in its hand")
    ids = sorted(types.keys() | things.keys(), key=str.lower)
    if len(ids) > MAX_NAMES:
        raise ConfigError(f"the problem has more than {MAX_NAMES} things")
    spoken = dict(zip(ids, names([unmangled(id) for id in ids]), strict=True))
    # What has a type but no place cannot be reached: it only takes up a number.
    receptacle_ids = [id for id in ids if id in at]
    thing_ids = [id for id in ids if id in things]
    number = {id: n for n, id in enumerate(receptacle_ids)}
    places = {place: n for n, place in enumerate(sorted(set(at.values()), key=str.lower))}
    openable, opened = facts.one("openable"), facts.one("opened")
    inside: dict[str, list[str]] = defaultdict(list)
    for inner, outer in sorted(facts.pairs("inReceptacleObject"), key=lambda pair: pair[0].lower()):
        if inner in spoken:
            inside[outer].append(spoken[inner])
    flags = {flag: facts.one(flag) for flag in (*FLAGS, "pickupable", "isReceptacleObject")}
    holds: dict[str, set[str]] = defaultdict(set)
    for receptacle, thing in facts.pairs("canContain"):
        holds[_kind(receptacle)].add(_kind(thing))
    agent = dict(facts.pairs("atLocation"))
    if len(agent) != 1:
        raise ConfigError("the problem does not say where its one agent is")
    return Game(
        tuple(
            Receptacle(unmangled(id), spoken[id], _kind(types[id]), places[at[id]], id in openable)
            for id in receptacle_ids
        ),
        tuple(
            Thing(
                unmangled(id),
                spoken[id],
                _kind(things[id]),
                number.get(located.get(id, ""), NOWHERE),
                takeable=id in flags["pickupable"],
                **{flag: id in flags[flag] for flag in FLAGS},
                container=id in flags["isReceptacleObject"],
                inside=tuple(inside[id]),
            )
            for id in thing_ids
        ),
        _read_goal(sections[":goal"]),
        sentence,
        {kind: frozenset(kinds) for kind, kinds in holds.items()},
        frozenset(number[id] for id in opened & number.keys()),
        places.get(next(iter(agent.values())), NOWHERE),
    )


def _kind(name: str) -> str:
    """AppleType or appletype → apple."""
    return name.lower().removesuffix("type")


_DONE: Final[Mapping[Kind, str]] = {"heat": "ishot", "cool": "iscool", "clean": "isclean"}


def _read_goal(nodes: list[Node]) -> Goal:
    """Tell the six types of task apart by what their goals speak of."""
    facts: dict[str, list[list[str]]] = defaultdict(list)
    waiting: list[Node] = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            words = [word for word in node if isinstance(word, str)]
            if words and len(words) == len(node):
                facts[words[0].lower()].append(words[1:])
            waiting += [part for part in node if isinstance(part, list)]
    variables = {words[0]: _kind(words[-1]) for words in facts["objecttype"] if len(words) == 2}
    targets = {_kind(words[-1]) for words in facts["receptacletype"] if words}
    if {"sliceable", "inreceptacleobject"} & facts.keys():
        raise ConfigError("the goal wants slices or movable receptacles: ALFWorld leaves these out")
    if "istoggled" in facts:
        lamp = {words[0] for words in facts["istoggled"] if words}
        lamps = {kind for name, kind in variables.items() if name in lamp}
        wanted = {kind for name, kind in variables.items() if name not in lamp}
        return _settled("look", wanted, lamps)
    kind: Kind = "two" if len(facts["inreceptacle"]) == 2 else "place"
    for name, done in _DONE.items():
        if done in facts:
            kind = name
    return _settled(kind, set(variables.values()), targets)


def _settled(kind: Kind, things: set[str], targets: set[str]) -> Goal:
    if len(things) != 1 or len(targets) != 1:
        raise ConfigError("the goal of the problem is none of the six types of task")
    return Goal(kind, things.pop(), targets.pop())


_WORD: Final = re.compile(r"[()]|[^\s()]+")


def _sections(text: str) -> dict[str, list[Node]]:
    """The parts of a problem by name, without their names."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"a problem has at most {MAX_CHARACTERS} characters, not {len(text)}")
    found: dict[str, list[Node]] = {}
    for node in _tree(text)[1:]:
        if isinstance(node, list) and node and isinstance(node[0], str):
            found[node[0].lower()] = node[1:]
    if missing := {":init", ":goal"} - found.keys():
        raise ConfigError(f"not a planning problem: it has no {min(missing)}")
    return found


def _tree(text: str) -> list[Node]:
    """Brackets to lists."""
    lines = (line.partition(";")[0] for line in text.splitlines())
    stack: list[list[Node]] = [[]]
    for match in _WORD.finditer("\n".join(lines)):
        word = match[0]
        if word == "(":
            if len(stack) > MAX_DEPTH:
                raise ConfigError(f"the brackets of the problem are deeper than {MAX_DEPTH}")
            opened: list[Node] = []
            stack[-1].append(opened)
            stack.append(opened)
        elif word == ")":
            if len(stack) == 1:
                raise ConfigError("the problem closes a bracket that was not opened")
            stack.pop()
        else:
            stack[-1].append(word)
    if len(stack) != 1 or len(stack[0]) != 1 or isinstance(stack[0][0], str):
        raise ConfigError("not a planning problem: its brackets do not match")
    return stack[0][0]

"""The expert: the fewest actions that craft the goal from what is in the inventory.

One `get` fetches any number of one item, and one `craft` runs one recipe once. So a
plan costs one action for each raw item it lacks and one for each run of a recipe,
and only the choice of recipes is open: which recipe, which member of a tag, or a
mixture of several. The planner walks the items from the goal down, so that all uses
of an item are known before it is supplied, tries every choice, and cuts a branch when
what is still lacking costs too much even at best (each item at least one action).

Invariant: no shorter sequence of commands reaches the goal (a test compares plans with
a breadth-first search through the session itself).

Not here: what the session answers (`environment`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

from .recipes import Book, Recipe


@dataclass(frozen=True, slots=True)
class _Way:
    """One recipe with its tags settled."""

    command: str
    count: int
    inputs: tuple[tuple[str, int], ...]


def _ways(recipe: Recipe, book: Book) -> Iterable[_Way]:
    counts = [count for _, count in recipe.inputs]
    for chosen in product(*(book.members(wanted) for wanted, _ in recipe.inputs)):
        inputs = tuple(zip(chosen, counts, strict=True))
        if len(dict(inputs)) == len(inputs):
            command = Recipe(recipe.output, recipe.count, inputs).command
            yield _Way(command, recipe.count, inputs)


class Planner:
    """Plans for one goal with the recipes that its task shows."""

    def __init__(self, book: Book, recipes: Iterable[Recipe], goal: str) -> None:
        self._book: Final = book
        self._goal: Final = goal
        self._ways: Final[dict[str, list[_Way]]] = {}
        for recipe in recipes:
            self._ways.setdefault(recipe.output, []).extend(_ways(recipe, book))
        self._order: Final = self._sorted()
        self._most: Final = [
            max((way.count for way in self._ways.get(item, ())), default=0) for item in self._order
        ]
        """Largest output of one action for each item; 0 for a raw item: any number."""
        self._best: int = 0
        self._found: list[str] | None = None

    def plan(self, inventory: Mapping[str, int]) -> list[str] | None:
        """The shortest commands to the goal, in order; None if there is no way.

        The first of several shortest plans, by the order of recipes and tag members.
        """
        lacking = [-inventory.get(item, 0) for item in self._order]
        lacking[0] = 1  # the goal is to craft it, also if one is at hand
        self._best = 10**9
        self._found = None
        self._descend(0, lacking, 0, [], [])
        return self._found

    def _sorted(self) -> list[str]:
        """The goal and all that may serve it, each before what it is made of."""
        done: dict[str, None] = {}

        def visit(item: str) -> None:
            if item not in done:
                for way in self._ways.get(item, ()):
                    for wanted, _ in way.inputs:
                        visit(wanted)
                done[item] = None

        visit(self._goal)
        return list(reversed(done))

    def _bound(self, position: int, lacking: list[int]) -> int:
        """Actions that supplying what is lacking takes at least."""
        return sum(
            -(-lacking[i] // self._most[i]) if self._most[i] else 1
            for i in range(position, len(lacking))
            if lacking[i] > 0
        )

    def _descend(
        self, position: int, lacking: list[int], cost: int, gets: list[str], crafts: list[str]
    ) -> None:
        """Supply the items from `position` on; keep the plan if it is the best so far."""
        while position < len(lacking) and lacking[position] <= 0:
            position += 1
        if cost + self._bound(position, lacking) >= self._best:
            return
        if position == len(lacking):
            self._best = cost
            self._found = [*gets, *reversed(crafts)]
            return
        item = self._order[position]
        if item in self._ways:
            self._spread(position, 0, lacking, cost, gets, crafts)
        elif self._book.raw(item):
            command = f"get {lacking[position]} {item}"
            self._descend(position + 1, lacking, cost + 1, [*gets, command], crafts)

    def _spread(
        self,
        position: int,
        number: int,
        lacking: list[int],
        cost: int,
        gets: list[str],
        crafts: list[str],
    ) -> None:
        """Share what is lacking of one item out to its ways, from way `number` on."""
        missing = lacking[position]
        if missing <= 0:
            self._descend(position + 1, lacking, cost, gets, crafts)
            return
        ways = self._ways[self._order[position]]
        if number == len(ways) or cost + self._bound(position, lacking) >= self._best:
            return
        way = ways[number]
        for runs in range(-(-missing // way.count), -1, -1):
            left = list(lacking)
            left[position] = missing - runs * way.count
            for wanted, count in way.inputs:
                left[self._order.index(wanted)] += runs * count
            self._spread(
                position, number + 1, left, cost + runs, gets, [*crafts, *[way.command] * runs]
            )

"""The recipes of Minecraft 1.16, as TextCraft lets an agent use them.

A `Book` says which recipes are live. An item with a live recipe must be crafted; any
other item can be had for the asking. So that nothing is made of itself, AgentGym's
TextCraft leaves recipes out: those that take one kind of block ("9 coal using 1 coal
block") and one direction of three circles (which one followed from the order of files
on the disk; here it is the one that the published trajectories show). 18 of the 562
craftable items are left without a recipe that way. They are goals all the same: the
book of such a goal has its recipes back, and whatever would then go in a circle is
raw.

A recipe input may be a tag: any of its accepted items serves, all of one kind.

Invariant: the live recipes of a book form no circle, tags followed. Names are written
with spaces, as the agent writes them.

Not here: which recipes a task shows (`tasks`), and the session (`environment`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Final

import msgspec

from ...engine.errors import ConfigError

_RECIPE: Final = re.compile(r"([0-9]{1,4}) ([^,]+?) using (.+)")
_INPUT: Final = re.compile(r"([0-9]{1,4}) ([^,]+)")
_CIRCULAR: Final = frozenset(
    {
        "9 gold nugget using 1 gold ingot",
        "1 iron ingot using 9 iron nugget",
        "4 honey bottle using 1 honey block, 4 glass bottle",
    }
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to craft: what goes in, in the order of the text, and what comes out."""

    output: str
    count: int
    inputs: tuple[tuple[str, int], ...]
    """(item or tag, how many), each name once."""

    @property
    def text(self) -> str:
        """`16 iron bars using 6 iron ingot`: the command without its first word."""
        inputs = ", ".join(f"{count} {name}" for name, count in self.inputs)
        return f"{self.count} {self.output} using {inputs}"

    @property
    def command(self) -> str:
        """The text as an agent gives it."""
        return f"craft {self.text}"

    def wants(self, name: str) -> bool:
        """Whether the item or tag is an input."""
        return any(name == wanted for wanted, _ in self.inputs)


def parse_recipe(text: str) -> Recipe:
    """Read `16 iron bars using 6 iron ingot`.

    Raises:
        ConfigError: the text is not of that form, or names an input twice.
    """
    whole = _RECIPE.fullmatch(text)
    parts = [_INPUT.fullmatch(part) for part in whole[3].split(", ")] if whole else []
    inputs = {part[2]: int(part[1]) for part in parts if part}
    if not whole or len(inputs) != len(parts) or not all((int(whole[1]), *inputs.values())):
        raise ConfigError(
            f"not a crafting command: {text[:100]!r}; it should read "
            "'craft 16 iron bars using 6 iron ingot'"
        )
    return Recipe(whole[2], int(whole[1]), tuple(inputs.items()))


class Book:
    """The live recipes, and what names mean. Immutable."""

    def __init__(self, recipes: Iterable[Recipe], items: frozenset[str], table: _Table) -> None:
        by_output: dict[str, tuple[Recipe, ...]] = {}
        for recipe in recipes:
            by_output[recipe.output] = (*by_output.get(recipe.output, ()), recipe)
        self.recipes: Final[Mapping[str, tuple[Recipe, ...]]] = by_output
        """Live recipes by output; an item that is not here is raw."""
        self.items: Final = items
        """Every item there is."""
        self.accepted: Final = table.accepted
        """The items that stand for a tag."""
        self.kinds: Final = frozenset(table.groups)
        """Names of tags and groups: kinds of things, not things."""
        self._table: Final = table
        self._depths: Final[dict[str, int]] = {}

    def raw(self, name: str) -> bool:
        """Whether `get` gives it."""
        return name in self.items and name not in self.recipes and name not in self.kinds

    def members(self, name: str) -> tuple[str, ...]:
        """The items that serve as this input: those of a tag, or the item itself."""
        return self.accepted.get(name) or (name,)

    def depth(self, name: str) -> int:
        """Crafting steps, one after the other, that its shallowest recipe takes; 0 if raw."""
        if name not in self._depths:
            ways = [way for item in self.members(name) for way in self.recipes.get(item, ())]
            self._depths[name] = min(
                (1 + max(self.depth(wanted) for wanted, _ in way.inputs) for way in ways), default=0
            )
        return self._depths[name]

    def tree(self, goal: str) -> tuple[Recipe, ...]:
        """Every live recipe that could serve on the way to the goal, the goal's first."""
        found: dict[Recipe, None] = {}
        waiting = [goal]
        seen = {goal}
        while waiting:
            for recipe in self.recipes.get(waiting.pop(0), ()):
                found[recipe] = None
                for wanted, _ in recipe.inputs:
                    new = [item for item in self.members(wanted) if item not in seen]
                    seen.update(new)
                    waiting.extend(new)
        return tuple(found)

    @cached_property
    def uses(self) -> Mapping[str, tuple[Recipe, ...]]:
        """Live recipes by input name."""
        uses: dict[str, tuple[Recipe, ...]] = {}
        for recipes in self.recipes.values():
            for recipe in recipes:
                for wanted, _ in recipe.inputs:
                    uses[wanted] = (*uses.get(wanted, ()), recipe)
        return uses

    def including(self, added: Iterable[Recipe]) -> Book:
        """This book with more recipes live; what would go in a circle with them is dropped."""
        live = {recipe: None for recipes in self.recipes.values() for recipe in recipes}
        new = [r for r in dict.fromkeys(added) if r not in live and not r.wants(r.output)]
        if not new:
            return self
        names = {name for recipe in new for name in (recipe.output, *dict(recipe.inputs))}
        items = self.items | (names - self.kinds)
        book = Book((*live, *new), items, self._table)
        for output in dict.fromkeys(recipe.output for recipe in new):
            circular = {
                recipe
                for recipe in book.tree(output)
                if recipe.output != output and output in book.reach(recipe)
            }
            if circular:
                kept = [r for rs in book.recipes.values() for r in rs if r not in circular]
                book = Book(kept, items, self._table)
        return book

    def reach(self, recipe: Recipe) -> frozenset[str]:
        """Every item that could be used up on the way to this recipe's output."""
        seen: set[str] = set()
        waiting = [item for wanted, _ in recipe.inputs for item in self.members(wanted)]
        while waiting:
            item = waiting.pop()
            if item not in seen:
                seen.add(item)
                for way in self.recipes.get(item, ()):
                    waiting.extend(m for wanted, _ in way.inputs for m in self.members(wanted))
        return frozenset(seen)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`recipes.json`, see `derive`."""

    origin: str
    groups: tuple[str, ...]
    accepted: dict[str, tuple[str, ...]]
    recipes: tuple[str, ...]


@cache
def load_recipes() -> tuple[Recipe, ...]:
    """Every recipe of the game, live or not, in the order of the table."""
    return tuple(parse_recipe(text) for text in _table().recipes)


@cache
def _table() -> _Table:
    raw = (resources.files(__package__) / "recipes.json").read_bytes()
    return msgspec.json.decode(raw, type=_Table)


@cache
def load_book() -> Book:
    """The book with AgentGym's 544 craftable items. Loaded once; shared by all sessions."""
    recipes = load_recipes()
    items = {name for recipe in recipes for name in (recipe.output, *dict(recipe.inputs))}
    live = [recipe for recipe in recipes if not _left_out(recipe)]
    return Book(live, frozenset(items) - frozenset(_table().groups), _table())


def _left_out(recipe: Recipe) -> bool:
    only = recipe.inputs[0][0] if len(recipe.inputs) == 1 else ""
    return only.endswith(" block") or recipe.text in _CIRCULAR


@cache
def book_for(goal: str) -> Book:
    """The book in which this goal is crafted: the common one unless that leaves it out.

    Raises:
        ConfigError: no recipe makes that item.
    """
    book = load_book()
    if goal in book.recipes:
        return book
    own = [recipe for recipe in load_recipes() if recipe.output == goal]
    if not own:
        raise ConfigError(f"no recipe of Minecraft 1.16 crafts {goal[:100]!r}")
    return book.including(own)

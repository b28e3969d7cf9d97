"""Which tasks there are: every item of Minecraft 1.16 that can be crafted, 562 goals.

A task shows the recipes of the goal's whole crafting tree and up to ten that only
share an ingredient with it. Which ones, and in what order, follows from the goal
alone: the same in every process, whatever its hash seed and whatever ran before.

Goals are numbered by depth, then by name. Splits:

* `unseen` differs in kind: goals that need a plan of 12 actions or more or four
  crafting steps in a row, and everything made of the two nether woods, so that long
  plans and a whole family of materials never occur as a training goal;
* `test`, `dev` and `train` share the rest by a hash of the goal.

Invariant: the numbering and the splits are fixed; a change is a new version of the
environment.

Not here: sessions (`environment`), and which recipes are live (`recipes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from ...engine.errors import ConfigError
from ...engine.seeds import derive
from .expert import Planner
from .recipes import Book, Recipe, book_for, load_book, load_recipes, parse_recipe

MAX_DISTRACTORS: Final = 10
LONG_PLAN: Final = 12
"""Actions of the shortest plan from which a goal counts as unseen."""
DEEP: Final = 4
_NETHER_WOODS: Final = ("crimson", "warped")
_TEST, _DEV = 100, 50

_HEAD: Final = "Crafting commands:\n"
_GOAL: Final = "\n\nGoal: craft "


@dataclass(frozen=True, eq=False)
class Setting:
    """One task, ready to play; shared by all sessions on it."""

    book: Book
    goal: str
    commands: tuple[str, ...]
    planner: Planner

    @property
    def observation(self) -> str:
        """The first observation."""
        return f"{_HEAD}{chr(10).join(self.commands)}{_GOAL}{self.goal}."


@cache
def goals() -> tuple[str, ...]:
    """The goals, by task number."""
    names = {recipe.output for recipe in load_recipes()}
    return tuple(sorted(names, key=lambda name: (book_for(name).depth(name), name)))


@cache
def numbered(index: int) -> Setting:
    """The task of that number.

    Raises:
        ConfigError: there is no such task.
    """
    if not 0 <= index < len(goals()):
        raise ConfigError(f"textcraft has tasks 0 to {len(goals()) - 1}, not {index}")
    goal = goals()[index]
    book = book_for(goal)
    tree = book.tree(goal)
    shown = [*tree, *_distractors(book, tree, goal)]
    commands = tuple(sorted((recipe.command for recipe in shown), key=_lot("order", goal)))
    return Setting(book, goal, commands, Planner(book, tree, goal))


def _distractors(book: Book, tree: Sequence[Recipe], goal: str) -> list[Recipe]:
    """Recipes outside the tree that use something of it; few for each thing, ten at most."""
    drawn: dict[str, Recipe] = {}
    for wanted in dict.fromkeys(name for recipe in tree for name, _ in recipe.inputs):
        uses = {recipe.text: recipe for recipe in book.uses[wanted] if recipe not in tree}
        for text in sorted(uses, key=_lot(wanted, goal))[:MAX_DISTRACTORS]:
            drawn[text] = uses[text]
    return [drawn[text] for text in sorted(drawn, key=_lot("all", goal))[:MAX_DISTRACTORS]]


class _lot:  # noqa: N801 (a sort key that reads as a function)
    """Sort key: the order in which texts are drawn for a goal."""

    def __init__(self, purpose: str, goal: str) -> None:
        self._seed = derive(0, "textcraft", goal, purpose)

    def __call__(self, text: str) -> int:
        return derive(self._seed, text)


def published(commands: Sequence[str], goal: str) -> Setting:
    """A task given by its own texts, as in published data whose numbers mean other tasks.

    Commands are full texts, `craft 16 iron bars using 6 iron ingot`. Recipes that are
    not live otherwise are live in this task.

    Raises:
        ConfigError: a text is not a crafting command, or none crafts the goal.
    """
    recipes = [parse_recipe(command.removeprefix("craft ")) for command in commands]
    names = {recipe.output for recipe in recipes}
    if goal not in names:
        raise ConfigError(f"no crafting command of this task makes its goal {goal[:100]!r}")
    book = book_for(goal) if goal in goals() else load_book()
    book = book.including(recipes)
    return Setting(book, goal, tuple(commands), Planner(book, recipes, goal))


def parse_observation(text: str) -> tuple[tuple[str, ...], str]:
    """Read commands and goal off a first observation.

    Raises:
        ConfigError: the text is not a first observation of TextCraft.
    """
    start = text.find(_HEAD)
    body, mark, goal = text[start + len(_HEAD) :].partition(_GOAL)
    if start < 0 or not mark or not goal.rstrip().endswith("."):
        raise ConfigError(f"not a first observation of TextCraft: {text[:100]!r}")
    return tuple(body.split("\n")), goal.rstrip()[:-1]


@cache
def splits() -> Mapping[str, tuple[int, ...]]:
    """Task numbers by split: train, dev, test, unseen; disjoint, together all."""
    unseen = tuple(index for index in range(len(goals())) if _unseen(index))
    rest = [index for index in range(len(goals())) if index not in set(unseen)]
    rest.sort(key=lambda index: derive(0, "textcraft", "split", goals()[index]))
    test, dev, train = rest[:_TEST], rest[_TEST : _TEST + _DEV], rest[_TEST + _DEV :]
    return {
        "train": tuple(sorted(train)),
        "dev": tuple(sorted(dev)),
        "test": tuple(sorted(test)),
        "unseen": unseen,
    }


def _unseen(index: int) -> bool:
    goal = goals()[index]
    return (
        any(wood in goal.split() for wood in _NETHER_WOODS)
        or book_for(goal).depth(goal) >= DEEP
        or plan_lengths()[index] >= LONG_PLAN
    )


@cache
def plan_lengths() -> tuple[int, ...]:
    """Actions of the shortest plan, by task number. All plans take about 0.1 s, once."""
    lengths = []
    for goal in goals():
        book = book_for(goal)
        plan = Planner(book, book.tree(goal), goal).plan({})
        assert plan is not None, goal  # every goal has a recipe, and its book has no circle
        lengths.append(len(plan))
    return tuple(lengths)

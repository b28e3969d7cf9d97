"""TextCraft's expert: no way is shorter than its plan, from the start or from anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.envs.base import Task
from rollwave.envs.textcraft import TextCraft
from rollwave.envs.textcraft.expert import Planner
from rollwave.envs.textcraft.recipes import book_for, load_book, parse_recipe
from rollwave.envs.textcraft.tasks import goals, numbered, plan_lengths

ENV = "textcraft-v1"


def test_the_expert_finishes_every_task_as_planned() -> None:
    session = TextCraft()
    for index, length in enumerate(plan_lengths()):
        session.reset(Task(ENV, index), 0)
        for _ in range(length - 1):
            assert not session.step(session.expert() or "").done
        assert session.step(session.expert() or "").success
    assert max(plan_lengths()) == 48


def commands_of(session: TextCraft) -> list[str]:
    """Every command worth trying: each recipe with each member of its tags, and each raw
    item, so many at once that it never has to be fetched twice."""
    setting = session._started()
    commands = []
    for recipe in map(parse_recipe, (text.removeprefix("craft ") for text in setting.commands)):
        texts = [""]
        for wanted, count in recipe.inputs:
            texts = [
                f"{text}, {count} {member}"
                for text in texts
                for member in setting.book.members(wanted)
            ]
            if setting.book.raw(wanted):
                commands.append(f"get 999 {wanted}")
        commands += [f"craft 1 {recipe.output} using {text[2:]}" for text in texts]
    return list(dict.fromkeys(commands))


def shortest(session: TextCraft, limit: int) -> int:
    """Length of the shortest way to the goal by breadth-first search through the session."""
    commands = commands_of(session)
    frontier = [session.snapshot()]
    seen = {frozenset(session.inventory().items())}
    probe = TextCraft()
    for depth in range(1, limit + 1):
        reached = []
        for state in frontier:
            for command in commands:
                probe.restore(state)
                if command.startswith("get") and probe.inventory().get(command[8:], 0) > 500:
                    continue
                if probe.step(command).success:
                    return depth
                key = frozenset(probe.inventory().items())
                if key not in seen:
                    seen.add(key)
                    reached.append(probe.snapshot())
        frontier = reached
    return limit + 1


def is_small(index: int) -> bool:
    return len(numbered(index).book.tree(goals()[index])) <= 3 and plan_lengths()[index] <= 5


SMALL = [index for index in range(562) if is_small(index)]


@pytest.mark.parametrize("index", SMALL[::2])
def test_no_way_is_shorter_than_the_plan(index: int) -> None:
    # Only the tree can help: other recipes only use up what it needs.
    tree = numbered(index).book.tree(goals()[index])
    session = TextCraft.from_published([recipe.command for recipe in tree], goals()[index])
    assert shortest(session, plan_lengths()[index]) == plan_lengths()[index]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        ["item frame", "ladder", "torch", "gray dye", "pink dye", "stick", "bowl", "chest"]
    ),
    st.data(),
)
def test_plans_from_a_full_inventory_are_shortest_too(goal: str, data: st.DataObject) -> None:
    # A few ways are enough: with all eight kinds of planks the search would take minutes.
    commands = [
        recipe.command
        for recipe in book_for(goal).tree(goal)
        if not recipe.output.endswith("planks") or recipe.output in ("oak planks", "birch planks")
    ]
    session = TextCraft.from_published(commands, goal)
    book = session._started().book
    items = sorted(
        {
            member
            for command in commands
            for wanted, _ in parse_recipe(command.removeprefix("craft ")).inputs
            for member in book.members(wanted)
        }
    )
    have = data.draw(st.dictionaries(st.sampled_from(items), st.integers(1, 4), max_size=4))
    planner = Planner(book, [parse_recipe(c.removeprefix("craft ")) for c in commands], goal)
    plan = planner.plan(have)
    assert plan is not None
    state = session.snapshot()
    for item, count in have.items():
        session._inventory[item] = count
    loaded = session.snapshot()
    assert loaded != state or not have
    for action in plan[:-1]:
        assert session.step(action).observation.startswith(("Got", "Crafted"))
    assert session.step(plan[-1]).success
    session.restore(loaded)
    assert shortest(session, min(len(plan) - 1, 5)) > min(len(plan) - 1, 5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 561), st.lists(st.integers(0, 10**6), max_size=10))
def test_the_expert_goes_on_from_anywhere(index: int, choices: list[int]) -> None:
    session = TextCraft()
    session.reset(Task(ENV, index), 0)
    for choice in choices:
        actions = session.available_actions()
        if session.step(actions[choice % len(actions)]).done:
            return
    planner = numbered(index).planner
    left = len(planner.plan(session.inventory()) or ())
    while left:
        result = session.step(session.expert() or "")
        assert result.success == (left == 1)
        left -= 1
        if left:
            assert len(planner.plan(session.inventory()) or ()) == left


def test_without_a_way_there_is_no_plan() -> None:
    recipe = parse_recipe("1 stick using 2 oak planks")
    assert Planner(load_book(), [recipe], "stick").plan({}) is None
    assert Planner(load_book(), [recipe], "stick").plan({"oak planks": 2}) == [
        "craft 1 stick using 2 oak planks"
    ]

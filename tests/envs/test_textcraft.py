"""TextCraft: the recipe table, the tasks, the answers word for word, and the expert."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError, EnvironmentFault, MissingDependency
from rollwave.envs.base import Task
from rollwave.envs.registry import resolve
from rollwave.envs.textcraft import PROMPT, TextCraft
from rollwave.envs.textcraft.environment import clean
from rollwave.envs.textcraft.recipes import (
    Recipe,
    book_for,
    load_book,
    load_recipes,
    parse_recipe,
)
from rollwave.envs.textcraft.tasks import (
    DEEP,
    LONG_PLAN,
    MAX_DISTRACTORS,
    goals,
    numbered,
    parse_observation,
    plan_lengths,
    splits,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
ENV = "textcraft-v1"


def start(goal: str) -> TextCraft:
    session = TextCraft()
    session.reset(Task(ENV, goals().index(goal)), 0)
    return session


def say(session: TextCraft, *actions: str) -> str:
    for action in actions[:-1]:
        session.step(action)
    return session.step(actions[-1]).observation


# --- the table ---------------------------------------------------------------------


def test_table_has_every_recipe_of_the_game() -> None:
    recipes = load_recipes()
    assert len(recipes) == len({recipe.text for recipe in recipes}) == 634
    assert len({recipe.output for recipe in recipes}) == 562


def test_table_agrees_with_the_game_files() -> None:
    path = DATA / "textcraft-recipes.json.gz"
    if not path.is_file():
        pytest.skip(f"the game's recipe files are not at {path}")
    with gzip.open(path) as file:
        raw = json.load(file)

    def name(entry: object) -> str:
        first = entry[0] if isinstance(entry, list) else entry
        assert isinstance(first, dict)
        found = first.get("item") or first["tag"]
        return str(found).removeprefix("minecraft:").replace("_", " ")

    expected = set()
    for recipe in raw.values():
        needs: Counter[str] = Counter()
        if recipe["type"] == "minecraft:crafting_shaped":
            cells = Counter("".join(recipe["pattern"]))
            needs.update({name(entry): cells[key] for key, entry in recipe["key"].items()})
        elif recipe["type"] == "minecraft:crafting_shapeless":
            needs.update(map(name, recipe["ingredients"]))
        else:
            continue
        result = recipe["result"]
        count = result.get("count", 1)
        expected.add((name(result), count, frozenset(needs.items())))
    assert {(r.output, r.count, frozenset(r.inputs)) for r in load_recipes()} == expected


def test_table_is_what_derive_gives() -> None:
    from rollwave.envs.textcraft import derive

    try:
        text = derive.derive()
    except MissingDependency as error:
        pytest.skip(str(error))
    assert text == derive.TARGET.read_text(encoding="utf-8")


@given(st.sampled_from(load_recipes()))
def test_recipe_text_is_read_back(recipe: Recipe) -> None:
    assert parse_recipe(recipe.text) == recipe


@pytest.mark.parametrize(
    "text",
    [
        *("", "16 iron bars", "x using 1 a", "1 a using b", "1 a using 1 b,1 c"),
        *("1 a using 1 b, 1 b", "0 a using 1 b", "1 a using 0 b", "99999 a using 1 b"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a crafting command"):
        parse_recipe(text)


# --- books --------------------------------------------------------------------------


def test_the_common_book_crafts_what_agentgym_crafts() -> None:
    book = load_book()
    assert len(book.recipes) == 544
    assert book.raw("iron ingot")
    assert book.raw("gold nugget")
    assert book.raw("oak logs")  # a tag that no group spells is a thing of its own
    assert not book.raw("oak planks")
    assert not book.raw("planks")  # a kind of thing
    assert not book.raw("charcoal")  # no recipe names it
    assert "white wool" not in book.members("wool")


def test_no_item_is_made_of_itself() -> None:
    for goal in goals():
        book = book_for(goal)
        for recipe in book.tree(goal):
            assert recipe.output not in book.reach(recipe), goal


def test_goals_that_agentgym_leaves_out_have_their_recipes_back() -> None:
    left_out = [goal for goal in goals() if goal not in load_book().recipes]
    assert len(left_out) == 18
    for goal in left_out:
        assert book_for(goal).recipes[goal]
    assert book_for("iron ingot").raw("iron nugget")
    assert not load_book().raw("iron nugget")


@given(st.lists(st.tuples(*[st.sampled_from("abcdef")] * 2), max_size=12))
def test_added_recipes_never_make_a_circle(pairs: list[tuple[str, str]]) -> None:
    added = [Recipe(output, 1, ((needed, 1),)) for output, needed in pairs]
    book = load_book().including(added)
    for letter in "abcdef":
        for recipe in book.tree(letter):
            assert recipe.output not in book.reach(recipe)


# --- tasks --------------------------------------------------------------------------


def test_goals_are_numbered_by_depth_then_name() -> None:
    assert len(goals()) == len(set(goals())) == 562
    keys = [(book_for(goal).depth(goal), goal) for goal in goals()]
    assert keys == sorted(keys)
    assert keys[0][0] == 1


def test_splits_are_disjoint_and_hold_every_task() -> None:
    members = [index for split in splits().values() for index in split]
    assert sorted(members) == list(range(562))
    sizes = {name: len(split) for name, split in splits().items()}
    assert sizes == {"train": 356, "dev": 50, "test": 100, "unseen": 56}


def test_unseen_differs_in_kind() -> None:
    seen = set(range(562)) - set(splits()["unseen"])
    assert all(plan_lengths()[index] < LONG_PLAN for index in seen)
    assert all(book_for(goals()[index]).depth(goals()[index]) < DEEP for index in seen)
    assert not any({"crimson", "warped"} & set(goals()[index].split()) for index in seen)


def fingerprint() -> str:
    text = "\0".join(numbered(index).observation for index in range(562))
    return blake2b(text.encode(), digest_size=16).hexdigest()


GOLDEN = "972f1f3182f2572d08bf41c0a65410e3"


def test_tasks_are_the_same_for_ever() -> None:
    """A changed text or number is a new version of the environment."""
    assert fingerprint() == GOLDEN


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_tasks_do_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    code = (
        "from hashlib import blake2b\n"
        "from rollwave.envs.textcraft.tasks import numbered\n"
        "text = '\\0'.join(numbered(i).observation for i in reversed(range(562)))\n"
        "print(blake2b(text.encode(), digest_size=16).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    text = "\0".join(numbered(index).observation for index in reversed(range(562)))
    assert out.stdout.strip() == blake2b(text.encode(), digest_size=16).hexdigest()


@given(st.integers(0, 561))
def test_a_task_shows_its_tree_and_few_distractors(index: int) -> None:
    setting = numbered(index)
    tree = {recipe.command for recipe in setting.book.tree(setting.goal)}
    shown = set(setting.commands)
    assert len(shown) == len(setting.commands)
    assert tree <= shown
    distractors = shown - tree
    assert len(distractors) <= MAX_DISTRACTORS
    used = {name for recipe in setting.book.tree(setting.goal) for name, _ in recipe.inputs}
    for command in distractors:
        recipe = parse_recipe(command.removeprefix("craft "))
        assert used & set(dict(recipe.inputs))
    assert parse_observation(setting.observation) == (setting.commands, setting.goal)


def test_registry_builds_the_family() -> None:
    spec = resolve("textcraft")
    assert (spec.id, spec.turn_limit, spec.prompt) == (ENV, 50, PROMPT)
    assert spec.expert_success == 1.0
    assert resolve("textcraft-v1?turn_limit=20").expert_success == pytest.approx(550 / 562)
    with pytest.raises(ConfigError, match="turn_limit must be 1 to 1000"):
        resolve("textcraft-v1?turn_limit=0")


# --- answers, word for word ---------------------------------------------------------------


def test_first_observation_and_a_whole_episode() -> None:
    session = start("iron bars")
    first = session.observation()
    assert first.startswith("Crafting commands:\ncraft ")
    assert "\ncraft 16 iron bars using 6 iron ingot\n" in first
    assert first.endswith("\n\nGoal: craft iron bars.")
    assert say(session, "inventory") == "Inventory: You are not carrying anything."
    assert say(session, "get 6 iron ingot") == "Got 6 iron ingot"
    assert say(session, "inventory") == "Inventory: [iron ingot] (6)"
    end = session.step("craft 16 iron bars using 6 iron ingot")
    assert end.observation == "Crafted 16 minecraft:iron_bars"
    assert (end.reward, end.terminated, end.truncated, end.success) == (1.0, True, False, True)


NO_RECIPE = "Could not find a valid recipe for ItemTagWithCount(item_tag=ItemTag"
PLANKS = ("get 2 oak logs", "craft 4 oak planks using 1 oak logs")


@pytest.mark.parametrize(
    ("actions", "answer"),
    [
        (["get brown dye"], "Could not execute get brown dye"),
        (["Get 1 string"], "Could not execute Get 1 string"),
        ([""], "Could not execute "),
        (["craft 1 stick using"], "Could not execute craft 1 stick using"),
        (["get 5 stick"], "Could not find stick"),
        (["get 1 planks"], "Could not find planks"),
        (["get 1 unobtainium"], "Could not find unobtainium"),
        (["get 2 string, 3 flint"], "Could not find string, 3 flint"),
        (["get 007 string"], "Got 7 string"),
        (["get 0 string", "inventory"], "Inventory: [string] (0)"),
        (["look"], "Inventory: You are not carrying anything."),
        (["inventory please"], "Inventory: You are not carrying anything."),
        (["get 1 string.\nThen I wait"], "Got 1 string"),
        (["craft 1 stick using bamboo"], "Wrong item format: bamboo"),
        (["craft 1 stick using 2 bamboo"], "Could not find enough items to craft minecraft:stick"),
        (["craft 4 sticks using 1 flint"], "Could not find enough items to craft None"),
        (["get 2 bamboo", "craft 9 stick using 2 bamboo"], "Crafted 1 minecraft:stick"),
        (["get 2 bamboo", "craft stick using 2 bamboo"], "Crafted 1 minecraft:stick"),
        (
            ["get 1 string", "craft 4 spruce planks using 1 string"],
            f"{NO_RECIPE}(tag=None, item_id='minecraft:spruce_planks'), count=4)",
        ),
        (
            ["get 1 string", "craft sticks using 1 string"],
            f"{NO_RECIPE}(tag='minecraft:sticks', item_id=None), count=1)",
        ),
        (
            [*PLANKS, "craft 4 stick using 2 oak planks", "inventory"],
            "Inventory: [oak logs] (1) [oak planks] (2) [stick] (4)",
        ),
        (
            [
                "get 2 oak logs",
                "craft 4 oak planks using 1 oak logs",
                "craft 4 stick using 2 planks",
            ],
            "Could not find enough items to craft minecraft:stick",
        ),
        (
            ["get 1 bamboo", "craft 1 stick using 1 bamboo, 1 bamboo"],
            f"{NO_RECIPE}(tag=None, item_id='minecraft:stick'), count=1)",
        ),
        (
            ["get 3 bamboo", "craft 1 stick using 3 bamboo"],
            f"{NO_RECIPE}(tag=None, item_id='minecraft:stick'), count=1)",
        ),
        (["get 9999999999 string"], "Could not execute get 9999999999 string"),
    ],
)
def test_answers(actions: list[str], answer: str) -> None:
    assert say(start("painting"), *actions) == answer


def test_a_tag_takes_one_kind_only() -> None:
    session = start("chest")
    say(session, "get 9 oak logs", "get 9 birch logs")
    for wood in ("oak", "birch"):
        say(session, f"craft 4 {wood} planks using 1 {wood} logs")
        say(session, f"craft 4 {wood} planks using 1 {wood} logs")
    mixed = say(session, "craft 1 chest using 4 oak planks, 4 birch planks")
    assert mixed.startswith("Could not find a valid recipe for ItemTagWithCount")
    assert session.step("craft 1 chest using 8 birch planks").success


@given(st.text(max_size=60))
def test_clean_leaves_one_line_of_plain_words(text: str) -> None:
    command = clean(text)
    assert command == " ".join(command.split())
    assert set(command) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789, ")
    assert clean(command) == command


# --- the laws -------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["planks", "oak planks", "stick", "sticks", "oak logs", "wool", "white wool", "string", "a"]
)
COMMANDS = st.one_of(
    st.just("inventory"),
    st.builds("get {} {}".format, st.integers(0, 99), NAMES),
    st.builds("craft {} {} using {} {}".format, st.integers(0, 9), NAMES, st.integers(0, 9), NAMES),
    st.builds("craft 1 {0} using {1} {2}, 1 {2}".format, NAMES, st.integers(0, 3), NAMES),
    st.text(max_size=40),
    st.integers(0, 10**30).map("get {} string".format),
)


@settings(max_examples=60)
@given(st.integers(0, 561), st.lists(COMMANDS, max_size=15), st.data())
def test_any_text_is_answered_alike_and_restores(
    index: int, actions: list[str], data: st.DataObject
) -> None:
    task = Task(ENV, index)
    one, two, three = TextCraft(), TextCraft(), TextCraft()
    assert one.reset(task, 1) == two.reset(task, 2)
    saved_at = data.draw(st.integers(0, len(actions)))
    for number, action in enumerate(actions):
        if number == saved_at:
            three.restore(one.snapshot())
        result = one.step(action)
        assert result == two.step(action)
        assert one.observation() == result.observation
        if number >= saved_at:
            assert three.step(action) == result
        assert all(count >= 0 for count in one.inventory().values())
        if result.done:
            assert result.success
            assert result.reward == 1.0
            break
        assert result.reward == 0.0
    assert one.snapshot() == two.snapshot()
    assert one.reset(task, 3) == numbered(index).observation
    assert one.inventory() == {}


@settings(max_examples=40)
@given(st.integers(0, 561), st.lists(st.integers(0, 1000), max_size=12))
def test_listed_actions_are_carried_out(index: int, choices: list[int]) -> None:
    session = TextCraft()
    session.reset(Task(ENV, index), 0)
    for choice in choices:
        actions = session.available_actions()
        result = session.step(actions[choice % len(actions)])
        assert result.observation.startswith(("Got ", "Crafted ", "Inventory: "))
        if result.done:
            assert session.available_actions() == ()
            assert session.expert() is None
            break


def test_misuse_is_a_fault() -> None:
    session = TextCraft()
    with pytest.raises(EnvironmentFault, match="not reset"):
        session.step("inventory")
    with pytest.raises(ConfigError, match="tasks 0 to 561, not 562"):
        session.reset(Task(ENV, 562), 0)
    session = start("stick")
    say(session, "get 2 bamboo", "craft 1 stick using 2 bamboo")
    with pytest.raises(EnvironmentFault, match="over"):
        session.step("inventory")
    state = session.snapshot()
    session.close()
    session.close()
    for call in (session.observation, session.expert, session.snapshot):
        with pytest.raises(EnvironmentFault, match="closed"):
            call()
    with pytest.raises(EnvironmentFault, match="closed"):
        session.restore(state)


@given(st.binary(max_size=60))
def test_foreign_bytes_are_no_snapshot(state: bytes) -> None:
    with pytest.raises(EnvironmentFault, match="not a snapshot"):
        start("stick").restore(state)


def test_a_snapshot_of_another_task_restores_that_task() -> None:
    one, two = start("chest"), start("stick")
    one.step("get 3 oak logs")
    two.restore(one.snapshot())
    assert two.snapshot() == one.snapshot()
    assert two.expert() == one.expert()


# --- tasks given by their texts ---------------------------------------------------------------


def test_published_task_lives_by_its_own_commands() -> None:
    commands = ["craft 9 gold nugget using 1 gold ingot", "craft 1 wheel using 3 stick"]
    session = TextCraft.from_published(commands, "gold nugget")
    assert session.observation().endswith("1 wheel using 3 stick\n\nGoal: craft gold nugget.")
    assert session.step("get 1 gold ingot").observation == "Got 1 gold ingot"
    assert session.expert() == "craft 9 gold nugget using 1 gold ingot"
    copy = TextCraft()
    copy.restore(session.snapshot())
    assert copy.step(copy.expert() or "").success
    assert session.reset(Task(ENV, 3), 0).endswith("Goal: craft gold nugget.")
    assert say(session, "get 1 wheel") == "Could not find wheel"


def test_bad_published_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="makes its goal 'chest'"):
        TextCraft.from_published(["craft 1 stick using 2 bamboo"], "chest")
    with pytest.raises(ConfigError, match="not a crafting command"):
        TextCraft.from_published(["bake bread"], "bread")
    with pytest.raises(ConfigError, match="not a first observation"):
        parse_observation("Crafting commands:\ncraft 1 a using 1 b")

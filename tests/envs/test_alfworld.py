"""ALFWorld as an environment: tasks and splits, texts, experts, options, laws, snapshots."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from rollwave.engine.codec import decoder, encode
from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.alfworld.environment import AVAILABLE, STEP_LIMIT, AlfWorld
from rollwave.envs.alfworld.generate import possible
from rollwave.envs.alfworld.rules import State
from rollwave.envs.alfworld.snapshot import AlfWorldState
from rollwave.envs.alfworld.tables import KINDS, Wanted, tables
from rollwave.envs.alfworld.tasks import SPLITS, numbered, unseen_rooms, wanted
from rollwave.envs.alfworld.wording import NOTHING
from rollwave.envs.base import EnvSpec, Task
from rollwave.envs.laws import broken, check
from rollwave.envs.registry import resolve

EVERY = [index for members in SPLITS.values() for index in members]


def play(spec: EnvSpec, index: int) -> tuple[int, bool, list[str]]:
    """Steps, success and texts of the expert's episode."""
    env = spec.make()
    said = [env.reset(Task(spec.id, index), 0)]
    success = False
    while (action := env.expert()) is not None:
        assert action in env.available_actions()
        answer = env.step(action)
        assert answer.observation != NOTHING
        said.append(answer.observation)
        success = answer.success
    return len(said) - 1, success, said


def test_the_planner_solves_every_task_and_the_searcher_what_is_claimed() -> None:
    planner = resolve("alfworld?expert=planner&actions=none")
    searcher = resolve("alfworld?actions=none")
    assert (planner.expert_success, searcher.expert_success) == (1.0, 0.95)
    played, solved = Counter[str](), Counter[str]()
    for index in EVERY:
        steps, success, _ = play(planner, index)
        assert success
        assert steps <= 12, wanted(index)
        steps, success, _ = play(searcher, index)
        played[wanted(index).kind] += 1
        solved[wanted(index).kind] += success and steps <= searcher.turn_limit
    assert min(played[kind] for kind in KINDS) >= 290
    assert sum(solved.values()) >= 0.96 * len(EVERY)
    assert all(solved[kind] > 0.92 * played[kind] for kind in KINDS)


def test_the_searcher_uses_only_what_it_has_seen() -> None:
    spec = resolve("alfworld?actions=none")
    for index in range(0, 3120, 40):
        env = spec.make()
        seen = env.reset(Task(spec.id, index), 0)
        while (action := env.expert()) is not None:
            if action.startswith(("take", "use")):
                assert " ".join(action.split()[1:3]) in seen
            seen += env.step(action).observation


def test_task_numbers_are_agentgyms() -> None:
    assert wanted(0) == Wanted("look", "AlarmClock", "DeskLamp", 301)
    assert wanted(2420) == Wanted("cool", "Mug", "CoffeeMachine", 23)
    assert wanted(2422) == Wanted("clean", "SoapBar", "GarbageCan", 429)
    count = Counter(wanted(index).kind for index in SPLITS["train"])
    assert count == {"place": 672, "clean": 448, "cool": 394, "two": 389, "heat": 321, "look": 196}
    with pytest.raises(ConfigError, match="tasks 0 to 3119"):
        numbered(3120)


def test_splits_and_their_rooms() -> None:
    rooms = {split: {wanted(i).room for i in members} for split, members in SPLITS.items()}
    assert rooms["unseen"] <= unseen_rooms()
    assert unseen_rooms() == {9, 10, 29, 215, 219, 226, 308, 315, 325, 404, 424, 425}
    assert not (rooms["train"] | rooms["dev"] | rooms["test"]) & unseen_rooms()
    known = {wanted(i) for split in ("train", "test") for i in SPLITS[split]}
    assert not known & {wanted(i) for i in SPLITS["dev"]}
    for split in ("dev", "unseen"):
        assert {wanted(i).kind for i in SPLITS[split]} == set(KINDS)
    games = [(numbered(i).things, wanted(i), numbered(i).sentence) for i in EVERY[1::2]]
    assert len(set(games)) == len(games)


def test_every_goal_is_possible_and_open_at_the_start() -> None:
    facts = tables()
    for index in EVERY[::2]:
        goal = wanted(index)
        game = numbered(index)
        assert possible(goal)
        assert goal.room in facts.rooms[goal.kind]
        assert not State(game).won()
        there = [t for t in game.things if t.kind == game.goal.thing]
        assert 1 + (goal.kind == "two") <= len(there) <= 3
        for thing in game.things:
            place = game.receptacles[thing.start]
            assert game.admits(place, thing) or not thing.takeable
        inside = sum(game.receptacles[t.start].kind == game.goal.target for t in there)
        assert goal.kind == "look" or inside <= (goal.kind == "two")


def test_impossible_goals_are_known_as_such() -> None:
    assert not possible(Wanted("heat", "Knife", "CounterTop", 1))
    assert not possible(Wanted("place", "Mug", "Bed", 1))
    assert not possible(Wanted("look", "Book", "DeskLamp", 1))
    assert not possible(Wanted("clean", "Pillow", "Bed", 301))
    assert not possible(Wanted("place", "DeskLamp", "Desk", 301))


ROOM = ["bed 1", "desk 1"] + [f"drawer {n}" for n in range(7, 0, -1)]
ROOM += ["dresser 1", "garbagecan 1"] + [f"shelf {n}" for n in range(6, 0, -1)]
OPENING = (
    "You are in the middle of a room. Looking quickly around you, you see "
    + ", ".join(f"a {name}" for name in ROOM[:-1])
    + ", and a shelf 1.\nYour task is to: examine the alarmclock with the desklamp."
)


def test_an_episode_in_words() -> None:
    spec = resolve("alfworld")
    env = spec.make()
    first = env.reset(Task(spec.id, 0), 0)
    scene, _, actions = first.partition(AVAILABLE)
    assert scene == OPENING
    assert actions.split(",") == list(env.available_actions())
    assert env.step("look").observation == (
        "You are in the middle of a room. Looking quickly around you, you see nothing."
    )
    assert env.step("inventory").observation == "You are not carrying anything."
    assert env.step("  go to bed 1\n").observation.startswith("On the bed 1, you see a ")
    assert env.step("look").observation == (
        "You are facing the bed 1. Next to it, you see nothing."
    )
    assert env.step("go to drawer 1").observation == "The drawer 1 is closed."
    assert env.step("take alarmclock 9 from bed 1").observation == NOTHING
    assert env.step("open drawer 1").observation.startswith(
        "You open the drawer 1. The drawer 1 is"
    )
    assert env.step("close drawer 1").observation == "You close the drawer 1."


@pytest.mark.parametrize(
    ("wording", "command", "answer", "arrival"),
    [
        ("0.3.3", "put {0} in/on {1}", "You put the {0} in/on the {1}.", "On the {}, you see"),
        ("0.4.2", "move {0} to {1}", "You move the {0} to the {1}.", "You arrive at {}. On the"),
    ],
)
def test_two_wordings(wording: str, command: str, answer: str, arrival: str) -> None:
    spec = resolve(f"alfworld?wording={wording}&actions=none&expert=planner")
    env = spec.make()
    index = next(i for i in EVERY if wanted(i).kind == "place" and wanted(i).target == "Desk")
    env.reset(Task(spec.id, index), 0)
    assert env.step("go to desk 1").observation.startswith(arrival.format("desk 1"))
    while (action := env.expert()) is not None:
        last, said = action, env.step(action).observation
    words = last.split()
    thing = " ".join(words[1:3])
    assert last == command.format(thing, "desk 1")
    assert said == answer.format(thing, "desk 1")
    assert command.format("<thing>", "<place>") in spec.prompt[0].text


@pytest.mark.parametrize("show", ["first", "all", "none"])
def test_which_observations_list_the_commands(show: str) -> None:
    spec = resolve(f"alfworld?actions={show}&expert=planner")
    env = spec.make()
    first = env.reset(Task(spec.id, 7), 0)
    assert (AVAILABLE in first) == (show != "none")
    while (action := env.expert()) is not None:
        answer = env.step(action)
        listed = ",".join(env.available_actions())
        assert answer.observation.endswith(AVAILABLE + listed) == (
            show == "all" and not answer.done
        )


def test_the_environment_ends_after_fifty_steps() -> None:
    env = resolve("alfworld").make()
    env.reset(Task("alfworld-v1", 3), 0)
    answers = [env.step("x") for _ in range(STEP_LIMIT)]
    assert [answer.done for answer in answers] == [False] * (STEP_LIMIT - 1) + [True]
    assert answers[-1].truncated
    assert not answers[-1].terminated
    with pytest.raises(EnvironmentFault, match="over"):
        env.step("look")


@pytest.mark.parametrize("query", ["wording=1", "actions=some", "expert=oracle"])
def test_bad_options(query: str) -> None:
    with pytest.raises(ConfigError, match=query.partition("=")[0]):
        resolve(f"alfworld?{query}")


def test_laws_with_other_options() -> None:
    """`tests/envs/test_laws.py` has the laws for what the registry gives without options."""
    spec = resolve("alfworld?expert=planner&actions=all&wording=0.4.2")
    assert not broken(check(spec, examples=10, seed=4))


def test_snapshots_of_other_states_are_refused() -> None:
    env = AlfWorld(numbered)
    env.reset(Task("alfworld-v1", 5), 0)
    env.step(str(env.expert()))
    good = env.snapshot()
    fields = AlfWorldState.__struct_fields__
    state = decoder(AlfWorldState).decode(good)
    values = {name: getattr(state, name) for name in fields}
    for name, value in {
        "index": 99_999,
        "place": 999,
        "held": 4000,
        "place_of": (0, 1),
        "opened": (-1,),
        "seen": (10_000,),
        "taken": ((0, 10_000),),
        "marks": ((), (), ()),
        "steps": -1,
    }.items():
        bad = encode(AlfWorldState(**{**values, name: value}))
        with pytest.raises(EnvironmentFault, match="not a snapshot"):
            env.restore(bad)
    lost = [(-1,) * len(state.place_of), (10_000, *state.place_of[1:])]
    for place_of in lost:
        with pytest.raises(EnvironmentFault, match="not a snapshot"):
            env.restore(encode(AlfWorldState(**{**values, "place_of": place_of})))
    env.restore(good)
    assert env.snapshot() == good


def test_games_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import hashlib; from rollwave.envs.alfworld.tasks import numbered\n"
        "from rollwave.envs.alfworld.problem import write\n"
        "texts = [write(numbered(i)) + numbered(i).sentence for i in range(0, 3120, 60)]\n"
        "print(hashlib.sha256(''.join(texts).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1

"""ScienceWorld's session over a simulator of a dozen lines: scores, limits, advice, snapshots."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any, cast

import pytest
from rollwave.engine.codec import encode
from rollwave.engine.errors import ConfigError, EnvironmentFault, EnvironmentLost
from rollwave.envs.base import EnvSpec, Task
from rollwave.envs.laws import LAWS, broken, check
from rollwave.envs.registry import resolve
from rollwave.envs.sciworld.environment import Actions, SciWorld, SciWorldState
from rollwave.envs.sciworld.simulator import Moved
from rollwave.envs.sciworld.tasks import KINDS, UNPUBLISHED, Ids, Kind, Table, table
from rollwave.envs.sciworld.wording import Wording, describe, hear, say, unordered


class Toy:
    """A simulator: heat three times. Ice is the wrong thing to focus on."""

    def __init__(self) -> None:
        self.score = self.moves = self.heat = 0
        self.asked = False

    def load(self, task: str, variation: int, simplification: str = "easy") -> None:
        self.score, self.moves, self.heat = 8 if simplification else 0, 0, 0
        self.asked = False

    def task_description(self) -> str:
        return "Your task is to boil water above 10 degrees celsius."

    def step(self, action: str) -> Moved:
        said = "No known action matches that input."
        if action == "look around":
            said = self.look()
        elif action == "heat the greenhouse":
            self.moves, self.heat, said = self.moves + 1, self.heat + 1, "It is hotter."
            self.score = min(100, 40 * self.heat)
        elif action == "open door":
            self.asked, said = True, "Ambiguous request: Please enter the number"
        elif action == "wait":
            self.moves, said = self.moves + 11, "You decide to wait for 10 iterations."
        elif action == "focus on ice":
            self.moves, self.score, said = self.moves + 1, -100, "You focus on the ice."
        elif action == "reset task":
            self.moves, self.score, self.heat = self.moves + 1, 0, 0
            said = "You reset the goal progress and focus."
        return Moved(said, self.score, self.score == 100, self.moves)

    def look(self) -> str:
        return f"This is the greenhouse. It is {self.heat}.\n\tA door to the hallway (that is open)"

    def inventory(self) -> str:
        return ""

    def gold_path(self) -> tuple[str, ...]:
        return ("look around", *["heat the greenhouse"] * 3, "wait")

    def valid_actions(self) -> tuple[str, ...]:
        return ("heat the greenhouse", "wait")

    def close(self) -> None:
        self.score = 0


def session(**options: Any) -> SciWorld:
    env = SciWorld(cast(Any, Toy()), table(Ids.DATA), **options)
    env.reset(Task("sciworld-v1", 0), 0)
    return env


HEAT = "heat the greenhouse"

# --- scores and ends ----------------------------------------------------------------


def test_rewards_add_up_to_the_score() -> None:
    env = session()
    answers = [env.step(action) for action in ("look around", HEAT, "reset task", HEAT, HEAT, HEAT)]
    assert [round(answer.reward, 2) for answer in answers] == [0, 0.4, -0.4, 0.4, 0.4, 0.2]
    assert answers[-1].terminated
    assert answers[-1].success
    assert env.available_actions() == ()
    assert env.expert() is None
    with pytest.raises(EnvironmentFault, match="over"):
        env.step(HEAT)


def test_what_the_start_scores_comes_with_the_first_action() -> None:
    env = session(simplification="easy")
    assert env.step("x").reward == pytest.approx(0.08)
    assert env.step("x").reward == 0


def test_the_wrong_focus_loses_everything() -> None:
    env = session()
    earned = env.step(HEAT).reward
    answer = env.step("focus on ice")
    assert (answer.terminated, answer.truncated, answer.success) == (True, False, False)
    assert earned + answer.reward == pytest.approx(-1)


def test_the_hundredth_move_is_the_last_but_one() -> None:
    env = session()
    answers = [env.step("wait") for _ in range(9)]
    assert not any(answer.done for answer in answers)  # 99 moves
    for _ in range(200):
        assert not env.step("look around").done  # takes none
    assert not env.step(HEAT).done
    last = env.step(HEAT)
    assert (last.truncated, last.terminated) == (True, False)


# --- advice -------------------------------------------------------------------------


def test_advice_follows_the_path_through_idle_talk() -> None:
    env = session()
    for action in ("look around", "", "look around", "nonsense", HEAT, "look around"):
        env.step(action)
    assert env.expert() == HEAT
    env.step(HEAT)
    assert env.expert() == HEAT


def test_a_reset_that_fails_leaves_nothing_to_go_on_with() -> None:
    class Dies(Toy):
        def load(self, task: str, variation: int, simplification: str = "easy") -> None:
            if self.moves:
                raise EnvironmentLost("the Java process died")
            super().load(task, variation, simplification)

    env = SciWorld(cast(Any, Dies()), table(Ids.DATA))
    env.reset(Task("sciworld-v1", 0), 0)
    env.step(HEAT)
    with pytest.raises(EnvironmentLost):
        env.reset(Task("sciworld-v1", 1), 0)
    with pytest.raises(EnvironmentFault, match="not reset"):
        env.step(HEAT)


@pytest.mark.parametrize("astray", ["wait", "reset task", "open door"])
def test_off_the_path_there_is_no_advice(astray: str) -> None:
    env = session()
    env.step("look around")
    env.step(astray)
    assert env.expert() is None
    env.step(HEAT)
    assert env.expert() is None
    env.reset(Task("sciworld-v1", 0), 0)
    assert env.expert() == "look around"


def test_a_path_that_ends_without_success_gives_no_more_advice() -> None:
    env = session()
    for _ in range(2):
        env.step(HEAT)  # not the path's first
    assert env.expert() is None


# --- what is told -------------------------------------------------------------------


def test_a_few_actions_are_told_without_asking_the_simulator_for_all() -> None:
    assert session().available_actions() == (HEAT, "wait")
    few = session(actions=Actions.FEW).available_actions()
    assert few == (
        *("open door to hallway", "go to hallway"),
        *("look around", "inventory", "task", "wait1"),
    )


def test_programs_are_told_the_task() -> None:
    assert session().about() == {
        "task_name": "boil",
        "var_num": 0,
        "task_description": "Your task is to boil water above 10 degrees celsius.",
    }


def test_the_published_wording_is_spoken_both_ways() -> None:
    env = session(wording=Wording.PUBLISHED)
    first = env.reset(Task("sciworld-v1", 0), 0)
    assert first.startswith("Your task is to boil water above 10 degrees.\nThis is the green house")
    assert env.step("Heat the GREEN house").observation == "No known action matches that input."
    assert env.step("heat the Green House").reward == pytest.approx(0.4)
    assert env.available_actions()[0] == "heat the green house"
    untouched = "green house, bath tub, 3 degrees celsius"
    assert describe(untouched, Wording.SERVER) == say(untouched, Wording.SERVER) == untouched
    assert hear(untouched, Wording.SERVER) == untouched


ROOM = (
    "You see: \n\ta table. On the table is: a battery, a red bulb, which is off, a bowl "
    "(containing a pear, an apple (red)).\n\ta jug (containing nothing)\nYou also see:\n\tA door"
)


def test_listings_are_equal_in_any_order_and_nothing_else_is() -> None:
    shuffled = (
        "You see: \n\ta jug (containing nothing)\n\ta table. On the table is: a bowl (containing "
        "an apple (red), a pear), a red bulb, which is off, a battery.\nYou also see:\n\tA door"
    )
    assert unordered(ROOM) == unordered(shuffled)
    for other in (
        ROOM.replace("off", "on"),
        ROOM.replace("a pear, ", ""),
        ROOM.replace("a battery, a red bulb, which is off", "a battery, which is off, a red bulb"),
        ROOM.replace("You also see:\n\tA door", "").rstrip() + "\n\tA door\nYou also see:",
    ):
        assert unordered(other) != unordered(ROOM)


# --- snapshots ----------------------------------------------------------------------


def test_a_snapshot_is_the_actions_and_restoring_plays_them() -> None:
    env, other = session(), session()
    for action in (HEAT, "\ud800", "look around"):
        env.step(action)
    other.restore(env.snapshot())
    assert other.observation() == env.observation()
    assert other.step(HEAT) == env.step(HEAT)
    assert other.snapshot() == env.snapshot()


@pytest.mark.parametrize(
    "state",
    [
        *(b"", b"\x93no", encode(SciWorldState(-1, (), "")), encode(SciWorldState(9999, (), ""))),
        encode(SciWorldState(0, (b"\xff\xff",), "x")),
        encode(SciWorldState(0, (HEAT.encode(),), "another world")),
        encode(SciWorldState(0, (HEAT.encode(),) * 4, "It is hotter.")),
        encode(SciWorldState(0, (b"x",) * 10_001, "No known action matches that input.")),
    ],
)
def test_what_is_no_snapshot_is_refused(state: bytes) -> None:
    with pytest.raises(EnvironmentFault):
        session().restore(state)


def test_closed_and_unasked_sessions_answer_nothing() -> None:
    env = SciWorld(cast(Any, Toy()), table(Ids.DATA))
    for call in (env.observation, env.available_actions, env.expert, env.snapshot, env.about):
        with pytest.raises(EnvironmentFault, match="not reset"):
            call()
    env.close()
    with pytest.raises(EnvironmentFault, match="closed"):
        env.restore(session().snapshot())


def test_every_law_holds_over_the_toy() -> None:
    spec = resolve("sciworld-v1")
    numbering = table(Ids.DATA)
    toy: EnvSpec = replace(
        spec, make=lambda: SciWorld(cast(Any, Toy()), numbering), expert_success=1.0, origin=None
    )
    results = check(toy, examples=40)
    assert [str(result) for result in broken(results)] == []
    assert [r.law for r in results if r.skipped] == ["tells no secret"]
    assert len(results) == len(LAWS)


# --- tasks --------------------------------------------------------------------------


def test_kinds_are_the_packages() -> None:
    package = pytest.importorskip("scienceworld")
    listed = json.loads(files(package).joinpath("tasks.json").read_text())
    assert [(kind.id, kind.name) for kind in KINDS] == [
        (task["task_id"], task["task_name"]) for task in listed
    ]


def test_numbers_are_those_of_the_data_and_of_todays_server() -> None:
    data, server, every = (table(ids) for ids in Ids)
    assert len(data) == len(server) == len(every) == 7207 == sum(k.variations for k in KINDS)
    published = sum(kind.variations for kind in KINDS if kind.id not in UNPUBLISHED)
    assert published == 4339
    # All from 1096 on is shifted by one kind's 300.
    for index in (0, 1095, 1096, 4338):
        kind, variation = data.task(index)
        assert server.number(kind.name, variation) == index + 300 * (index >= 1096)
    assert data.task(4339)[0].id == server.task(1096)[0].id == "2-3"
    assert [server.task(4639)[0].id, every.task(7206)[0].id] == ["5-1", "10-2"]


@pytest.mark.parametrize("ids", Ids)
def test_each_number_is_one_task_in_one_split(ids: Ids) -> None:
    numbering = table(ids)
    tasks = [numbering.task(index) for index in range(len(numbering))]
    assert len(set(tasks)) == len(tasks)
    for index in (0, 777, 4339, 7206):
        kind, variation = tasks[index]
        assert numbering.number(kind.name, variation) == index
    splits = numbering.splits()
    assert sorted(index for part in splits.values() for index in part) == list(range(7207))
    where = {index: split for split, part in splits.items() for index in part}
    for index, (kind, variation) in enumerate(tasks):
        assert where[index] == _split(numbering, kind, variation)


def _split(numbering: Table, kind: Kind, variation: int) -> str:
    if kind.id in numbering.unseen:
        return "unseen"
    return "train" if variation < kind.train else "dev" if variation < kind.dev else "test"


def test_other_numbers_are_refused() -> None:
    for index in (-1, 7207):
        with pytest.raises(ConfigError, match="tasks 0 to 7206"):
            table(Ids.DATA).task(index)
    for name, variation in (("boil", 30), ("boil", -1), ("fry", 0)):
        with pytest.raises(ConfigError, match="no variation"):
            table(Ids.DATA).number(name, variation)


@pytest.mark.parametrize(
    "query",
    ["ids=mine", "wording=old", "actions=all", "turn_limit=0", "simplification=easy,lazy"],
)
def test_options_are_checked(query: str) -> None:
    with pytest.raises(ConfigError, match=query.partition("=")[0]):
        resolve(f"sciworld-v1?{query}")


def test_the_claim_of_the_expert_follows_the_turn_limit_and_what_was_measured() -> None:
    claims = [resolve(f"sciworld-v1?turn_limit={n}").expert_success for n in (1, 10, 30, 50, 100)]
    assert claims == sorted(claims)
    assert claims[-1] == 0.85
    assert resolve("sciworld-v1?simplification=noElectricalAction").expert_success == 0

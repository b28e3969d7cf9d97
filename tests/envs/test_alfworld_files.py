"""Game files: hand-made ones are read and played, and broken ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError
from rollwave.envs.alfworld import gamefile, reading
from rollwave.envs.alfworld.environment import AlfWorld
from rollwave.envs.alfworld.game import NOWHERE, Game
from rollwave.envs.alfworld.problem import write
from rollwave.envs.alfworld.tasks import numbered, wanted
from rollwave.envs.base import Task
from rollwave.envs.laws import broken, check
from rollwave.envs.registry import Registry

PROBLEM = Path(__file__).with_name("alfworld_game.pddl").read_text(encoding="utf-8")
SAID = "put a clean fork in drawer"
GRAMMAR = 'grammar :: """{"task": [{"rhs": "Your task is to: %s."}]}"""'


def game_json(**changes: Any) -> str:
    content = {"pddl_problem": PROBLEM, "grammar": GRAMMAR % SAID, "solvable": True}
    return json.dumps({**content, "pddl_domain": "", "walkthrough": ["look"], **changes})


def folder(path: Path, **changes: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "game.tw-pddl").write_text(game_json(**changes))
    return path


def say(game: Game, *actions: str) -> list[str]:
    env = AlfWorld(lambda _: game, show="none")
    said = [env.reset(Task("x", 0), 0)]
    return said + [env.step(action).observation for action in actions]


def test_a_published_game_is_played(tmp_path: Path) -> None:
    game = gamefile.load(folder(tmp_path))
    env = AlfWorld(lambda _: game, show="none", knows=True)
    assert env.reset(Task("x", 0), 0) == (
        "You are in the middle of a room. Looking quickly around you, you see a drawer 2, "
        "a drawer 1, and a sinkbasin 1.\nYour task is to: put a clean fork in drawer."
    )
    plan = []
    while (action := env.expert()) is not None:
        plan.append(action)
        last = env.step(action)
    assert plan == [
        "go to sinkbasin 1",
        "take fork 2 from sinkbasin 1",
        "clean fork 2 with sinkbasin 1",
        "go to drawer 1",
        "put fork 2 in/on drawer 1",
    ]
    assert last.success


def test_what_only_published_games_have(tmp_path: Path) -> None:
    """An open drawer, two receptacles at one place, a fork in a mug, a safe out of reach."""
    game = gamefile.load(folder(tmp_path))
    assert [thing.start for thing in game.things if thing.kind != "fork"] == [NOWHERE, NOWHERE, 1]
    assert say(
        game,
        "go to drawer 1",
        "look",
        "take mug 1 from drawer 1",
        "examine mug 1",
        "go to drawer 2",
        "open drawer 2",
        "put mug 1 in/on drawer 2",
        "look",
    )[1:] == [
        "The drawer 1 is open. In it, you see a mug 1.",
        "You are facing the drawer 2, and drawer 1. Next to it, you see nothing.",
        "You pick up the mug 1 from the drawer 1.",
        "This is a normal mug 1. In it, you see a fork 1.",
        "Nothing happens.",
        "You open the drawer 2. The drawer 2 is open. In it, you see nothing.",
        "You put the mug 1 in/on the drawer 2.",
        "You are facing the drawer 2, and drawer 1. Next to it, you see a mug 1.",
    ]


def test_a_published_game_written_and_read_again(tmp_path: Path) -> None:
    game = gamefile.load(folder(tmp_path))
    again = reading.read(write(game), game.sentence)
    assert (again.receptacles, again.things) == (game.receptacles, game.things)
    assert (again.opened, again.goal, again.holds) == (game.opened, game.goal, game.holds)


def test_problem_and_task_without_a_game_file(tmp_path: Path) -> None:
    (tmp_path / "initial_state.pddl").write_text(PROBLEM)
    params = {"object_target": "Fork", "parent_target": "Drawer", "toggle_target": ""}
    task = {"task_type": "pick_clean_then_place_in_recep", "pddl_params": params, "scene": {}}
    (tmp_path / "traj_data.json").write_text(json.dumps(task))
    assert gamefile.load(tmp_path).sentence == SAID
    params["object_sliced"] = True  # type: ignore[assignment]
    (tmp_path / "traj_data.json").write_text(json.dumps(task))
    with pytest.raises(ConfigError, match="slice"):
        gamefile.load(tmp_path)
    task["task_type"] = "pick_and_place_with_movable_recep"
    (tmp_path / "traj_data.json").write_text(json.dumps(task))
    with pytest.raises(ConfigError, match="movable_recep"):
        gamefile.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solvable": False}, "cannot be solved"),
        ({"grammar": "no task"}, "what the task is"),
        ({"grammar": GRAMMAR % "a \\q b"}, "no JSON string"),
        ({"pddl_problem": 5}, "pddl_problem"),
        ({"pddl_problem": ""}, "brackets"),
        ({"pddl_problem": "(define (:init))"}, "no :goal"),
        ({"pddl_problem": PROBLEM + ")"}, "not opened"),
        ({"pddl_problem": "(" * 100}, "deeper"),
        ({"pddl_problem": PROBLEM.rstrip()[:-1]}, "do not match"),
        ({"pddl_problem": PROBLEM.replace("(isClean ?o)", "(sliceable ?o)")}, "slices"),
        (
            {"pddl_problem": PROBLEM.replace("(receptacleType ?r DrawerType)", "")},
            "none of the six",
        ),
        ({"pddl_problem": PROBLEM.replace("(openable D", "(openable x D")}, "takes 1 arguments"),
        ({"pddl_problem": PROBLEM.replace("(openable D", "(openable (x) D")}, "not plain"),
        ({"pddl_problem": PROBLEM.replace("(openable D", "((openable) D")}, "begin with a word"),
        (
            {"pddl_problem": PROBLEM.replace("(canContain", "(isHot Fork_bar_1) (canContain")},
            "isHot",
        ),
        (
            {"pddl_problem": PROBLEM.replace("(canContain", "(holds a b) (canContain")},
            "in its hand",
        ),
        ({"pddl_problem": PROBLEM.replace("(objectType Mug", "(x Mug")}, "Mug|1"),
        ({"pddl_problem": PROBLEM.replace("(atLocation", "(x")}, "where its one agent"),
        (
            {
                "pddl_problem": PROBLEM.replace(
                    "(inReceptacle Apple_bar_1 Safe_bar_9)",
                    "(inReceptacle Mug_bar_1 Drawer_bar__minus_00_dot_10)",
                )
            },
            "twice",
        ),
        ({"pddl_problem": PROBLEM.replace("(receptacleAt", "(x")}, "no receptacles"),
    ],
)
def test_broken_games_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"no game of ALFWorld: .*" + message.replace("|", r"\|")):
        gamefile.load(folder(tmp_path, **changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"\xff\xfe"),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_text("{}"),
    ],
)
def test_files_that_are_no_games(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    file = folder(tmp_path) / "game.tw-pddl"
    spoil(file)
    with pytest.raises(ConfigError, match="no game of ALFWorld"):
        gamefile.load(tmp_path)


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gamefile, "MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        gamefile.load(folder(tmp_path))
    monkeypatch.setattr(reading, "MAX_CHARACTERS", 100)
    with pytest.raises(ConfigError, match="at most 100 characters"):
        reading.read(PROBLEM, SAID)
    monkeypatch.setattr(reading, "MAX_NAMES", 3)
    monkeypatch.setattr(reading, "MAX_CHARACTERS", 100_000)
    with pytest.raises(ConfigError, match="more than 3 things"):
        reading.read(PROBLEM, SAID)


@settings(max_examples=150, deadline=None)
@given(
    cut=st.integers(0, len(PROBLEM)),
    length=st.integers(0, 40),
    text=st.text(alphabet="()?;= \nabcTypelocagent1-_", max_size=20),
)
def test_any_damage_is_a_game_or_one_error(cut: int, length: int, text: str) -> None:
    damaged = PROBLEM[:cut] + text + PROBLEM[cut + length :]
    try:
        game = reading.read(damaged, SAID)
    except ConfigError:
        return
    assert say(game, "look", "inventory")[-1] == "You are not carrying anything."


def test_a_folder_of_games_is_an_environment(tmp_path: Path) -> None:
    root = tmp_path / "json_2.1.1"
    for split, indices in {"train": (0, 700), "valid_unseen": (2900, 2999)}.items():
        for index in indices:
            name = f"{wanted(index).kind}/trial_{index}/game.tw-pddl"
            file = root / split / name
            file.parent.mkdir(parents=True)
            game = numbered(index)
            file.write_text(game_json(pddl_problem=write(game), grammar=GRAMMAR % game.sentence))
    registry = Registry()
    registry.register(gamefile.games_family(root))
    spec = registry.resolve("alfworld-games?wording=0.4.2")
    assert spec.splits == {"train": [0, 1], "unseen": [2, 3]}
    assert not broken(check(spec, examples=4, seed=0))
    env = spec.make()
    for task in spec.tasks("train"):
        env.reset(task, 0)
        while (action := env.expert()) is not None:
            answer = env.step(action)
        assert answer.success
    with pytest.raises(ConfigError, match="0 files"):
        gamefile.games_family(tmp_path / "empty")
    with pytest.raises(ConfigError, match="wording"):
        registry.resolve("alfworld-games?wording=1")

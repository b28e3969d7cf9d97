"""Mazes: generation, movement, wording, splits, and the published double-T games."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.base import EnvSpec, Task
from rollwave.envs.maze import VOCABULARY, Maze
from rollwave.envs.maze.layout import STEPS, Layout, carve, from_drawing
from rollwave.envs.maze.tasks import DOUBLE_T, DOUBLE_T_GOAL, DOUBLE_T_STARTS, grid, quarter
from rollwave.envs.registry import resolve

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/agenttraj/maze.json.gz"
OPPOSITE = {1: 2, 2: 1, 4: 8, 8: 4}

sizes = st.integers(3, 9)
shares = st.sampled_from([0.0, 0.3, 0.5, 1.0])


def passages(layout: Layout) -> int:
    return sum(sides.bit_count() for sides in layout.passages) // 2


@given(size=sizes, loops=shares, seed=st.integers(0, 999))
def test_a_carved_maze_is_connected_and_its_passages_open_from_both_sides(
    size: int, loops: float, seed: int
) -> None:
    layout = carve(size, loops, Random(seed))
    assert len(layout.distances((0, 0))) == size * size
    for row in range(size):
        for column in range(size):
            for side, (down, right) in STEPS.items():
                if layout.open((row, column)) & side:
                    there = (row + down, column + right)
                    assert layout.holds(there)
                    assert layout.open(there) & OPPOSITE[side]


@given(size=sizes, seed=st.integers(0, 999))
def test_loops_open_dead_ends(size: int, seed: int) -> None:
    tree = carve(size, 0.0, Random(seed))
    assert passages(tree) == size * size - 1
    looped = carve(size, 1.0, Random(seed))
    assert passages(looped) > passages(tree)
    assert not [sides for sides in looped.passages if sides in STEPS]


def walk_by_brute_force(layout: Layout, start: tuple[int, int], goal: tuple[int, int]) -> int:
    """Moves of the shortest way, by growing the set of reachable cells."""
    reached, moves = {start}, 0
    while goal not in reached:
        reached |= {
            (r + down, c + right)
            for r, c in reached
            for side, (down, right) in STEPS.items()
            if layout.open((r, c)) & side
        }
        moves += 1
    return moves


@settings(max_examples=60)
@given(
    id=st.sampled_from(["maze-grid", "maze-grid?size=7&loops=0", "maze-grid?style=terse&size=4"]),
    place=st.integers(0, 999),
    split=st.sampled_from(["train", "dev", "test", "unseen"]),
)
def test_the_expert_takes_the_shortest_way(id: str, place: int, split: str) -> None:
    spec = resolve(id)
    members = spec.splits[split]
    task = Task(spec.id, members[place % len(members)], split)
    env = spec.make()
    env.reset(task, 0)
    assert isinstance(env, Maze)
    setting = env._started()
    moves = 0
    done = False
    while not done:
        action = env.expert()
        assert action is not None
        assert action in env.available_actions()
        result = env.step(action)
        moves, done = moves + 1, result.done
    assert result.success
    assert result.reward == 1
    assert env.expert() is None
    assert moves == walk_by_brute_force(setting.layout, setting.start, setting.goal)
    assert moves <= spec.turn_limit


@pytest.mark.parametrize("id", ["maze-grid-v1?style=terse", "maze-grid-v1?size=3&loops=0"])
def test_no_two_splits_share_a_maze_with_start_and_goal(id: str) -> None:
    spec = resolve(id)
    size = 5 if "size" not in id else 3
    table = grid(size, 0.5 if size == 5 else 0.0, spec.turn_limit)
    tasks = {
        split: {table(index) for index in members[:500]} for split, members in spec.splits.items()
    }
    splits = sorted(tasks)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            assert not tasks[one] & tasks[other]
    assert {quarter(setting) for setting in tasks["train"]} == {0, 1}
    assert all(setting.layout.columns == size + 1 for setting in tasks["unseen"])
    assert {split: len(members) for split, members in spec.splits.items()} == {
        "train": 4000,
        "dev": 500,
        "test": 1000,
        "unseen": 1000,
    }


def test_mazes_differ_and_depend_on_the_index_alone() -> None:
    table = grid(5, 0.5, 12)
    made = [table(index) for index in range(300)]
    assert len(set(made)) > 295
    assert made == [grid(5, 0.5, 12)(index) for index in range(300)]


def test_generated_mazes_never_change() -> None:
    """A run of last year must mean the same mazes; if this fails, make a new version."""
    spec = resolve("maze-grid-v1?size=5&loops=0.5&style=terse")
    env = spec.make()
    golden = {
        0: ("goal 2 4 pos 2 2 walls down left", "right down left down right right up up"),
        4000: ("goal 3 0 pos 0 0 walls up left", "down down right down down left up"),
        4500: ("goal 1 2 pos 0 3 walls up right", "left down"),
        5500: ("goal 0 2 pos 2 2 walls down left", "up right up left"),
    }
    for index, (first, way) in golden.items():
        assert env.reset(Task(spec.id, index), 0) == first
        walked = []
        while (action := env.expert()) is not None:
            env.step(action)
            walked.append(action)
        assert " ".join(walked) == way


def test_the_terse_maze_is_the_demo_world() -> None:
    spec = resolve("maze-grid-v1?size=5&loops=0.5&style=terse")
    assert (spec.prompt, spec.action_format, spec.turn_limit) == ((), "raw", 12)
    env = spec.make()
    env.reset(spec.tasks("train")[0], 0)
    assert list(env.available_actions()) == ["up", "down", "left", "right"]
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 25


@settings(max_examples=60)
@given(
    id=st.sampled_from(["maze-grid?style=terse", "maze-grid?style=terse&size=15"]),
    place=st.integers(0, 999),
    actions=st.lists(
        st.one_of(st.sampled_from(["up", "down", "left", "right"]), st.text()), max_size=30
    ),
)
def test_a_terse_maze_says_only_words_of_its_vocabulary(
    id: str, place: int, actions: list[str]
) -> None:
    spec = resolve(id)
    env = spec.make()
    said = [env.reset(spec.tasks("unseen")[place], 0)]
    for action in actions:
        before = said[-1]
        result = env.step(action)
        said.append(result.observation)
        if action.strip() not in env.available_actions() and not result.done:
            assert result.observation == before
        if result.done:
            break
    for text in said:
        assert set(text.split(" ")) <= set(VOCABULARY)


def test_an_action_that_is_none_costs_a_move_of_the_double_t() -> None:
    spec = resolve("maze-v1")
    env = spec.make()
    first = env.reset(Task(spec.id, 13), 0)
    here = "The goal is at position 8, 6. Your current position is at position 5, 3. "
    assert first.endswith(here + "There are walls to your left, below you.\n")
    for _ in range(49):
        assert env.step("fly").observation == here + "There are walls to your left, below you.\n"
    last = env.step("move right")
    assert (last.observation, last.reward) == ("Failure\n", 0)
    assert last.truncated
    assert not last.terminated
    assert env.observation() == "Failure\n"
    with pytest.raises(EnvironmentFault, match="over"):
        env.step("move right")


def test_the_fiftieth_move_may_still_succeed() -> None:
    env = resolve("maze-v1").make()
    env.reset(Task("maze-v1", 18), 0)
    for _ in range(49):
        assert not env.step("").done
    assert env.step("move down").success


def test_wall_sentences() -> None:
    cross = from_drawing(("# #", "   ", "# #"))
    table = {"(1, 1)": "There are no walls near you.", "(0, 1)": "to your right, to your left, ab"}
    from rollwave.envs.maze.wording import TEXT

    for place, text in table.items():
        position = tuple(map(int, place.strip("()").split(", ")))
        assert text in TEXT.describe((1, 1), position, cross.open(position))  # type: ignore[arg-type]


def test_starts_of_the_double_t() -> None:
    assert len(set(DOUBLE_T_STARTS)) == 26
    distances = DOUBLE_T.distances(DOUBLE_T_GOAL)
    assert set(distances) == set(DOUBLE_T_STARTS)
    assert max(distances.values()) <= resolve("maze-v1").turn_limit


def test_a_start_on_the_goal_ends_with_the_first_move_that_stays() -> None:
    env = resolve("maze-v1").make()
    env.reset(Task("maze-v1", 25), 0)
    assert not env.step("move up").done
    assert env.step("move down").success


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published trajectories are not here")
def test_published_games_come_out_word_for_word() -> None:
    spec = resolve("maze-v1")
    games = json.loads(gzip.decompress(PUBLISHED.read_bytes()))
    assert len(games) > 100
    env = spec.make()
    for game in games:
        texts = [turn["value"] for turn in game["conversations"]]
        assert texts[:2] == [message.text for message in spec.prompt]
        observation = env.reset(Task(spec.id, int(game["item_id"].rpartition("_")[2])), 0)
        for human, agent in zip(texts[2::2], texts[3::2], strict=True):
            assert human == observation
            result = env.step(agent.partition("Action:")[2])
            observation = result.observation
        assert result.success
        assert result.observation == "Success\n"


@pytest.mark.parametrize(
    ("id", "complaint"),
    [
        ("maze-grid?size=2", "size must be 3 to 15"),
        ("maze-grid?size=16", "size must be 3 to 15"),
        ("maze-grid?loops=1.5", "loops is a share"),
        ("maze-grid?style=loud", "style is text or terse"),
        ("maze-grid?turn_limit=-1", "turn_limit must be"),
    ],
)
def test_options_out_of_range_are_named(id: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        resolve(id)


@pytest.mark.parametrize("turn_limit", [1, 3, 40])
def test_every_start_is_within_the_turn_limit(turn_limit: int) -> None:
    table = grid(6, 0.2, turn_limit)
    for index in (0, 1, 4001, 4501, 5501):
        setting = table(index)
        assert 0 < setting.layout.distances(setting.goal)[setting.start] <= turn_limit


@pytest.mark.parametrize("id", ["maze-v1", "maze-grid-v1"])
def test_states_in_which_nothing_may_be_asked(id: str) -> None:
    spec: EnvSpec = resolve(id)
    env = spec.make()
    for call in (env.observation, env.available_actions, env.expert, env.snapshot):
        with pytest.raises(EnvironmentFault, match="not reset"):
            call()
    with pytest.raises(ConfigError, match="has tasks 0 to"):
        env.reset(Task(spec.id, 10**6), 0)
    env.close()
    env.close()
    with pytest.raises(EnvironmentFault, match="closed"):
        env.observation()
    with pytest.raises(EnvironmentFault, match="closed"):
        env.restore(b"")


def test_a_forged_snapshot_is_refused() -> None:
    env = resolve("maze-v1").make()
    env.reset(Task("maze-v1", 13), 0)
    state = env.snapshot()
    for forged in (b"", state[:-1], state + b"\x00", b"\x93not"):
        with pytest.raises(EnvironmentFault, match="not a snapshot"):
            env.restore(forged)
    from rollwave.engine.codec import encode
    from rollwave.envs.maze.environment import MazeState

    outside = MazeState(2, bytes(4), (0, 0), (1, 1), (0, 2), 1, False)
    with pytest.raises(EnvironmentFault, match="outside"):
        env.restore(encode(outside))
    assert env.observation().endswith("below you.\n")  # a refused snapshot changes nothing

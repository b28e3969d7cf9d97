"""Replay: published episodes come out as recorded, and every tampering is found and named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import BadDataFile, FaultKind, NotARun, UnknownEnvironment
from rollwave.engine.store import Store
from rollwave.engine.trajectory import Fault, Outcome, Trajectory, Turn
from rollwave.envs.agentgym import read_trajectories
from rollwave.envs.base import Task
from rollwave.envs.formats import React
from rollwave.envs.registry import resolve
from rollwave.envs.replay import (
    DifferenceKind,
    ReplayReport,
    replay_file,
    replay_trajectories,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "agenttraj"
WRITES_FILES = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def published(name: str) -> Path:
    path = DATA / f"{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"the published trajectories are not at {path}")
    return path


# --- fidelity -----------------------------------------------------------------------


def test_textcraft_answers_as_published() -> None:
    report = replay_file(published("textcraft"))
    assert (report.trajectories, report.observations) == (179, 1425)
    assert report.trajectories_equal >= 0.99 * report.trajectories
    assert report.rewards_equal == report.rewards == 179
    # The one episode that met a defect of the server; docs/fidelity.md tells the story.
    found = [(d.kind, d.item, d.turn, d.expected) for d in report.differences]
    assert found == [
        (DifferenceKind.OBSERVATION, "textcraft_210", 3, "Crafted 4 minecraft:birch_planks"),
        (
            *(DifferenceKind.OBSERVATION, "textcraft_210", 5),
            "Could not find enough items to craft minecraft:birch_planks",
        ),
    ]


@pytest.mark.parametrize(("name", "episodes"), [("maze", 108), ("wordle", 482)])
def test_other_worlds_answer_as_published(name: str, episodes: int) -> None:
    report = replay_file(published(name))
    assert report.trajectories_equal == report.trajectories == episodes
    assert report.observations_equal == report.observations
    assert report.rewards_equal == report.rewards == episodes
    assert report.differences == []


def test_published_tasks_show_our_crafting_trees() -> None:
    from rollwave.envs.textcraft.recipes import book_for
    from rollwave.envs.textcraft.tasks import parse_observation

    for episode in read_trajectories(published("textcraft")):
        commands, goal = parse_observation(episode.turns[0][0])
        tree = {recipe.command for recipe in book_for(goal).tree(goal)}
        assert tree <= set(commands), goal


# --- tampering ----------------------------------------------------------------------

CHAIN = ["get 6 iron ingot", "inventory", "craft 16 iron bars using 6 iron ingot"]
FIRST = "Crafting commands:\ncraft 16 iron bars using 6 iron ingot\n\nGoal: craft iron bars."
SEEN = [FIRST, "Got 6 iron ingot", "Inventory: [iron ingot] (6)"]


def item(
    seen: list[str] = SEEN, actions: list[str] = CHAIN, item_id: str = "textcraft_1", **keys: Any
) -> dict[str, Any]:
    """An item in AgentTraj's format."""
    said = [React().render("because", action) for action in actions]
    turns: list[dict[str, Any]] = [
        {"from": "human", "loss": None, "value": "rules"},
        {"from": "gpt", "loss": False, "value": "OK."},
    ]
    for number, text in enumerate(seen):
        turns.append({"from": "human", "loss": None, "value": f"Instruction:\n{text}"})
        if number < len(said):
            turns.append({"from": "gpt", "loss": True, "value": said[number]})
    return {"conversations": turns, "item_id": item_id, **keys}


def replayed(path: Path, *items: dict[str, Any], env: str | None = None) -> ReplayReport:
    file = path / "items.json"
    file.write_text(json.dumps(items))
    return replay_file(file, env)


def counts(report: ReplayReport) -> tuple[int, ...]:
    """(trajectories, equal), (observations, equal), (rewards, equal), flat."""
    return (
        *(report.trajectories, report.trajectories_equal),
        *(report.observations, report.observations_equal),
        *(report.rewards, report.rewards_equal),
    )


def test_an_untouched_episode_is_equal(tmp_path: Path) -> None:
    last = "Crafted 16 minecraft:iron_bars"
    assert counts(replayed(tmp_path, item())) == (1, 1, 3, 3, 1, 1)
    assert counts(replayed(tmp_path, item([*SEEN, last]))) == (1, 1, 4, 4, 1, 1)
    assert counts(replayed(tmp_path, item(reward=1.0, success=1))) == (1, 1, 3, 3, 1, 1)


def test_a_changed_observation_is_one_difference(tmp_path: Path) -> None:
    report = replayed(tmp_path, item(), item([FIRST, "Got 7 iron ingot", SEEN[2]]))
    assert counts(report) == (2, 1, 6, 5, 2, 2)
    (found,) = report.differences
    assert (found.kind, found.turn) == (DifferenceKind.OBSERVATION, 1)
    assert (found.expected, found.got) == ("Got 7 iron ingot", "Got 6 iron ingot")


def test_a_command_that_does_not_exist_shows_in_the_first_observation(tmp_path: Path) -> None:
    forged = FIRST.replace("\n\nGoal", "\ncraft 1 diamond using 1 stick\n\nGoal")
    report = replayed(tmp_path, item([forged, *SEEN[1:]]))
    assert counts(report) == (1, 0, 3, 2, 1, 1)
    assert report.differences[0].kind is DifferenceKind.FIRST_OBSERVATION


def test_a_missing_last_action_is_a_missing_reward(tmp_path: Path) -> None:
    report = replayed(tmp_path, item(actions=CHAIN[:2]))
    assert counts(report) == (1, 0, 3, 3, 1, 0)
    assert [(d.kind, d.expected, d.got) for d in report.differences] == [
        (DifferenceKind.REWARD, "1", "0")
    ]
    assert counts(replayed(tmp_path, item(actions=CHAIN[:2], reward=0.0)))[-1] == 1


def test_actions_after_the_end_are_not_played(tmp_path: Path) -> None:
    seen = [*SEEN, "Crafted 16 minecraft:iron_bars", "Inventory: [iron bars] (16)"]
    report = replayed(tmp_path, item(seen, [*CHAIN, "inventory", "inventory"]))
    assert counts(report) == (1, 0, 5, 4, 1, 0)
    kinds = [difference.kind for difference in report.differences]
    assert kinds == [DifferenceKind.ENDED_EARLY, DifferenceKind.REWARD]
    assert report.differences[1].got == "1, ended after 3 of 5 actions"
    assert report.kinds() == {"ended early": 1, "reward": 1}


def test_a_task_that_does_not_exist_stands_for_its_episode(tmp_path: Path) -> None:
    nonsense = FIRST.replace("iron bars", "soup of stones")
    report = replayed(tmp_path, item([nonsense, *SEEN[1:]]), item(["hello"], ["x"]))
    assert counts(report) == (2, 0, 4, 0, 2, 0)
    assert [d.kind for d in report.differences] == [DifferenceKind.TASK] * 2
    assert "soup of stones" in report.differences[0].got


def test_worlds_are_chosen_by_item_or_by_hand(tmp_path: Path) -> None:
    with pytest.raises(UnknownEnvironment, match="no environment 'webshop'"):
        replayed(tmp_path, item(item_id="webshop_3"))
    assert replayed(tmp_path, item(item_id="webshop_3"), env="textcraft-v1").rewards_equal == 1
    report = replayed(tmp_path, item(item_id="lmrlgym_maze_99"))
    assert report.differences[0].kind is DifferenceKind.TASK


def test_wordle_must_be_possible_under_the_rules(tmp_path: Path) -> None:
    opening = "words:\n```\ncrane\nslate\ntrace\n```\n"

    def game(*marks: str) -> ReplayReport:
        record = item([opening, *marks], ["s l a t e", "c r a n e"], "lmrlgym_wordle_7")
        for message in record["conversations"]:
            message["value"] = message["value"].removeprefix("Instruction:\n")
        return replayed(tmp_path, record)

    # What we write before the first guess is another text than this short one.
    possible = game("b b g b g\n")
    assert possible.kinds() == {"first observation": 1}
    assert possible.rewards_equal == 1
    impossible = game("g g g g b\n")
    assert impossible.kinds() == {"first observation": 1, "observation": 1}
    assert game("b b g y g\n").kinds() == {"first observation": 1, "reward": 1}


@WRITES_FILES
@given(
    st.sampled_from(["textcraft-v1", "maze-v1", "maze-grid-v1"]),
    st.integers(0, 24),
    st.lists(st.integers(0, 99), min_size=1, max_size=8),
)
def test_what_a_world_said_it_says_again(
    tmp_path: Path, env: str, index: int, choices: list[int]
) -> None:
    session = resolve(env).make()
    seen = [session.reset(Task(env, index), 5)]
    actions, reward = [], 0.0
    for choice in choices:
        legal = session.available_actions()
        actions.append(legal[choice % len(legal)])
        result = session.step(actions[-1])
        seen.append(result.observation)
        reward += result.reward
        if result.done:
            break
    record = item(seen, actions, f"{env}_{index}", reward=reward)
    for message in record["conversations"]:
        message["value"] = message["value"].removeprefix("Instruction:\n")
    report = replayed(tmp_path, record, env=env)
    assert report.differences == []
    assert report.observations_equal == len(seen)


# --- our own trajectories -----------------------------------------------------------------


def own(*, broken: Fault | None = None, **changes: Any) -> Trajectory:
    """An episode with one format error in the middle."""
    form = React()
    refused = form.parse("I think so.").error
    lines = [
        *((SEEN[1], form.render("a", "inventory"), "inventory", False),),
        *((SEEN[2], "I think so.", "", True),),
        *((refused, form.render("a", CHAIN[2]), CHAIN[2], False),),
    ]
    session = resolve("textcraft-v1").make()
    from rollwave.envs.textcraft.tasks import goals

    index = goals().index("iron bars")
    first = session.reset(Task("textcraft-v1", index), 0)
    turns = [Turn(first, form.render("a", CHAIN[0]), CHAIN[0], 0.0)]
    for seen, said, action, refusal in lines:
        turns.append(Turn(seen, said, action, 0.0, format_error=refusal))
    values: dict[str, Any] = {
        "outcome": Outcome.SUCCESS if broken is None else Outcome.FAULT,
        "reward": 1.0 if broken is None else None,
        "fault": broken,
        "turns": tuple(turns),
        "final_observation": "Crafted 16 minecraft:iron_bars" if broken is None else "",
    }
    values.update(changes)
    return Trajectory(
        id=f"w0/textcraft_{index}/0",
        env="textcraft-v1",
        task_id=f"textcraft_{index}",
        split="train",
        wave=0,
        attempt=0,
        seed=3,
        **values,
    )


def test_our_trajectories_replay_format_errors_too() -> None:
    report = replay_trajectories([own()])
    assert report.differences == []
    assert counts(report) == (1, 1, 5, 5, 1, 1)


def test_our_faults_are_replayed_as_far_as_they_went() -> None:
    fault = Fault(FaultKind.BACKEND, "gone", 4)
    assert counts(replay_trajectories([own(broken=fault)])) == (1, 1, 4, 4, 0, 0)


def test_our_episodes_without_a_turn_are_left_out() -> None:
    report = replay_trajectories([own(turns=(), final_observation="")])
    assert (report.skipped, report.trajectories) == (1, 0)


def test_tampering_with_our_trajectories_is_found() -> None:
    report = replay_trajectories([own(reward=0.5), own(final_observation="Crafted nothing")])
    assert [d.kind for d in report.differences] == [
        DifferenceKind.REWARD,
        DifferenceKind.OBSERVATION,
    ]
    assert [d.turn for d in report.differences] == [4, 4]


def test_a_run_and_its_waves_are_replayed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "run") as store:
        info = store.seal(0, 0, [own()])
    for path in (tmp_path / "run", Path(info.path)):
        assert counts(replay_file(path)) == (1, 1, 5, 5, 1, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotARun):
        replay_file(tmp_path / "empty")
    with pytest.raises(BadDataFile, match="no such file"):
        replay_file(tmp_path / "none.parquet")


# --- bad input ------------------------------------------------------------------------------

GOOD = json.dumps([item()]).encode()


def message(**changes: Any) -> bytes:
    record = item()
    record["conversations"][3] = {**record["conversations"][3], **changes}
    return json.dumps([item(), record]).encode()


BAD = {
    "not json": (b"[{", "is not JSON"),
    "not a list": (b'"text"', "item 0 is not a trajectory"),
    "a list of numbers": (b"[1]", "item 0 is not a trajectory"),
    "no id": (b'[{"conversations": []}]', "item 0 is not a trajectory.*item_id"),
    "id without a number": (b'[{"item_id": "textcraft_x"}]', "item 0.*<env>_<number>"),
    "number too long": (b'[{"item_id": "a_12345678901"}]', "item 0.*<env>_<number>"),
    "unknown speaker": (message(**{"from": "robot"}), "item 1 .textcraft_1.*'robot'"),
    "text is a number": (message(value=3), r"item 1 .*conversations\[3\].value"),
    "two humans in a row": (message(**{"from": "human"}), "item 1 .textcraft_1.*take turns"),
    "an opening alone": (
        json.dumps([{"item_id": "a_1", "conversations": item()["conversations"][:2]}]).encode(),
        "item 0.*take turns",
    ),
    "cut off": (GOOD[:-20], "is not JSON"),
    "cut off gzip": (gzip.compress(GOOD)[:-30], "damaged gzip file"),
    "damaged gzip": (gzip.compress(GOOD)[:20] + b"\xff" * 40, "damaged gzip file"),
    "gzip of nothing legible": (gzip.compress(b"\xff\xfe"), "not JSON|not a trajectory"),
    "invalid text": (b'[{"item_id": "a_1\xff"}]', "not JSON|not a trajectory"),
    "deep nesting": (b"[" * 200_000, "is not JSON"),
    "deep nesting inside": (b'[{"a":' * 200_000, "is not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    file = tmp_path / "bad.json"
    file.write_bytes(data)
    with pytest.raises(BadDataFile, match=f"(?s)bad.json.*({words})|({words})") as caught:
        replay_file(file)
    assert "bad.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataFile, match=r"cannot read .*none.json: No such file"):
        replay_file(tmp_path / "none.json")


def test_a_file_may_not_unpack_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollwave.engine.agenttraj.MAX_BYTES", 1 << 20)
    file = tmp_path / "bomb.json.gz"
    file.write_bytes(gzip.compress(b" " * (4 << 20)))
    with pytest.raises(BadDataFile, match="unpacks to more than"):
        read_trajectories(file)


def test_lines_and_empty_conversations_are_read(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    lines = [json.dumps(item()), "", json.dumps({"item_id": "a_1", "conversations": None})]
    file.write_text("\n".join(lines))
    (episode,) = read_trajectories(file)
    assert (episode.env, episode.number, len(episode.turns)) == ("textcraft", 1, 3)
    assert [message.loss for message in episode.prompt] == [None, False]
    assert episode.final_observation is None
    file.write_text("")
    assert read_trajectories(file) == []


@WRITES_FILES
@given(st.one_of(st.binary(max_size=80), st.integers(0, len(GOOD)).map(lambda n: GOOD[:n])))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any.json"
    for content in (data, b"\x1f\x8b" + data):
        file.write_bytes(content)
        try:
            read_trajectories(file)
        except BadDataFile as error:
            assert str(file) in str(error)  # noqa: PT017 (either way is right)

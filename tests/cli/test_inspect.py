"""Reading runs from the command line: sealed waves, journals, one episode, and what is no run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.protocol import TurnTaken
from rollwave.cli.main import main
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.errors import FaultKind
from rollwave.engine.journal import Journal
from rollwave.engine.store import Store
from rollwave.engine.trajectory import (
    ChatMessage,
    Fault,
    FinishReason,
    Outcome,
    Trajectory,
    Turn,
)

Show = Callable[..., tuple[int, str, str]]


def made(number: int, outcome: Outcome, wave: int = 0) -> Trajectory:
    """One trajectory with two turns of two tokens each."""
    return Trajectory(
        id=f"w{wave}/maze_{number}/0",
        env="maze-v1",
        task_id=f"maze_{number}",
        split="test",
        wave=wave,
        attempt=0,
        seed=7,
        outcome=outcome,
        reward={Outcome.SUCCESS: 1.0, Outcome.FAILURE: 0.0, Outcome.TRUNCATED: 0.25}.get(outcome),
        terminated=outcome is Outcome.SUCCESS,
        truncation="turns" if outcome is Outcome.TRUNCATED else "",
        fault=Fault(FaultKind.ENVIRONMENT, "the [walls] fell", 1)
        if outcome is Outcome.FAULT
        else None,
        prompt=(ChatMessage("system", "Find the goal."),),
        turns=(
            Turn("a wall\x1b[31m", "Thought: go\nAction: up", "up", 0.0, 1, 3, 4),
            Turn("a door", "hm", "", 1.0, 4, 6, 5, FinishReason.LENGTH, format_error=True),
        ),
        final_observation="you are there",
        token_ids=pack_tokens(range(7)),
        loss_mask=pack_mask([0, 1, 1, 0, 1, 1, 0]),
        logprobs=pack_floats([0, -0.5, -0.5, 0, -0.25, -0.25, 0]),
        policy="models/base",
        versions=(4, 5),
        temperature=0.5,
        seconds=1.25,
    )


def taken(episode: str) -> TurnTaken:
    """The first turn of an episode."""
    turn = made(0, Outcome.SUCCESS).turns[0]
    return TurnTaken(episode, 0, 7, turn, pack_tokens([1]), pack_floats([0.0]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one sealed wave with each outcome, and one that is still in the journal."""
    directory = tmp_path / "run"
    with Store.open(directory, settings={"env": "maze-v1"}) as store:
        store.seal(0, 4, [made(n, outcome) for n, outcome in enumerate(Outcome)])

        async def write() -> None:
            async with await Journal.open(store.journal_path) as journal:
                # The sealed wave's record is what a crash right after sealing leaves.
                journal.append(made(0, Outcome.SUCCESS, wave=0))
                for n, outcome in enumerate([Outcome.SUCCESS, Outcome.FAILURE]):
                    journal.append(made(n, outcome, wave=1))
                # Of these one has ended, one is of the sealed wave, and two are in flight.
                for name in ("w1/maze_0/0", "w0/maze_4/0", "w1/maze_2/0", "w1/maze_2/1"):
                    journal.append(taken(name))
                journal.append(made(0, Outcome.SUCCESS, wave=1))
                journal.append(taken("w2/maze_0/0"))
                await journal.sync()

        trio.run(write)
    return directory


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    def call(*words: object) -> tuple[int, str, str]:
        code = main(["inspect", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def answer(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    assert out.count("\n") == 1
    got: dict[str, Any] = json.loads(out)
    return got


def test_the_overview(run: Path, show: Show) -> None:
    code, out, _ = show(run)
    assert code == 0
    for part in ("maze-v1", "sealed", "unfinished", "in flight", "33.3%", "50.0%"):
        assert part in out


def test_the_overview_as_json(run: Path, show: Show) -> None:
    got = answer(show(run, "--json"))
    assert got.keys() == {"run", "created", "settings", "waves"}
    assert got["settings"] == {"env": "maze-v1"}
    sealed, unfinished, begun = got["waves"]
    assert sealed["outcomes"] == dict.fromkeys([o.value for o in Outcome], 1)
    assert sealed["success_rate"] == pytest.approx(1 / 3)  # faults are not failures
    assert sealed["average_reward"] == pytest.approx(1.25 / 3)
    assert (sealed["sealed"], sealed["policy_version"], sealed["trajectories"]) == (True, 4, 5)
    assert (unfinished["sealed"], unfinished["trajectories"]) == (False, 2)
    assert unfinished["policy_version"] is None
    assert [wave["in_flight"] for wave in (sealed, unfinished, begun)] == [0, 2, 1]
    assert (begun["number"], begun["trajectories"], begun["success_rate"]) == (2, 0, None)


def test_a_wave(run: Path, show: Show) -> None:
    code, out, _ = show(run, "--wave", 0)
    assert code == 0
    assert "5 of 5 trajectories" in out
    assert "environment: the [walls] fell" in out


def test_a_wave_that_is_not_sealed_yet(run: Path, show: Show) -> None:
    got = answer(show(run, "--wave", 1, "--json"))
    assert [t["id"] for t in got["trajectories"]] == ["w1/maze_0/0", "w1/maze_1/0"]


def test_outcome_and_limit_narrow_the_list(run: Path, show: Show) -> None:
    got = answer(show(run, "--outcome", "success", "--json"))
    assert (got["matching"], len(got["trajectories"])) == (2, 2)
    got = answer(show(run, "--outcome", "success", "--limit", 1, "--json"))
    assert (got["matching"], len(got["trajectories"])) == (2, 1)
    (fault,) = answer(show(run, "--outcome", "fault", "--json"))["trajectories"]
    assert fault["fault"] == {"kind": "environment", "text": "the [walls] fell", "turn": 1}
    assert fault["reward"] is None


def test_one_episode_turn_by_turn(run: Path, show: Show) -> None:
    code, out, _ = show(run, "--trajectory", "w0/maze_0/0")
    assert code == 0
    parts = [
        "success, reward 1, 2 turns, 7 tokens",
        "versions 4 to 5",
        "Find the goal.",
        "turn 1 of 2",
        "a wall\\x1b[31m",
        "Thought: go",
        "action       up",
        "turn 2 of 2",
        "did not follow the format",
        "2 tokens (length)",
        "you are there",
    ]
    positions = [out.find(part) for part in parts]
    assert -1 not in positions, parts[positions.index(-1)]
    assert positions == sorted(positions)
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("number", "part"),
    [(2, "ended by our limit of turns"), (3, "fault in turn 1: environment: the [walls] fell")],
)
def test_how_it_ended_is_said(run: Path, show: Show, number: int, part: str) -> None:
    assert part in show(run, "--trajectory", f"w0/maze_{number}/0")[1]


def test_one_episode_as_json_has_every_field(run: Path, show: Show) -> None:
    got = answer(show(run, "--trajectory", "w0/maze_0/0", "--json"))["trajectory"]
    assert set(got) == set(Trajectory.__struct_fields__)
    assert got["token_ids"] == list(range(7))
    assert got["loss_mask"] == [0, 1, 1, 0, 1, 1, 0]
    assert got["logprobs"] == [0, -0.5, -0.5, 0, -0.25, -0.25, 0]
    assert got["turns"][1]["finish"] == "length"
    assert got["prompt"] == [{"role": "system", "text": "Find the goal.", "loss": None}]


def test_a_run_can_be_read_while_it_is_written(run: Path, show: Show) -> None:
    with Store.open(run):
        assert show(run)[0] == 0


def test_an_empty_run(tmp_path: Path, show: Show) -> None:
    Store.open(tmp_path / "empty").close()
    code, out, _ = show(tmp_path / "empty")
    assert code == 0
    assert "No wave yet" in out
    assert answer(show(tmp_path / "empty", "--json"))["waves"] == []


def refused(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2
    assert not out
    assert err.count("\n") == 1
    return err


def test_what_is_no_run(tmp_path: Path, show: Show) -> None:
    assert "absent" in refused(show(tmp_path / "absent"))
    assert str(tmp_path) in refused(show(tmp_path))
    file = tmp_path / "file"
    file.write_text("x")
    assert "file" in refused(show(file))
    (tmp_path / "run.json").write_text("{")
    assert "run.json" in refused(show(tmp_path))


def test_reading_creates_nothing(tmp_path: Path, show: Show) -> None:
    show(tmp_path / "absent")
    show(tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_wave_and_trajectory_say_what_there_is(run: Path, show: Show) -> None:
    assert "0, 1" in refused(show(run, "--wave", 7))
    assert "did you mean w0/maze_1/0" in refused(show(run, "--trajectory", "w0/maze_1/9"))
    assert "w1/" in refused(show(run, "--trajectory", "w0/maze_0/0", "--wave", 1))


def test_a_damaged_wave_is_named(run: Path, show: Show) -> None:
    (wave,) = (run / "waves").glob("*.parquet")
    damaged = bytearray(wave.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    wave.write_bytes(damaged)
    assert wave.name in refused(show(run, "--wave", 0))


def test_a_wrong_outcome_is_a_usage_error(run: Path, show: Show) -> None:
    code, _, err = show(run, "--outcome", "won")
    assert code == 2
    assert "truncated" in err

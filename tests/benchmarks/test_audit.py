"""The audit of crashes must see what is lost, doubled or changed; it is worth nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from rollwave.actors.protocol import TurnTaken
from rollwave.benchmarks.audit import Audit, Look, differing, look, outcome
from rollwave.engine.codec import Message
from rollwave.engine.journal import Journal
from rollwave.engine.store import Store
from rollwave.engine.trajectory import Outcome, Trajectory, Turn


def turn(number: int, seconds: float = 0.5) -> Turn:
    return Turn(f"at {number}", "up", "up", 0.0, generate_seconds=seconds)


def episode(n: int, turns: int = 2, **fields: Any) -> Trajectory:
    base: dict[str, Any] = {
        "id": f"w1/x_{n}/0",
        "env": "x-v1",
        "task_id": f"x_{n}",
        "split": "train",
        "wave": 1,
        "attempt": 0,
        "seed": n,
        "outcome": Outcome.SUCCESS,
        "reward": 1.0,
        "terminated": True,
        "turns": tuple(map(turn, range(turns))),
        "policy": "expert",
    }
    return Trajectory(**(base | fields))


def taken(n: int, number: int, seconds: float = 0.5) -> TurnTaken:
    return TurnTaken(f"w1/x_{n}/0", number, n, turn(number, seconds), b"", b"")


def journalled(run: Path, records: Iterable[Message]) -> None:
    async def write() -> None:
        async with await Journal.open(run / "journal.msgpack") as journal:
            for record in records:
                journal.append(record)

    with Store.open(run):
        trio.run(write)


def sealed(run: Path, *records: Trajectory) -> None:
    with Store.open(run) as store:
        store.seal(1, 0, records)
    (run / "journal.msgpack").unlink(missing_ok=True)


def test_a_run_that_is_not_there_yet_holds_nothing(tmp_path: Path) -> None:
    assert look(tmp_path / "run") == Look({}, {}, [], {}, {})


def test_ended_live_and_sealed_episodes_of_every_store_are_seen(tmp_path: Path) -> None:
    cancelled = episode(3, outcome=Outcome.CANCELLED, reward=None, terminated=False)
    journalled(tmp_path, [taken(1, 0), taken(2, 0), episode(1), taken(2, 1), cancelled])
    sealed(tmp_path / "evaluations" / "dev", episode(1), episode(2))
    now = look(tmp_path)
    assert sorted(now.records) == [":w1/x_1/0", *(f"evaluations/dev:w1/x_{n}/0" for n in (1, 2))]
    assert now.records[":w1/x_1/0"] == now.records["evaluations/dev:w1/x_1/0"]
    assert dict(now.begun) == {":w1/x_2/0": (turn(0), turn(1))}
    assert list(now.sealed) == ["evaluations/dev/waves/wave-0001.parquet"]
    assert now.doubled == []


def audited(tmp_path: Path, *steps: Callable[[], None]) -> Audit:
    """Look before each step and after the last."""
    audit = Audit()
    audit.add(look(tmp_path))
    for step in steps:
        step()
        audit.add(look(tmp_path))
    return audit


def test_a_run_that_goes_on_and_is_sealed_loses_nothing(tmp_path: Path) -> None:
    audit = audited(
        tmp_path,
        lambda: journalled(tmp_path, [episode(1), taken(2, 0), taken(3, 0), taken(4, 0)]),
        lambda: journalled(tmp_path, [taken(2, 1), episode(3, turns=1)]),
        lambda: (
            journalled(tmp_path, [episode(2)]),
            sealed(tmp_path, episode(1), episode(2), episode(3, turns=1), episode(4)),
        )[0],
    )
    assert (audit.lost, audit.doubled, audit.changed) == ([], [], [])
    assert audit.looks == 4
    assert audit.records == 0 + 0 + 1 + 2
    # Two of them ended in the journal, one in the wave; none was played again.
    assert (audit.in_flight, audit.resumed, audit.restarted) == (3, 3, 0)
    # One that began anew twice.
    audit = audited(
        tmp_path / "other",
        lambda: journalled(tmp_path / "other", [taken(4, 0, 0.7)]),
        lambda: journalled(tmp_path / "other", [taken(4, 0, 0.2), taken(4, 1)]),
        lambda: journalled(tmp_path / "other", [episode(4, turns=3)]),
    )
    assert (audit.in_flight, audit.resumed, audit.restarted) == (2, 0, 2)


def test_what_was_there_and_is_not_any_more_is_lost(tmp_path: Path) -> None:
    audit = audited(
        tmp_path,
        lambda: journalled(tmp_path, [episode(1), episode(2)]),
        lambda: sealed(tmp_path, episode(1)),
    )
    assert audit.lost == [":w1/x_2/0"]
    wave = tmp_path / "waves" / "wave-0001.parquet"
    wave.unlink()
    audit.add(look(tmp_path))
    assert set(audit.lost[1:]) == {":w1/x_1/0", ":w1/x_2/0", "waves/wave-0001.parquet"}


def test_an_episode_that_is_there_twice_is_doubled(tmp_path: Path) -> None:
    journalled(tmp_path, [episode(1), episode(1)])
    assert look(tmp_path).doubled == [":w1/x_1/0"]
    sealed(tmp_path / "sealed", episode(2), episode(2))
    assert look(tmp_path / "sealed").doubled == [":w1/x_2/0"]
    # In the journal and the wave sealed from it, just before the journal goes: once.
    journalled(tmp_path / "sealed", [episode(2)])
    assert len(look(tmp_path / "sealed").doubled) == 1


def test_a_record_of_other_bytes_is_changed_and_so_is_a_sealed_file(tmp_path: Path) -> None:
    audit = audited(
        tmp_path,
        lambda: journalled(tmp_path, [episode(1), episode(2)]),
        lambda: sealed(tmp_path, episode(1), episode(2, seconds=1.0)),
    )
    assert audit.changed == [":w1/x_2/0"]
    (tmp_path / "waves" / "wave-0001.parquet").unlink()
    sealed(tmp_path, episode(1), episode(2, seconds=1.0), episode(3))
    audit.add(look(tmp_path))
    assert audit.changed[1:] == ["waves/wave-0001.parquet"]


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Make a finished campaign of one wave and one model."""

    def make(name: str, record: Trajectory, weights: bytes, rate: float) -> Path:
        run = tmp_path / name
        sealed(run, record)
        model = run / "models" / "base"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(weights)
        rows = [{"arm": "evolution", "dev": {"success_rate": rate}, "model": str(model)}]
        (run / "report.json").write_text(json.dumps({"rows": rows, "out": str(run)}))
        return run

    return make


def test_two_campaigns_are_equal_but_for_times_and_places(finished: Callable[..., Path]) -> None:
    def later(t: Trajectory) -> Trajectory:
        turns = tuple(msgspec.structs.replace(x, generate_seconds=9.0) for x in t.turns)
        return msgspec.structs.replace(t, turns=turns, started=7.0, policy="elsewhere")

    plain = outcome(finished("plain", episode(1), b"w", 0.5))
    assert differing(plain, outcome(finished("again", later(episode(1)), b"w", 0.5))) == []
    assert differing(plain, outcome(finished("worse", episode(1), b"w", 0.4))) == ["report.json"]
    assert differing(plain, outcome(finished("bits", episode(1), b"v", 0.5))) == ["models/base"]
    other = outcome(finished("turns", episode(1, turns=3), b"w", 0.5))
    assert differing(plain, other) == ["waves/wave-0001.parquet"]

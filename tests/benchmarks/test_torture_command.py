"""The torture as a command: counts, what it says of a broken engine, and that it can fail."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from rollwave.actors.episode import Episode
from rollwave.actors.simulation import trial
from rollwave.actors.simulation.fault_plan import (
    KINDS,
    BackendFaults,
    FaultPlan,
    Strike,
    find_plan,
)
from rollwave.actors.simulation.random_plan import random_plan
from rollwave.benchmarks import torture as module
from rollwave.benchmarks.torture import Hung, Tally, main, small, some, verdict
from rollwave.engine.trajectory import Trajectory


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., int]:
    """Run the command in this process, so that a mutant is seen by it."""
    caplog.set_level("CRITICAL", "rollwave")

    def inline(plans: int, seed: int, jobs: int, told: Callable[[Tally], None]) -> Tally:
        tally = some(seed, plans)
        told(tally)
        return tally

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["torture", *arguments])
        return main()

    monkeypatch.setattr(module, "torture", inline)
    return run


@pytest.fixture
def rewarding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine that gives a fault a reward."""
    record = Episode.record

    def rewarded(self: Episode) -> Trajectory:
        made = record(self)
        return msgspec.structs.replace(made, reward=0.0) if made.fault is not None else made

    monkeypatch.setattr(Episode, "record", rewarded)
    monkeypatch.setattr(Trajectory, "check", lambda self: None)
    trial.forget()
    yield
    trial.forget()


def test_a_clean_run_says_what_struck(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--plans", "6", "--seed", "40", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "0 of 6 plans broke an invariant" in said
    figures = json.loads((tmp_path / "torture.json").read_text())
    assert (figures["plans"], figures["first_seed"], figures["broken"]) == (6, 40, {})
    assert set(figures["struck"]) == set(KINDS)
    assert figures["runs"]["done"] == 12
    assert sum(figures["outcomes"].values()) > 0
    wanted = Counter[str]()
    for seed in range(40, 46):
        wanted += trial.examine(random_plan(seed)).story.struck
    assert {kind: n for kind, n in figures["struck"].items() if n} == dict(wanted)


def test_a_broken_plan_is_shrunk_written_and_can_be_played_again(
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rewarding: None,
) -> None:
    plan = FaultPlan(
        seed=7,
        backend=BackendFaults(refuses=0.2),
        strike=(Strike(kind="learner.fails", at=1),),
    )
    monkeypatch.setattr(module, "random_plan", lambda seed: plan)
    monkeypatch.setattr(module, "torture", lambda *_: some(7, 1, lambda _: plan))
    assert command("--plans", "1", "--seed", "7", "--out", str(tmp_path)) == 1
    said = capsys.readouterr().out
    path = tmp_path / "plan-7.toml"
    assert find_plan(str(path)) == FaultPlan(seed=7, backend=BackendFaults(refuses=0.2))
    assert path.read_text() in said
    assert "plan 7 breaks an invariant: one outcome each" in said.replace("\n", " ")
    assert f"--plan {path}" in said.replace("\n", "")
    assert "7" in json.loads((tmp_path / "torture.json").read_text())["broken"]
    assert command("--plan", str(path)) == 1
    assert "process 0 done" in capsys.readouterr().out


def test_one_plan_can_be_played_by_name(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trial.forget()
    assert command("--plan", "none") == 0
    assert "every invariant holds" in capsys.readouterr().out
    assert command("--plan", str(tmp_path / "absent.toml")) == 2
    assert "is neither a plan by name" in capsys.readouterr().out


def test_a_run_that_shows_nothing_of_a_kind_fails(
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tally = Tally(plans=2000, struck=Counter(dict.fromkeys(KINDS, 1)))
    monkeypatch.setattr(module, "torture", lambda *_: tally)
    assert command("--plans", "2000", "--out", str(tmp_path)) == 0
    del tally.struck["disk.torn"]
    assert command("--plans", "2000", "--out", str(tmp_path)) == 1
    assert "NEVER STRUCK, so nothing was shown about: disk.torn" in capsys.readouterr().out
    tally.plans = 1999  # interrupted: that is no success either
    assert command("--plans", "2000", "--out", str(tmp_path)) == 1


def test_tallies_add_up() -> None:
    one, other = Tally(), Tally()
    one.enter(FaultPlan(seed=1))
    other.enter(FaultPlan(seed=1, strike=(Strike(kind="process.killed", at=50),)))
    both = Tally()
    both.add(one)
    both.add(other)
    assert (both.plans, both.runs) == (2, 5)
    assert both.struck == {"process.killed": 1}
    assert both.ended == {"done": 4, "killed": 1}
    assert set(both.silent()) == set(KINDS) - {"process.killed"}


def test_a_plan_that_takes_for_ever_and_a_drill_that_breaks_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(plan: FaultPlan) -> None:
        while True:
            pass

    monkeypatch.setattr(module, "examine", hang)
    monkeypatch.setattr(module, "_PLAN_SECONDS", 0.05)
    problems, story = verdict(FaultPlan())
    assert story is None
    assert problems[0].startswith("it ends: no end within")
    assert issubclass(Hung, BaseException)

    def broken(plan: FaultPlan) -> None:
        raise KeyError(plan.seed)

    monkeypatch.setattr(module, "examine", broken)
    assert verdict(FaultPlan(seed=3))[0] == ["it ends: KeyError: 3"]
    assert small(FaultPlan(seed=3), ["it ends: KeyError"]) == FaultPlan(seed=3)

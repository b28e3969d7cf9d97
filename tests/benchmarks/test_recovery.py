"""The recovery benchmark: both loops meet the same workload, and the figures mean what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rollwave.benchmarks import disturbance, recovery
from rollwave.benchmarks.disturbance import KINDS, RESTART_SECONDS, Workload
from rollwave.benchmarks.lockstep import Score
from rollwave.benchmarks.recovery import LOOPS, Played, play_lockstep, play_rollwave, summarise
from rollwave.engine.testing import event_digest
from rollwave.engine.trajectory import Trajectory

EPISODES, TOGETHER = 48, 16


def rollwave(
    rate: float, deaths: int = 0, again: int = 0, seed: int = 5
) -> tuple[Played, Played, dict[str, Trajectory]]:
    return play_rollwave(Workload(seed, EPISODES, rate, deaths), TOGETHER, again)


def lockstep(rate: float, deaths: int = 0, seed: int = 5) -> tuple[Played, dict[str, Score]]:
    return play_lockstep(Workload(seed, EPISODES, rate, deaths), TOGETHER)


def test_undisturbed_both_loops_earn_the_same_in_every_episode() -> None:
    played, _, scored = rollwave(0.0)
    steps, scores = lockstep(0.0)
    assert played.scored == steps.scored == EPISODES
    assert {id_: (t.reward, len(t.turns)) for id_, t in scored.items()} == {
        id_: (score.reward, score.turns) for id_, score in scores.items()
    }
    assert 0.2 < played.reward < 0.95  # there is something to lose and to gain
    assert played.recoveries == steps.recoveries == ()


@settings(max_examples=5, deadline=None)
@given(rate=st.sampled_from([0.02, 0.1, 0.3]), seed=st.integers(0, 1000))
@example(rate=0.3, seed=0)  # with an episode of which every turn is struck
def test_what_no_fault_strikes_ends_as_undisturbed_in_both_loops(rate: float, seed: int) -> None:
    _, _, calm = rollwave(0.0, seed=seed)
    played, _, scored = rollwave(rate, deaths=1, seed=seed)
    _, scores = lockstep(rate, deaths=1, seed=seed)
    actions = {id_: [turn.action for turn in t.turns] for id_, t in calm.items()}
    for id_, trajectory in scored.items():
        assert [turn.action for turn in trajectory.turns] == actions[id_]
        assert trajectory.reward == calm[id_].reward
    for id_, score in scores.items():
        assert score.reward == (0.0 if score.faulted else calm[id_].reward)
    # What we score and they do not are episodes whose process died, and was replaced.
    workload = Workload(seed, EPISODES, rate, 1)
    for id_ in scored.keys() - {id_ for id_, score in scores.items() if not score.faulted}:
        struck = {workload.fault(id_.split("/")[1], turn) for turn in range(len(actions[id_]))}
        assert struck - {""} == {"crash"}
    assert played.scored == len(scored)


def test_a_process_that_dies_costs_an_episode_in_lock_step_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disturbance, "KINDS", ("crash",))
    calm, _, _ = rollwave(0.0)
    ours, _, _ = rollwave(0.03)
    theirs, _ = lockstep(0.03)
    assert (ours.faulted, ours.reward) == (0, calm.reward)
    assert theirs.faulted > 0


def test_a_fault_is_zero_for_the_lock_step_learner_and_nothing_for_ours() -> None:
    calm, _, _ = rollwave(0.0)
    ours, again, _ = rollwave(0.05, again=20)
    theirs, scores = lockstep(0.05)
    assert theirs.faulted == sum(score.faulted for score in scores.values()) > 0
    assert theirs.reward < calm.reward
    assert ours.reward > theirs.reward
    # Played again until nothing faults, the same episodes are there: no bias is left.
    assert again.faulted == 0
    assert again.reward == calm.reward
    assert again.seconds > ours.seconds


def test_a_run_is_the_same_twice() -> None:
    first, second = (rollwave(0.1, deaths=1, again=1) for _ in range(2))
    assert first[:2] == second[:2]
    assert event_digest(first[2].values()) == event_digest(second[2].values())
    assert lockstep(0.1, deaths=1)[0] == lockstep(0.1, deaths=1)[0]


def test_a_death_costs_each_loop_its_restart_and_no_episode() -> None:
    calm, _, _ = rollwave(0.0)
    ours, _, _ = rollwave(0.0, deaths=2)
    theirs, _ = lockstep(0.0, deaths=2)
    assert theirs.scored == EPISODES
    assert len(ours.recoveries) == len(theirs.recoveries) == 2
    assert min(*ours.recoveries, *theirs.recoveries) > RESTART_SECONDS
    assert ours.seconds > calm.seconds + RESTART_SECONDS
    # Whom the restart made late for its deadline faults; only those that were live then can.
    assert ours.faulted <= 2 * TOGETHER


def test_every_kind_of_fault_strikes_by_position_alone() -> None:
    workload = Workload(3, 200, 0.3)
    drawn = [workload.fault(task.id, turn) for task in workload.tasks for turn in range(10)]
    assert set(drawn) == {*KINDS, ""}
    assert sum(map(bool, drawn)) == pytest.approx(600, abs=80)
    assert drawn == [workload.fault(task.id, turn) for task in workload.tasks for turn in range(10)]
    workload.round = 1
    assert drawn != [workload.fault(task.id, turn) for task in workload.tasks for turn in range(10)]


def test_recovery_is_the_time_until_nine_in_ten_go_on() -> None:
    workload = Workload(0, 1, 0.0)
    workload.died = [10.0]
    # Ten live sessions that move 1, 2, … 10 s after the death; one over, one not begun.
    workload.sessions = [[0.0, 11.0 + k, 99.0] for k in range(10)]
    workload.sessions += [[0.0, 5.0, 9.0], [12.0, 13.0]]
    assert workload.recoveries() == [9.0]
    assert workload.recoveries(share=1.0) == [10.0]


def test_each_run_is_compared_with_its_own_seed_undisturbed() -> None:
    def run(loop: str, rate: float, seed: int, reward: float) -> Played:
        return Played(loop, rate, seed, 10.0 * (1 + (rate > 0)), 90, 10, reward, (70.0, 80.0))

    runs = [run(LOOPS[0], 0.0, 0, 0.5), run(LOOPS[0], 0.0, 1, 0.7)]
    runs += [run(LOOPS[0], 0.01, 0, 0.6), run(LOOPS[0], 0.01, 1, 0.6)]
    runs[2] = replace(runs[2], recoveries=())
    calm, disturbed = summarise(runs)
    assert (calm.bias.least, calm.bias.most) == (0.0, 0.0)
    assert disturbed.bias.least == pytest.approx(-0.1)
    assert disturbed.bias.most == pytest.approx(0.1)
    assert disturbed.kept.median == 0.5
    assert disturbed.faulted.median == 0.1
    assert disturbed.recovery == (75.0, 80.0)
    assert disturbed.deaths == 2


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "recovery.json", tmp_path / "recovery.png"
    arguments = ["--seeds", "1", "--episodes", "24", "--together", "8", "--deaths", "1"]
    arguments += ["--out", str(out), "--figure", str(figure)]
    monkeypatch.setattr("sys.argv", ["recovery", *arguments])
    monkeypatch.setattr(recovery, "RATES", (0.0, 0.2))
    assert recovery.main() == 0
    written = json.loads(out.read_text("utf-8"))
    assert {(row["loop"], row["rate"]) for row in written["rows"]} == {
        (loop, rate) for loop in LOOPS for rate in (0.0, 0.2)
    }
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "lock-step" in capsys.readouterr().out

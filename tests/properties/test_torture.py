"""Every invariant under every fault plan: a few hundred here, ten thousand in `make torture`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from rollwave.actors.simulation import trial
from rollwave.actors.simulation.fault_plan import (
    KINDS,
    STRIKES,
    BackendFaults,
    ConsumerFaults,
    EnvironmentFaults,
    FaultPlan,
    Strike,
)
from rollwave.actors.simulation.random_plan import random_plan
from rollwave.actors.simulation.strategies import plans
from rollwave.actors.simulation.trial import examine, scenario_of, shrink
from rollwave.engine.trajectory import Outcome

SECTIONS = {
    "environment": EnvironmentFaults,
    "backend": BackendFaults,
    "consumer": ConsumerFaults,
}
AT = {"swap": 0, "backend": 9, "learner.fails": 2, "disk.full": 7, "disk.torn": 7}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "rollwave")


def of_kind(kind: str) -> FaultPlan:
    """A plan with one kind of fault."""
    boundary, _, name = kind.partition(".")
    if boundary in SECTIONS and kind not in STRIKES:
        return FaultPlan(**{boundary: SECTIONS[boundary](**{name: 0.2})})
    at = next((at for prefix, at in AT.items() if kind.startswith(prefix)), 130)
    if kind in ("process.power", "disk.fsync"):
        at = 12
    if kind.startswith("learner.") and kind != "learner.fails":
        at = 290  # it trains then
    return FaultPlan(strike=(Strike(kind=kind, at=at, lasts=40 if "clock" in kind else 1),))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_strikes_and_every_invariant_holds(kind: str) -> None:
    found = examine(of_kind(kind))
    assert found.problems == []
    assert found.story.struck[kind] >= 1
    assert set(found.story.struck) == {kind}


@given(plans())
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@example(FaultPlan())
def test_every_invariant_holds_under_every_plan(plan: FaultPlan) -> None:
    assert examine(plan, twice=False).problems == []


@pytest.mark.parametrize("block", range(3))
def test_every_invariant_holds_under_these_plans(block: int) -> None:
    broken = {}
    for seed in range(20 * block, 20 * block + 20):
        if problems := examine(random_plan(seed)).problems:
            broken[seed] = problems
    assert broken == {}


def test_without_faults_nothing_differs_from_one_process_and_all_is_scored() -> None:
    story = examine(FaultPlan()).story
    assert [process.ended for process in story.processes] == ["done", "done"]
    assert story.processes[1].yielded == []  # what is sealed is not played again
    outcomes = {t.outcome for wave in story.waves.values() for t in wave.trajectories}
    assert outcomes == {Outcome.SUCCESS, Outcome.FAILURE}
    scenario = scenario_of(FaultPlan())
    assert len(story.processes[0].yielded) == scenario.waves * scenario.tasks * scenario.attempts
    assert len(set(story.weights.values())) == scenario.waves + 1


def test_several_crashes_are_one_plan() -> None:
    strikes = tuple(
        Strike(kind=kind, at=at, process=number)
        for number, (kind, at) in enumerate(
            [("process.killed", 60), ("process.power", 30), ("process.killed", 40)] * 2
        )
    )
    found = examine(FaultPlan(strike=strikes))
    assert found.problems == []
    endings = [process.ended for process in found.story.processes]
    assert endings == ["killed"] * 6 + ["done"] * 2


def test_a_process_that_hangs_is_told_by_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollwave.actors.simulation import drill

    monkeypatch.setattr(drill, "EVER", 10.0)  # as if all deadlines had passed
    found = examine(FaultPlan(seed=4), twice=False)
    assert found.problems[0].startswith("it ends: process 0 waited beyond every deadline")


def test_shrinking_leaves_what_matters_and_gives_up_in_time() -> None:
    plan = FaultPlan(
        seed=3,
        environment=EnvironmentFaults(raises=0.1, lost=0.2),
        consumer=ConsumerFaults(slow=0.5),
        strike=tuple(
            Strike(kind=kind, at=57 + number, process=2, lasts=9)
            for number, kind in enumerate(("disk.full", "disk.torn", "clock.jumps", "swap.fails"))
        ),
    )

    def broken(candidate: FaultPlan) -> bool:
        torn = [s for s in candidate.strike if s.kind == "disk.torn" and s.at >= 11]
        return bool(torn) and candidate.environment.lost > 0

    least = shrink(plan, broken)
    assert least == FaultPlan(
        seed=3,
        environment=EnvironmentFaults(lost=0.2),
        strike=(Strike(kind="disk.torn", at=11),),
    )
    tried: list[FaultPlan] = []

    def never(candidate: FaultPlan) -> bool:
        tried.append(candidate)
        return False

    assert shrink(plan, never, tries=5) == plan
    assert len(tried) == 5


def test_scenarios_differ_by_the_seed_of_the_plan() -> None:
    shapes = [replace(scenario_of(FaultPlan(seed=seed)), seed=0) for seed in range(4)]
    assert len(set(shapes)) == 4
    assert scenario_of(FaultPlan(seed=5)) == scenario_of(FaultPlan(seed=1))
    assert trial._undisturbed.cache_info().maxsize == 4

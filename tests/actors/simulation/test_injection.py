"""Faults at the boundaries, one by one: each strikes what it names, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.embedding import Engine, EngineSettings, open_engine
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.simulation.drill import QuickDisk
from rollwave.actors.simulation.fault_plan import (
    BackendFaults,
    ConsumerFaults,
    EnvironmentFaults,
    FaultPlan,
    Strike,
    StrikeKind,
)
from rollwave.actors.simulation.injection import Injector
from rollwave.actors.simulation.scenario import (
    Scenario,
    ScriptedModel,
    corridor,
    source,
    write_model,
)
from rollwave.engine.disk import Disk
from rollwave.engine.errors import FaultKind, WeightSwapFailed
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory
from rollwave.envs.hosting import InlineHost

SCENARIO = Scenario(tasks=10, attempts=2)
SPEC = corridor(SCENARIO)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "rollwave")


def models(tmp_path: Path) -> Path:
    for version in range(3):
        write_model(Disk(), tmp_path / str(version), version)
    return tmp_path


def roll(
    tmp_path: Path, plan: FaultPlan, *, swaps: int = 0, seed: int = 0, **limits: Any
) -> tuple[list[Trajectory], Injector]:
    """Twenty episodes under a plan."""
    injector = Injector(plan)
    paths = models(tmp_path)

    async def main() -> list[Trajectory]:
        plain = source(SCENARIO, paths / "0")
        assert plain.make_backend is not None
        who = PolicySource(
            kind="model",
            name="scripted",
            path=plain.path,
            make_backend=injector.backend(plain.make_backend),
            renderer=plain.renderer,
        )
        settings = EngineSettings(concurrency=4, turn_seconds=30.0, swap_seconds=60.0, **limits)
        async with open_engine(who, settings=settings) as engine, trio.open_nursery() as nursery:
            engine.use(SPEC, injector.host(InlineHost(SPEC.make)))
            nursery.start_soon(injector.disturb, engine)
            records = await play(engine)
            nursery.cancel_scope.cancel()
        return records

    async def play(engine: Engine) -> list[Trajectory]:
        for version in range(1, swaps + 1):
            await engine.swap_weights(version, str(paths / str(version)))
        return [t async for t in engine.rollout(SPEC.tasks("train"), attempts=2)]

    return run_simulated(main, seed=seed), injector


def faults(records: list[Trajectory]) -> Counter[FaultKind]:
    return Counter(t.fault.kind for t in records if t.fault is not None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("raises", FaultKind.ENVIRONMENT),
        ("garbage", FaultKind.ENVIRONMENT),
        ("hangs", FaultKind.DEADLINE),
    ],
)
def test_an_environment_goes_wrong_at_its_share_of_the_calls(
    tmp_path: Path, name: str, kind: FaultKind
) -> None:
    plan = FaultPlan(seed=5, environment=EnvironmentFaults(**{name: 0.1}))
    records, injector = roll(tmp_path, plan)
    struck = injector.struck[f"environment.{name}"]
    assert set(injector.struck) == {f"environment.{name}"}
    assert 2 <= struck <= 15  # of about a hundred calls
    assert set(faults(records)) == {kind}
    # A close that answers garbage is no fault: nobody reads it.
    assert faults(records)[kind] <= struck
    assert faults(records)[kind] == struck or name == "garbage"


def test_a_lost_process_is_asked_for_anew_and_costs_no_episode(tmp_path: Path) -> None:
    plan = FaultPlan(seed=5, environment=EnvironmentFaults(lost=0.03))
    records, injector = roll(tmp_path, plan)
    assert injector.struck["environment.lost"] >= 1
    assert all(t.fault is None or t.fault.kind is FaultKind.ENVIRONMENT for t in records)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("refuses", FaultKind.BACKEND),
        ("stale", FaultKind.BACKEND),
        ("corrupt", FaultKind.BACKEND),
        ("stalls", FaultKind.DEADLINE),
        ("late", FaultKind.DEADLINE),
    ],
)
def test_a_backend_goes_wrong_at_its_share_of_the_requests(
    tmp_path: Path, name: str, kind: FaultKind
) -> None:
    plan = FaultPlan(seed=4, backend=BackendFaults(**{name: 0.1}))
    records, injector = roll(tmp_path, plan)
    struck = injector.struck[f"backend.{name}"]
    assert struck >= 2
    assert faults(records).total() == struck
    # Half a token id is no message at all.
    assert set(faults(records)) <= {kind, FaultKind.MESSAGE}
    plain, none = roll(tmp_path, FaultPlan())
    assert not none.struck
    unharmed = {t.id: t.turns for t in records if t.fault is None}
    assert all(
        [turn.completion for turn in t.turns] == [turn.completion for turn in unharmed[t.id]]
        for t in plain
        if t.id in unharmed
    )


def test_the_same_requests_are_struck_whatever_the_schedule(tmp_path: Path) -> None:
    plan = FaultPlan(seed=9, backend=BackendFaults(refuses=0.2, corrupt=0.2))
    ways = [roll(tmp_path, plan, seed=seed)[0] for seed in (0, 1)]
    one, other = ({t.id for t in records if t.fault} for records in ways)
    assert one == other
    assert one


def test_a_backend_dies_at_its_request_once(tmp_path: Path) -> None:
    plan = FaultPlan(strike=(Strike(kind="backend.dies", at=7),))
    records, injector = roll(tmp_path, plan)
    assert injector.struck == {"backend.dies": 1}
    assert not faults(records)


@pytest.mark.parametrize(
    ("kind", "why"), [("swap.fails", "loaded half"), ("swap.hangs", "not confirmed within 60 s")]
)
def test_a_swap_fails_half_way(tmp_path: Path, kind: StrikeKind, why: str) -> None:
    plan = FaultPlan(strike=(Strike(kind=kind, at=1),))
    with pytest.raises((WeightSwapFailed, ExceptionGroup)) as error:
        roll(tmp_path, plan, swaps=2)
    leaf = error.value
    while isinstance(leaf, ExceptionGroup):
        (leaf,) = leaf.exceptions
    assert isinstance(leaf, WeightSwapFailed)
    assert why in str(leaf)


ACTORS = ("collector", "dispatcher", "inference")


@pytest.mark.parametrize("how", ["dies", "cancelled"])
@pytest.mark.parametrize("name", ACTORS)
def test_an_actor_is_struck_at_a_step_and_nothing_is_lost(
    tmp_path: Path, name: str, how: str
) -> None:
    plan = FaultPlan(strike=(Strike(kind=f"{name}.{how}", at=90),))  # type: ignore[arg-type]
    records, injector = roll(tmp_path, plan)
    assert injector.struck == {f"{name}.{how}": 1}
    assert len({t.id for t in records}) == len(records) == 20
    assert not faults(records)
    cancelled = sum(t.outcome is Outcome.CANCELLED for t in records)
    assert cancelled == 0 or name == "dispatcher"


@pytest.mark.parametrize("how", ["dies", "cancelled"])
def test_a_session_is_struck_and_no_other(tmp_path: Path, how: str) -> None:
    plan = FaultPlan(strike=(Strike(kind=f"session.{how}", at=90),))  # type: ignore[arg-type]
    records, injector = roll(tmp_path, plan)
    # It says by itself that it was stopped, before anybody says what it died of.
    assert Counter(t.outcome for t in records if not t.outcome.scored) == {Outcome.CANCELLED: 1}
    assert injector.struck == {f"session.{how}": 1}


@pytest.mark.parametrize("kind", ["mailbox.full", "message.corrupt", "message.oversize"])
def test_what_means_nothing_harms_nobody(tmp_path: Path, kind: StrikeKind) -> None:
    plan = FaultPlan(strike=(Strike(kind=kind, at=60),))
    records, injector = roll(tmp_path, plan)
    assert injector.struck == {kind: 1}
    assert injector.surprises == []
    assert all(t.outcome.scored for t in records)


def test_a_clock_that_jumps_makes_what_was_under_way_late(tmp_path: Path) -> None:
    plan = FaultPlan(strike=(Strike(kind="clock.jumps", at=60, lasts=1000),))
    records, _ = roll(tmp_path, plan, episode_seconds=5000.0)
    assert set(faults(records)) == {FaultKind.DEADLINE}
    assert 1 <= faults(records)[FaultKind.DEADLINE] <= 4  # the live ones


def test_what_is_not_there_is_not_struck(tmp_path: Path) -> None:
    """A process that cannot die, a learner and a campaign that are none."""
    kinds: tuple[StrikeKind, ...] = ("process.killed", "learner.dies", "campaign.cancelled")
    plan = FaultPlan(strike=tuple(Strike(kind=kind, at=20) for kind in kinds))
    records, injector = roll(tmp_path, plan)
    assert not injector.struck
    assert all(t.outcome.scored for t in records)


def test_without_faults_nothing_is_wrapped(tmp_path: Path) -> None:
    injector = Injector(FaultPlan())
    host, disk = InlineHost(SPEC.make), QuickDisk()
    models(tmp_path)

    def make(version: int, path: str) -> ScriptedModel:
        return ScriptedModel(version, path, 0)

    assert injector.host(host) is host
    assert injector.disk(disk) is disk
    assert injector.backend(make) is make
    assert make(0, str(tmp_path / "0")).latency != ConstantLatency(0.0)
    assert [injector.pause(f"w1/x/{n}") for n in range(50)] == [0.0] * 50


def test_a_consumer_pauses_at_its_share_of_the_records() -> None:
    injector = Injector(FaultPlan(consumer=ConsumerFaults(slow=0.5, seconds=3.0)))
    pauses = [injector.pause(f"w1/x/{n}") for n in range(100)]
    assert set(pauses) == {0.0, 3.0}
    assert injector.struck["consumer.slow"] == pauses.count(3.0)
    assert [Injector(injector.plan).pause(f"w1/x/{n}") for n in range(100)] == pauses


def test_a_learner_fails_at_its_step_of_its_process() -> None:
    plan = FaultPlan(strike=(Strike(kind="learner.fails", at=1, process=1),))
    other = Injector(plan)
    for _ in range(3):
        other.training_step()
    injector = Injector(plan, process=1)
    injector.training_step()
    with pytest.raises(RuntimeError, match="training step 1 failed"):
        injector.training_step()
    injector.training_step()
    assert (other.struck, injector.struck) == ({}, {"learner.fails": 1})

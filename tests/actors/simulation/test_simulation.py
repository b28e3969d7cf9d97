"""Whole simulations: one digest a seed, a complete trace, bounds that hold, faults counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.latency import ConstantLatency, LogNormalLatency, UniformLatency
from rollwave.actors.monitor import Snapshot
from rollwave.actors.simulation.draws import Draws, Latencies
from rollwave.actors.simulation.fault_plan import BackendFaults, EnvironmentFaults, FaultPlan
from rollwave.actors.simulation.simulation import Simulated, SimulationSettings, simulate
from rollwave.actors.simulation.sweep import knee
from rollwave.engine.errors import ConfigError, StorageFailed

HEAVY = Latencies(
    generate=LogNormalLatency(1.0, 1.0, 60.0),
    step=UniformLatency(0.0, 0.2),
    open=ConstantLatency(0.1),
    turns=lambda share: 1 + int(share * 4),
)
FAULTS = FaultPlan(
    seed=3,
    environment=EnvironmentFaults(raises=0.05, garbage=0.05),
    backend=BackendFaults(refuses=0.05),
)


def plain(**changes: object) -> SimulationSettings:
    base = SimulationSettings(sessions=24, latencies=HEAVY, concurrency=8, batch=4, seed=5)
    return replace(base, **changes)  # type: ignore[arg-type]


SETTINGS = st.builds(
    plain,
    sessions=st.integers(1, 40),
    concurrency=st.integers(1, 16),
    replicas=st.integers(1, 3),
    batch=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=25, deadline=None)
@given(SETTINGS)
def test_a_simulation_is_sound(chosen: SimulationSettings) -> None:
    """Everything is played once; the bound is never beaten; the same again is the same."""
    result = simulate(chosen)
    assert result.outcomes == {"success": chosen.sessions}
    draws = Draws(HEAVY, chosen.sessions, chosen.seed)
    assert result.turns == len(draws.generate)
    assert result.lower_bound_seconds <= result.wall_seconds * (1 + 1e-9)
    assert result.bounds.permits * chosen.concurrency == pytest.approx(
        sum(draws.open) + sum(draws.generate) + sum(draws.step)
    )
    assert result.batch_fill is not None
    assert 0.0 < result.batch_fill <= 1.0 + 1e-9
    assert result.queues["permits"].peak == min(chosen.sessions, chosen.concurrency)
    assert simulate(chosen) == replace(result, cpu_seconds=pytest.approx(0, abs=1e9))


@settings(max_examples=25, deadline=None)
@given(SETTINGS)
def test_with_a_slot_for_everybody_lock_step_is_never_faster(chosen: SimulationSettings) -> None:
    result = simulate(replace(chosen, replicas=1, batch=0))
    assert result.batch_fill is None
    assert result.lock_step_seconds is not None
    assert result.lock_step_seconds >= result.wall_seconds * (1 - 1e-9)


@settings(max_examples=25, deadline=None)
@given(SETTINGS, st.integers(0, 2**31))
def test_faults_keep_the_bound_and_the_count(chosen: SimulationSettings, seed: int) -> None:
    plan = FaultPlan(seed=seed, environment=FAULTS.environment, backend=FAULTS.backend)
    result = simulate(replace(chosen, faults=plan))
    assert sum(result.outcomes.values()) == chosen.sessions
    assert sum(result.faults.values()) == result.outcomes.get("fault", 0)
    assert result.lower_bound_seconds <= result.wall_seconds * (1 + 1e-9)
    assert bool(result.faults) <= bool(result.struck)


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SETTINGS, st.sampled_from([None, FAULTS]))
def test_the_trace_is_complete(
    tmp_path: Path, chosen: SimulationSettings, plan: FaultPlan | None
) -> None:
    """Each admitted episode ends once, in order of time; and writing it changes nothing."""
    path = tmp_path / "trace.jsonl"
    chosen = replace(chosen, faults=plan)
    result = simulate(chosen, trace=path)
    found = events(path)
    assert len(found) == result.events
    times = [event["t"] for event in found]
    assert times == sorted(times)  # type: ignore[type-var]
    everybody = Counter(range(chosen.sessions))
    assert Counter(e["episode"] for e in found if e["event"] == "admit") == everybody
    ends = [e for e in found if e["event"] == "end"]
    assert Counter(e["episode"] for e in ends) == everybody
    assert Counter(e["outcome"] for e in ends) == result.outcomes
    assert sum(e["turns"] for e in ends) == result.turns  # type: ignore[misc]
    begun: set[object] = set()
    for event in found:
        if event["event"] == "admit":
            begun.add(event["episode"])
        elif "episode" in event:
            assert event["episode"] in begun
    assert simulate(chosen).digest == result.digest


def test_another_seed_is_another_digest() -> None:
    assert len({simulate(plain(seed=seed)).digest for seed in range(6)}) == 6
    assert simulate(plain(faults=FAULTS)).digest != simulate(plain()).digest


_PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1]]
from test_simulation import FAULTS, plain, simulate
print(simulate(plain(faults=FAULTS)).digest, simulate(plain()).digest)
"""


def test_the_digest_depends_on_no_hash_seed() -> None:
    def digests(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert digests("1") == digests("2")
    assert digests("1").split()[1] == simulate(plain()).digest


def test_the_figures_are_those_of_the_textbook() -> None:
    """Equal latencies, a slot for every session: each turn takes what it takes."""
    same = Latencies(generate=ConstantLatency(1.0), step=ConstantLatency(0.5), turns=lambda _: 4)
    result = simulate(plain(latencies=same, sessions=16, concurrency=8, batch=8))
    assert result.wall_seconds == 2 * 4 * 1.5
    assert result.efficiency == 1.0
    assert result.batch_fill == pytest.approx(1 / 1.5)
    assert result.lock_step_seconds == 12.0
    assert result.turns_per_second == 64 / 12
    half = simulate(plain(latencies=same, sessions=16, concurrency=8, batch=4))
    assert half.queues["batch"].peak == 4
    assert half.wall_seconds > result.wall_seconds


def test_what_each_adds_to_a_batch_slows_it() -> None:
    def took(per_request: float) -> float:
        slowed = Latencies(generate=ConstantLatency(1.0, per_request), turns=lambda _: 2)
        return simulate(plain(latencies=slowed, sessions=8)).wall_seconds

    assert took(0.0) < took(0.1) < took(0.2)


def test_a_session_whose_process_dies_is_rebuilt() -> None:
    plan = FaultPlan(environment=EnvironmentFaults(lost=0.05))
    result = simulate(plain(sessions=60, faults=plan))
    assert result.struck["environment.lost"] > 5
    assert result.outcomes == {"success": 60}
    # The replayed steps take their time again.
    assert result.bounds.permits > simulate(plain(sessions=60)).bounds.permits


def test_more_replicas_pay_until_every_session_has_a_slot() -> None:
    results = [
        simulate(plain(sessions=160, concurrency=16, batch=4, replicas=n)) for n in (1, 2, 4, 8)
    ]
    assert [r.wall_seconds for r in results] == sorted(
        (r.wall_seconds for r in results), reverse=True
    )
    assert results[2].queues["batch"].peak == 0  # 16 sessions, 16 slots
    number, sentence = knee(results)
    assert number in (2, 4)
    assert f"More than {number} replicas do not pay" in sentence
    assert knee(results[:1])[0] == 1
    assert "try more" in knee([results[0], replace(results[1], wall_seconds=1.0)])[1]


def test_a_late_turn_is_a_fault_of_the_deadline() -> None:
    slow = Latencies(generate=ConstantLatency(10.0), turns=lambda _: 2)
    result = simulate(plain(latencies=slow, turn_seconds=5.0))
    assert result.outcomes == {"fault": 24}
    assert result.faults == {"deadline": 24}
    assert result.lower_bound_seconds == 0.0  # nothing came to its end
    assert result.lock_step_seconds is None


def test_who_watches_is_told() -> None:
    seen: list[Snapshot] = []
    simulate(plain(), watch=seen.append)
    assert seen
    assert seen[0].episodes_total == 24
    assert seen[0].stage.startswith("simulated ")


def test_the_timeline_is_bounded_and_in_order() -> None:
    result: Simulated = simulate(plain(sessions=200))
    times = [point.seconds for point in result.timeline]
    assert times == sorted(set(times))
    assert 2 <= len(times) <= 2048
    assert max(p.live for p in result.timeline) == 8
    assert max(p.running for p in result.timeline) == 4
    assert times[-1] <= result.wall_seconds


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sessions": 0}, "sessions must be at least 1"),
        ({"concurrency": 0}, "concurrency"),
        ({"replicas": 0}, "replicas"),
        ({"batch": -1}, "batch"),
        ({"batch": 0, "replicas": 2}, "give --batch"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plain(**change)


def test_a_trace_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(StorageFailed, match="file"):
        simulate(plain(), trace=tmp_path / "file" / "trace.jsonl")

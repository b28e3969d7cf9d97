"""Fault plans as values: TOML in and out, what is refused, and what can be drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import find, given, settings
from rollwave.actors.simulation.fault_plan import (
    KINDS,
    PRESETS,
    STRIKES,
    BackendFaults,
    EnvironmentFaults,
    FaultPlan,
    Strike,
    find_plan,
)
from rollwave.actors.simulation.random_plan import random_plan
from rollwave.actors.simulation.strategies import plans
from rollwave.engine.errors import ConfigError


@given(plans())
@settings(max_examples=200)
def test_a_plan_is_read_back_as_it_was_written(plan: FaultPlan) -> None:
    assert FaultPlan.parse(plan.toml()) == plan


def test_a_written_plan_says_no_more_than_it_must() -> None:
    plan = FaultPlan(
        seed=7,
        environment=EnvironmentFaults(lost=0.25),
        strike=(Strike(kind="disk.full", at=3, lasts=2), Strike(kind="process.killed", at=90)),
    )
    assert plan.toml() == (
        "seed = 7\n\n[environment]\nlost = 0.25\n\n"
        '[[strike]]\nkind = "disk.full"\nat = 3\nlasts = 2\n\n'
        '[[strike]]\nkind = "process.killed"\nat = 90\n'
    )
    assert FaultPlan().toml() == "seed = 0\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("seed", "is not TOML"),
        ("seed = -1", "seed must be within 0"),
        ("sede = 1", "unknown field `sede`"),
        ("[environment]\nraise = 0.1", r"unknown field `raise` - at `\$.environment`"),
        ("[environment]\nraises = 1.5", "environment.raises must be within 0 and 1, not 1.5"),
        ("[environment]\nlost = nan", "environment.lost must be within 0 and 1, not nan"),
        ("[backend]\nlate = 0.6\nstalls = 0.6", r"shares of \[backend\].*at most 1, not 1.2"),
        ("[backend]\nlate = 'often'", r"got `str` - at `\$.backend.late`"),
        ("[consumer]\nseconds = inf", "consumer.seconds must be finite"),
        ("[[strike]]\nat = 1", "missing required field `kind`"),
        ("[[strike]]\nkind = 'disk.full'", "missing required field `at`"),
        ("[[strike]]\nkind = 'disk.melts'\nat = 1", "'disk.melts' - at .*disk.full, disk.torn"),
        ("[[strike]]\nkind = 'disk.full'\nat = -1", "strike.at must be 0 or more, not -1"),
        ("[[strike]]\nkind = 'disk.full'\nat = 1\nlasts = 0", "strike.lasts must be 1 or more"),
    ],
)
def test_what_is_wrong_in_a_plan_is_named(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"{file}: .*{names}|{file} {names}"):
        find_plan(str(file))


def test_a_plan_is_found_by_name_or_in_a_file(tmp_path: Path) -> None:
    assert find_plan("storm") is PRESETS["storm"]
    (tmp_path / "mine.toml").write_text(PRESETS["one-percent"].toml())
    assert find_plan(str(tmp_path / "mine.toml")) == PRESETS["one-percent"]
    with pytest.raises(ConfigError, match=r"'strom' is neither .*none, one-percent, storm"):
        find_plan("strom")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not text"):
        find_plan(str(tmp_path / "binary"))


def test_shares_are_drawn_as_often_as_they_say() -> None:
    faults = BackendFaults(refuses=0.1, late=0.3)
    drawn = Counter(faults.draw((n + 0.5) / 1000) for n in range(1000))
    assert drawn == {"": 600, "refuses": 100, "late": 300}


def test_a_plan_knows_what_it_is_for() -> None:
    strikes = (Strike(kind="disk.full", at=9), Strike(kind="disk.torn", at=2, process=3))
    plan = FaultPlan(strike=(*strikes, Strike(kind="disk.full", at=1)))
    assert plan.processes == 4
    assert [s.at for s in plan.strikes(0, ("disk.full", "disk.torn"))] == [1, 9]
    assert plan.strikes(3, ("disk.full",)) == []
    assert plan.harmless
    assert not FaultPlan(backend=BackendFaults(late=0.1)).harmless
    assert not FaultPlan(strike=(Strike(kind="clock.jumps", at=1),)).harmless


def test_random_plans_are_the_same_for_the_same_seed_and_reach_every_kind() -> None:
    drawn = [random_plan(seed) for seed in range(1000)]
    assert drawn == [random_plan(seed) for seed in range(1000)]
    assert len(set(drawn)) == 1000
    kinds = Counter(strike.kind for plan in drawn for strike in plan.strike)
    assert set(kinds) == set(STRIKES)
    shares = {
        f"{section}.{kind}"
        for plan in drawn
        for section in ("environment", "backend", "consumer")
        for kind, share in getattr(plan, section).shares().items()
        if share
    }
    assert shares | set(kinds) == set(KINDS)
    assert 300 < sum(plan.harmless for plan in drawn) < 700
    assert all(FaultPlan.parse(plan.toml()) == plan for plan in drawn)


def test_a_drawn_plan_shrinks_to_the_one_thing_that_matters() -> None:
    found = find(plans(), lambda plan: any(s.kind == "disk.torn" for s in plan.strike))
    assert found == FaultPlan(strike=(Strike(kind="disk.torn", at=0),))
    found = find(plans(), lambda plan: plan.backend.late > 0)
    assert found == FaultPlan(backend=BackendFaults(late=0.01))

"""The benchmark of environments: what is recorded is played, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollwave.benchmarks import worlds
from rollwave.envs.registry import resolve


def test_the_experts_episodes_are_recorded_over_all_splits() -> None:
    spec = resolve("maze-v1")
    episodes = worlds.record(spec, 6)
    assert {split for _, split, _ in episodes} == set(spec.splits)
    stepping, resetting, steps = worlds.play(spec, episodes)
    assert steps == sum(len(actions) for _, _, actions in episodes) > 0
    assert stepping > 0
    assert resetting > 0


@pytest.mark.parametrize(("bar", "code"), [(1.0, 0), (1e12, 1)])
def test_a_bar_decides_and_what_cannot_be_made_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bar: float,
    code: int,
) -> None:
    out = tmp_path / "worlds.json"
    monkeypatch.setattr(worlds, "BARS", {"maze-v1": bar})
    monkeypatch.setattr(worlds, "_PROCESSES", 1)
    monkeypatch.setattr(
        "sys.argv",
        ["worlds", "maze-v1", "reasoning-gym-v1?dataset=none", "--episodes=4", f"--out={out}"],
    )
    assert worlds.main() == code
    written = json.loads(out.read_text())
    assert written["met"] is (code == 0)
    assert written["environments"]["maze-v1"]["first"]["repeats"] == 1
    assert "'none'" in written["environments"]["reasoning-gym-v1?dataset=none"]["error"]
    assert "not measured" in capsys.readouterr().out

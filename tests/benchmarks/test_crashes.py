"""The crash benchmark: its bookkeeping, and one small run of the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollwave.actors.config import load_config
from rollwave.benchmarks import crashes
from rollwave.benchmarks.audit import Audit
from rollwave.benchmarks.crashes import CAMPAIGN, Result, crash_once, stage_of
from rollwave.cli.output import Output

FILES = [
    ("start", "run.json"),
    ("base model", "models/base/config.json"),
    ("experts", "waves/wave-0000.parquet"),
    ("clone", "models/policy-0000/training.json"),
    ("evaluate", "evaluations/dev/waves/wave-0000.parquet"),
    ("evaluate", "evaluations/test/waves/wave-0000.parquet"),
    ("explore", "waves/wave-0001.parquet"),
    ("evolution step", "models/policy-0001/training.json"),
    ("evaluate", "evaluations/dev/waves/wave-0001.parquet"),
    ("evaluate", "evaluations/test/waves/wave-0001.parquet"),
    ("control step", "models/control-0001/training.json"),
    ("evaluate", "evaluations/dev/waves/wave-0002.parquet"),
    ("evaluate", "evaluations/test/waves/wave-0002.parquet"),
    ("report", "report.json"),
    ("figure", "figures/success.png"),
]


def test_the_stage_is_the_first_that_is_not_finished(tmp_path: Path) -> None:
    for stage, name in FILES:
        assert stage_of(tmp_path, waves=1) == stage
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert stage_of(tmp_path, waves=1) == "end"


def test_the_campaign_under_test_has_every_stage(tmp_path: Path) -> None:
    path = tmp_path / "campaign.toml"
    path.write_text(CAMPAIGN.format(seed=1, backend="transformers", steps=4, tasks=5, dev=2))
    config = load_config(path)
    assert (config.stop.waves, config.control.enabled, config.experts.tasks) == (2, True, 40)
    for training in (config.cloning, config.learner.training):
        assert 0 < training.checkpoint_every <= 4


class Acted(crashes.Campaign):
    """A campaign whose runs end as told."""

    def __init__(self, run: Path, *complaints: str | None) -> None:
        super().__init__(run / "c.toml", run)
        self.complaints = list(complaints)

    def go(self, seconds: float) -> str | None:
        return self.complaints.pop(0)


def crash(campaign: Acted, moments: list[float | None], result: Result) -> list[bool]:
    audit = Audit()
    return [crash_once(campaign, moment, audit, result, {}) for moment in moments]


def test_only_campaigns_that_were_killed_count_and_a_hang_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashes, "outcome", lambda run: {})
    monkeypatch.setattr(crashes, "differing", lambda a, b: [])
    result = Result()
    assert crash(Acted(tmp_path, ""), [1.0], result) == [True]
    assert (result.campaigns, result.kills.total()) == (0, 0)
    assert crash(Acted(tmp_path, None, None, ""), [1.0, 2.0, None], result) == [False, False, True]
    assert (result.campaigns, result.equal, result.kills) == (1, 1, {"start": 2})
    assert result.clean
    assert crash(Acted(tmp_path, None), [None], result) == [True]
    assert crash(Acted(tmp_path, "rollwave: bad"), [1.0], result) == [True]
    assert result.failed == ["it hung for 900 s in: start", "rollwave: bad"]
    assert not result.clean


@pytest.mark.parametrize("name", ["lost", "doubled", "changed", "differing", "failed"])
def test_anything_bad_at_all_is_not_clean(name: str) -> None:
    result = Result()
    assert result.clean
    getattr(result, name).append("something")
    assert not result.clean
    assert not Result(campaigns=2, equal=1).clean


def test_what_was_seen_of_each_campaign_is_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result()
    for _ in range(2):
        result.take(Audit(lost=["a"], doubled=[], changed=["b"], in_flight=3, resumed=2))
    assert (result.lost, result.changed, result.in_flight) == (["a", "a"], ["b", "b"], 6)
    crashes.show(result, 12.0, Output())
    shown = capsys.readouterr().out
    assert "lost: a" in shown
    assert "changed: b" in shown


@pytest.mark.slow
@pytest.mark.learn
def test_a_real_campaign_survives_three_kills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
    out = tmp_path / "crashes"
    words = ["--kills", "3", "--seed", "2", "--out", str(out)]
    small = ["--tasks", "6", "--dev", "3", "--steps", "8"]
    assert crashes.main([*words, *small]) == 0, capsys.readouterr().out
    figures: dict[str, Any] = json.loads((out / "crashes.json").read_text())
    assert figures["clean"]
    assert sum(figures["kills"].values()) == 3
    assert figures["campaigns"] == figures["equal"] >= 1
    assert figures["records"] > 0

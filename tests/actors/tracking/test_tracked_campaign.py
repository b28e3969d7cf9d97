"""A campaign that breaks off and goes on leaves the metrics of one that did not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import parse_config
from rollwave.actors.lasting import lasting
from rollwave.actors.monitor import Snapshot
from rollwave.actors.tracking.jsonl import MetricsFile
from rollwave.engine.errors import LearnerError

pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
pytestmark = pytest.mark.learn

TRAINING = {"max_steps": 5, "batch": 4, "lr": 0.01, "checkpoint_every": 2}
DOCUMENT: dict[str, Any] = {
    "run": {"seed": 3, "concurrency": 32},
    "environment": {"id": "maze-grid-v1?size=3&style=terse", "turn_limit": 6},
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 1, "context": 96}},
    "inference": {"backend": "transformers", "batch": 16},
    "experts": {"tasks": 6},
    "cloning": TRAINING,
    "rollout": {"tasks": 6, "attempts": 2, "max_tokens": 2},
    "learner": {"thresholds": {"*": -1.0}, "training": TRAINING},
    "evaluate": {"dev_tasks": 4, "test_tasks": 0},
    "stop": {"waves": 1},
    "control": {"enabled": True},
}


LEARNED = {
    f"learner/{name}"
    for name in (
        *("reward_mean", "reward_std", "success_rate", "staleness_mean"),
        *("logprob_mismatch", "mismatch_k3", "entropy"),
    )
}


def run(out: Path, watch: Any = None) -> None:
    trio.run(run_campaign, parse_config(DOCUMENT), out, watch)


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    left_out = {"learner/seconds", "learner/resumed"}
    return {name: value for name, value in row["metrics"].items() if name not in left_out}


def test_the_metrics_of_a_broken_campaign_are_those_of_a_whole_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole)
    steps = lines(whole, "step")
    assert [(s["stage"], s["step"]) for s in steps] == [
        (stage, step)
        for stage in ("policy-0000", "policy-0001", "control-0001")
        for step in range(1, 6)
    ]
    assert [s["global_step"] for s in steps] == list(range(1, 16))
    assert all(s["metrics"]["loss"] > 0 for s in steps)
    rows = lines(whole, "row")
    assert [(r["arm"], r["wave"], r["global_step"]) for r in rows] == [
        ("evolution", 0, 5),
        ("evolution", 1, 10),
        ("control", 1, 15),
    ]
    assert rows[1]["metrics"]["wave/episodes"] == 12
    assert {"dev/success_rate", "learner/loss", *LEARNED} <= set(rows[1]["metrics"])
    # What selection leaves out is told, too: of all that was explored each is kept or counted.
    left_out = sum(n for name, n in rows[1]["metrics"].items() if name.startswith("dropped/"))
    assert left_out + rows[1]["metrics"]["learner/new"] == 12
    assert steps[5]["metrics"].keys() == {"loss", "grad_norm", "lr", "entropy", "loss_tokens"}

    def breaking(snapshot: Snapshot) -> None:
        if snapshot.stage.startswith("train policy-0001: step 5 of"):
            raise RuntimeError("the device is gone")

    with pytest.raises(LearnerError, match="the device is gone"):
        run(broken, breaking)
    assert len(lines(broken, "step")) == 10  # the fifth was taken down, but is in no checkpoint
    run(broken)
    assert lines(broken, "step") == steps
    for after, before in zip(lines(broken, "row"), rows, strict=True):
        # Log-probs at sampling time depend on what else was in the batch, in their last bits.
        assert timeless(after) == pytest.approx(timeless(before), abs=1e-6)
        assert after | {"metrics": {}} == before | {"metrics": {}}
    written = (broken / "metrics.jsonl").read_bytes()
    run(broken)  # it has ended: nothing new is told
    assert (broken / "metrics.jsonl").read_bytes() == written


def test_a_tracker_without_room_does_not_stop_a_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_self: MetricsFile, _record: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsFile, "_append", full)
    monkeypatch.setitem(DOCUMENT, "control", {"enabled": False})
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "run")
    assert (tmp_path / "run" / "report.json").is_file()
    warnings = [r.getMessage() for r in caplog.records if "MetricsFile" in r.getMessage()]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


def test_who_is_told_may_change_when_a_campaign_goes_on() -> None:
    one = parse_config({**DOCUMENT, "track": {"wandb": True, "name": "x"}})
    assert lasting(one) == lasting(parse_config(DOCUMENT))

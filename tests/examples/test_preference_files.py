"""The campaign files of cloning, rejection, AgentEvol, DPO and ETO, each run in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import CampaignConfig, load_config
from rollwave.actors.report import CampaignResult
from rollwave.engine.store import read_wave

pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
pytestmark = pytest.mark.learn

FOLDER = Path(__file__).parents[2] / "examples"
SMALL = (
    "run.concurrency=32",
    "environment.id='maze-grid-v1?size=3&style=terse'",
    "environment.turn_limit=6",
    "model.tiny.width=32",
    "model.tiny.layers=1",
    "model.tiny.heads=1",
    "model.tiny.context=96",
    "inference.backend='transformers'",
    "inference.batch=32",
    "cloning.max_steps=60",
    "cloning.batch=8",
    "cloning.lr=0.01",
    "rollout.tasks=12",
    "learner.training.batch=4",
    "evaluate.dev_tasks=4",
    "evaluate.test_tasks=0",
    "stop.rollback_errors=1000.0",
)
EXPERTS = ("experts.tasks=12",)
STEPS = ("learner.training.max_steps=3",)
FILES = {
    "bc": EXPERTS,
    "rft": (*EXPERTS, *STEPS, "rollout.attempts=2", "learner.thresholds={'*'=-1.0}"),
    "agentevol": (*EXPERTS, *STEPS, "rollout.attempts=2", "learner.thresholds={'*'=-1.0}"),
    "dpo": (*EXPERTS, *STEPS),
    "eto": (*EXPERTS, *STEPS, "learner.min_pairs=1"),
    "eto_selfplay": (
        *STEPS,
        "rollout.attempts=2",
        "learner.min_pairs=1",
        "learner.opening_training.max_steps=3",
        "learner.thresholds={'*'=-1.0}",
    ),
}
WAVES = {"bc": 0, "rft": 1, "agentevol": 3, "dpo": 2, "eto": 1, "eto_selfplay": 1}
"""Evolution steps that are certain; more where a small policy happens to earn pairs."""


def play(config: CampaignConfig, out: Path) -> CampaignResult:
    return trio.run(run_campaign, config, out, None)


@pytest.mark.parametrize("name", list(FILES))
def test_it_runs_from_its_file_to_a_table(name: str, tmp_path: Path) -> None:
    config = load_config(FOLDER / f"{name}.toml", (*SMALL, *FILES[name]))
    result = play(config, tmp_path / "run")
    assert len(result.rows) > WAVES[name]
    for row in result.rows[1:]:
        record = json.loads((Path(row.model) / "training.json").read_text())
        wanted = {"agentevol": "agent_evol", "eto_selfplay": "eto"}.get(name, name)
        opening = name == "eto_selfplay" and row.wave == 1
        assert record["algorithm"] == ("rft" if opening else wanted)
        assert record["metrics"]["logprob_mismatch"] < 1e-3
        if wanted in ("dpo", "eto") and not opening:
            assert record["metrics"]["pairs"] == record["kept"] > 0


@pytest.mark.parametrize("contrast", ["step", "mixture"])
def test_eto_by_turns_explores_behind_the_experts_own_turns(contrast: str, tmp_path: Path) -> None:
    options = (*FILES["eto"], f"learner.contrast='{contrast}'", "stop.waves=1")
    result = play(load_config(FOLDER / "eto.toml", (*SMALL, *options)), tmp_path / "run")
    assert len(result.rows) == 2
    record = json.loads((Path(result.rows[1].model) / "training.json").read_text())
    assert record["kept"] > 0
    assert "bad_branch" not in record["dropped"]
    assert "other_start" not in record["dropped"]
    played = [
        t
        for path in sorted((tmp_path / "run" / "waves").glob("wave-*.parquet"))
        for t in read_wave(path).trajectories
        if t.policy != "expert"
    ]
    attempts = {t.attempt for t in played}
    assert {1, 2} <= attempts
    assert (0 in attempts) == (contrast == "mixture")
    for t in played:
        # What the expert wrote was not sampled.
        assert all(turn.start == turn.end for turn in t.turns[: max(0, t.attempt - 1)])

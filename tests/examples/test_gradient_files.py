"""The campaign files of GRPO, PPO and ScalingInter, each run in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import load_config
from rollwave.actors.report import CampaignResult
from rollwave.engine.store import read_wave
from rollwave.engine.trajectory import Trajectory

pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
pytestmark = pytest.mark.learn

FOLDER = Path(__file__).parents[2] / "examples"
SMALL = (
    "run.concurrency=32",
    "environment.id='maze-grid-v1?size=3&style=terse'",
    "model.tiny.width=32",
    "model.tiny.layers=1",
    "model.tiny.heads=1",
    "model.tiny.context=96",
    "inference.backend='transformers'",
    "inference.batch=32",
    "experts.tasks=12",
    "cloning.max_steps=25",
    "cloning.batch=8",
    "cloning.lr=0.01",
    "rollout.tasks=12",
    "rollout.batch=6",
    "rollout.attempts=4",
    "learner.training.batch=8",
    "evaluate.dev_tasks=4",
    "evaluate.test_tasks=0",
    "stop.rollback_errors=1000.0",
    "stop.waves=2",
)
TURNS = "environment.turn_limit=6"
FILES = {
    "grpo": ("grpo", TURNS),
    "ppo": ("ppo", TURNS, "learner.critic_warmup=2"),
    "scaling_inter": ("grpo", "rollout.horizon=[2, 5]", "rollout.horizon_waves=1"),
}


def play(name: str, out: Path, *options: str) -> CampaignResult:
    config = load_config(FOLDER / f"{name}.toml", (*SMALL, *FILES[name][1:], *options))
    return trio.run(run_campaign, config, out, None)


def explored(out: Path) -> list[Trajectory]:
    return [
        t
        for path in sorted((out / "waves").glob("wave-*.parquet"))
        for t in read_wave(path).trajectories
        if t.policy != "expert"
    ]


@pytest.mark.parametrize("name", list(FILES))
def test_it_runs_from_its_file_to_a_table(name: str, tmp_path: Path) -> None:
    result = play(name, tmp_path / "run")
    assert len(result.rows) == 3, result.stopped
    for row in result.rows[1:]:
        record = json.loads((Path(row.model) / "training.json").read_text())
        assert record["algorithm"] == FILES[name][0]
        metrics = record["metrics"]
        assert metrics["logprob_mismatch"] < 1e-4
        assert metrics["staleness_mean"] == 0
        assert metrics["grad_norm"] > 0
        assert (Path(row.model) / "critic").is_dir() == (name == "ppo")
    played = explored(tmp_path / "run")
    if name == "scaling_inter":
        longest = [max(len(t.turns) for t in played if t.versions[0] == v) for v in (0, 1)]
        assert longest == [2, 5]


def test_trajectories_of_the_policy_before_are_learned_from_where_they_may_be(
    tmp_path: Path,
) -> None:
    result = play("grpo", tmp_path / "run", "run.max_staleness=1")
    assert len(result.rows) == 3, result.stopped
    for row in result.rows[1:]:
        record = json.loads((Path(row.model) / "training.json").read_text())
        assert record["evolution"]["max_staleness"] == 1
        assert "stale" not in record["dropped"]
        assert 0 <= record["metrics"]["staleness_mean"] <= 1

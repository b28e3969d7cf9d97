"""A wave in which nothing succeeds ends a campaign well: with the policies it has, and a reason."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the learn extra is not installed")
pytest.importorskip("transformers", reason="the learn extra is not installed")

from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import parse_config

pytestmark = pytest.mark.learn

HOPELESS = {
    "environment": {"id": "maze-grid-v1?size=5&style=terse", "turn_limit": 1},
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 1}},
    "inference": {"backend": "transformers"},
    "experts": {"tasks": 2},
    "cloning": {"max_steps": 1},
    "rollout": {"first": 2, "tasks": 2, "attempts": 1},
    "learner": {"training": {"max_steps": 1}},
    "evaluate": {"dev_tasks": 2, "test_tasks": 0},
    "stop": {"waves": 3},
    "control": {"enabled": True},
}


async def test_it_ends_with_the_cloned_policy_and_says_why(tmp_path) -> None:
    config = parse_config(HOPELESS)
    result = await run_campaign(config, tmp_path)
    assert [(row.arm, row.wave) for row in result.rows] == [("evolution", 0)]
    assert result.best == 0
    assert "wave 1 has no usable trajectory" in result.stopped
    assert "below_threshold" in result.stopped
    # The same command finds everything done and says the same.
    assert await run_campaign(config, tmp_path) == result

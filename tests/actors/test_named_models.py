"""A directory that is not there is told before there is a run that would keep its path."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.actors.named_models import ROLES, require_named
from rollwave.engine.errors import ConfigError


def config(learner: dict, **sections: dict) -> CampaignConfig:
    base = {
        "environment": {"id": "maze-grid-v1?size=3&style=terse"},
        "model": {"tiny": {"width": 32, "layers": 1, "heads": 1}},
        "learner": learner,
    }
    return parse_config(base | sections)


@pytest.mark.parametrize("algorithm", ["dpo", "eto"])
def test_a_reference_is_a_role_or_a_model_directory(tmp_path: Path, algorithm: str) -> None:
    for role in ROLES:
        require_named(config({"algorithm": algorithm, "reference": role}))
    named = config({"algorithm": algorithm, "reference": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"learner\.reference = .* is no model .*start, base_bc"):
        require_named(named)
    (tmp_path / "config.json").write_text("{}")
    require_named(named)


@pytest.mark.parametrize(
    ("key", "learner"),
    [
        ("cloning", "agent_evol"),
        ("learner.training", "agent_evol"),
        ("learner.training", "grpo"),
        ("learner.opening_training", "eto"),
    ],
)
def test_adapters_are_where_they_are_said_to_be(tmp_path: Path, key: str, learner: str) -> None:
    with_adapters = {"lora": {"adapter": str(tmp_path)}}
    first, _, last = key.partition(".")
    if last:
        opening = {"opening": "rejection"} if last == "opening_training" else {}
        named = config({"algorithm": learner, last: with_adapters, **opening})
    else:
        named = config({"algorithm": learner}, **{first: with_adapters})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with pytest.raises(ConfigError, match=rf"{key}\.lora\.adapter = .*it has no {name}"):
            require_named(named)
        (tmp_path / name).write_bytes(b"")
    require_named(named)


def test_a_campaign_with_a_wrong_path_leaves_no_run_behind(tmp_path: Path) -> None:
    """It once cloned, explored a wave, and kept the wrong path in its settings."""
    wrong = config({"algorithm": "eto", "reference": "/nowhere"})
    with pytest.raises(ConfigError, match="/nowhere"):
        trio.run(run_campaign, wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()

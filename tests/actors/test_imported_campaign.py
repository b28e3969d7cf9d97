"""Campaigns whose experts come from files: cloned, resumed, explored, contrasted, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.actors.expert_files import RECORD
from rollwave.actors.lasting import lasting, require_same
from rollwave.actors.report import CampaignResult
from rollwave.engine.errors import BadDataFile, ConfigError
from rollwave.engine.store import Store
from rollwave.engine.trajectory import Outcome

pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
pytestmark = pytest.mark.learn

GRID = "maze-grid-v1?size=3&style=terse"
DOCUMENT: dict[str, Any] = {
    "run": {"seed": 3, "concurrency": 32},
    "environment": {"id": GRID, "turn_limit": 6},
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 1, "context": 96}},
    "inference": {"backend": "transformers", "batch": 16},
    "cloning": {"max_steps": 4, "batch": 4, "lr": 0.01},
    "rollout": {"tasks": 4, "attempts": 1, "max_tokens": 2},
    "learner": {"training": {"max_steps": 2, "batch": 4}},
    "evaluate": {"dev_tasks": 2, "test_tasks": 0},
    "stop": {"waves": 1},
}

ExpertFile = Callable[..., str]


def config(path: str, **sections: Any) -> CampaignConfig:
    merged = {k: {**DOCUMENT.get(k, {}), **v} for k, v in sections.items()}
    experts = {"path": path, **merged.pop("experts", {})}
    return parse_config({**DOCUMENT, **merged, "experts": experts})


def run(settings: CampaignConfig, out: Path, watch: Any = None) -> CampaignResult:
    return trio.run(run_campaign, settings, out, watch)


def test_a_file_is_cloned_and_what_was_left_out_is_in_the_table(
    expert_file: ExpertFile, tmp_path: Path
) -> None:
    path = expert_file("experts.json", GRID, [1, 2, 3, 4000])
    settings, out = config(path, stop={"waves": 0}), tmp_path / "run"
    result = run(settings, out)
    (row,) = result.rows
    assert (row.kept, row.dropped) == (3, {"evaluation": 1})
    with Store.open(out, exclusive=False) as store:
        assert [t.task_id for t in store.read(0).trajectories] == [
            "maze-grid_1",
            "maze-grid_2",
            "maze-grid_3",
        ]
    record = json.loads((out / RECORD).read_text())
    assert (record["read"], record["kept"], record["assumed"]) == (4, 3, {"reward": 4})
    # Read once: the same command finds all of it done, with the file or without it.
    Path(path).unlink()
    assert run(settings, out) == result


def test_a_file_that_changed_under_a_run_is_noticed(
    expert_file: ExpertFile, tmp_path: Path
) -> None:
    path = expert_file("experts.json", GRID, [1, 2])
    settings, out = config(path, stop={"waves": 0}), tmp_path / "run"
    run(settings, out)
    expert_file("experts.json", GRID, [1, 2, 3])
    with pytest.raises(ConfigError, match=r"experts\.json has changed since .*another --out"):
        run(settings, out)
    other = config(expert_file("other.json", GRID, [1]), stop={"waves": 0})
    with pytest.raises(ConfigError, match=r"holds a run with experts\.path"):
        run(other, out)


def test_a_wrong_path_leaves_no_run_behind(expert_file: ExpertFile, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(BadDataFile, match=r"cannot read .*nowhere\.json"):
        run(config(str(tmp_path / "nowhere.json")), out)
    assert not out.exists()
    # So the path can be put right under the same --out.
    right = config(expert_file("experts.json", GRID, [1]), stop={"waves": 0})
    assert len(run(right, out).rows) == 1


def test_a_crash_between_reading_and_sealing_reads_again(
    expert_file: ExpertFile, tmp_path: Path
) -> None:
    path = expert_file("experts.json", GRID, [1, 2])
    settings, out = config(path, stop={"waves": 0}), tmp_path / "run"
    whole = run(settings, tmp_path / "whole")
    with Store.open(out, settings=lasting(settings)):
        (out / RECORD).write_text('{"sources": []')  # torn, and of nothing that was sealed
    again = run(settings, out)
    assert [(r.kept, r.dev) for r in again.rows] == [(r.kept, r.dev) for r in whole.rows]


def test_the_tasks_of_the_file_can_be_explored(expert_file: ExpertFile, tmp_path: Path) -> None:
    settings = config(
        expert_file("experts.json", GRID, [11, 7]),
        learner={"scope": "expert_tasks", "thresholds": {"*": -2.0}},
        control={"enabled": True},
    )
    result = run(settings, tmp_path / "run")
    with Store.open(tmp_path / "run", exclusive=False) as store:
        assert {t.task_id for t in store.read(1).trajectories} == {"maze-grid_11", "maze-grid_7"}
    assert len(result.arm("control")) == 1
    few = config(
        expert_file("few.json", GRID, [1]),
        rollout={"batch": 2},
        learner={"scope": "expert_tasks"},
    )
    with pytest.raises(ConfigError, match=r"name 1 tasks .*too few for rollout\.batch = 2"):
        run(few, tmp_path / "few")


@pytest.mark.parametrize("contrast", ["trajectory", "step", "mixture"])
def test_eto_contrasts_with_imported_experts_without_faults(
    expert_file: ExpertFile, tmp_path: Path, contrast: str
) -> None:
    """What the file says was seen is not what this environment shows: it is played again."""
    path = expert_file("experts.json", GRID, [1, 2, 3])
    items = json.loads(Path(path).read_text())
    for item in items:
        item["conversations"][0]["value"] = "goal 1 1 pos 0 0"
    items.append({**items[0], "item_id": "maze-grid_8"})  # its actions solve another maze
    Path(path).write_text(json.dumps(items))
    learner = {
        "algorithm": "eto",
        "contrast": contrast,
        "min_pairs": 1,
        "training": {"max_steps": 1},
    }
    settings = config(path, learner=learner, rollout={"temperature": 0.0})
    result = run(settings, tmp_path / "run")
    assert result.rows[0].dropped.get("not_replayed", 0) == 1
    with Store.open(tmp_path / "run", exclusive=False) as store:
        experts = {t.task_id: t for t in store.read(0).trajectories}
        explored = [t for n in (1, 2) if store.sealed(n) for t in store.read(n).trajectories]
    assert explored
    assert Outcome.FAULT not in {t.outcome for t in explored}
    assert {t.turns[0].observation for t in explored} == {
        t.turns[0].observation for t in experts.values()
    }
    dropped = result.rows[-1].dropped
    assert "other_start" not in dropped
    assert "bad_branch" not in dropped


def test_runs_of_before_go_on(expert_file: ExpertFile, tmp_path: Path) -> None:
    """They say nothing of files, and had none."""
    settings = parse_config({**DOCUMENT, "experts": {"tasks": 2}})
    older = {
        k: v for k, v in lasting(settings).items() if k not in {"experts.path", "experts.replay"}
    }
    with Store.open(tmp_path / "run", settings=older) as store:
        require_same(store, lasting(settings))
        with pytest.raises(ConfigError, match=r"experts\.path = None"):
            require_same(store, lasting(config("a.json", experts={"tasks": 2})))

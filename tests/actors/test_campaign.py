"""A whole campaign, small enough for a test: every stage, the control, resume, and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.actors.lasting import lasting
from rollwave.actors.learner import LearnerActor
from rollwave.actors.monitor import Snapshot
from rollwave.actors.protocol import PolicyUpdated, UpdatePolicy
from rollwave.actors.report import CampaignResult, read_training
from rollwave.engine.errors import (
    CheckpointCorrupt,
    ConfigError,
    LearnerError,
    RunLocked,
    TooManyFaults,
)
from rollwave.engine.store import Store
from rollwave.engine.trajectory import Outcome
from rollwave.envs.base import EnvSpec
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Flaky, Trouble, wrap

pytest.importorskip("transformers", reason="a campaign needs torch and transformers")
pytestmark = pytest.mark.learn

DOCUMENT: dict[str, Any] = {
    "run": {"seed": 3, "concurrency": 32},
    "environment": {"id": "maze-grid-v1?size=3&style=terse", "turn_limit": 6},
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 1, "context": 96}},
    "inference": {"backend": "transformers", "batch": 16},
    "experts": {"tasks": 6},
    "cloning": {"max_steps": 6, "batch": 4, "lr": 0.01},
    "rollout": {"tasks": 8, "attempts": 2, "max_tokens": 2},
    "learner": {"choose": "shortest", "training": {"max_steps": 5, "batch": 4, "lr": 0.01}},
    "evaluate": {"dev_tasks": 6, "test_tasks": 7},
    "stop": {"waves": 2, "patience": 5, "rollback_errors": 1000.0},
    "control": {"enabled": True},
}


def config(**sections: dict[str, Any]) -> CampaignConfig:
    return parse_config(
        {**DOCUMENT, **{k: {**DOCUMENT.get(k, {}), **v} for k, v in sections.items()}}
    )


def run(out: Path, settings: CampaignConfig, watch: Any = None) -> CampaignResult:
    return trio.run(run_campaign, settings, out, watch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CampaignResult, list[str]]:
    """A campaign that ran without interruption: its directory, result, and what was watched."""
    out = tmp_path_factory.mktemp("campaign") / "run"
    stages: list[str] = []
    result = run(out, config(), lambda snapshot: stages.append(snapshot.stage))
    return out, result, stages


def figures(result: CampaignResult) -> list[tuple[object, ...]]:
    """The table, without paths."""
    return [
        (r.arm, r.wave, r.policy_version, r.steps, r.explored, r.kept, r.dev, r.test)
        for r in result.rows
    ]


def test_the_table_has_a_row_for_each_policy_of_both_arms(
    whole: tuple[Path, CampaignResult, list[str]],
) -> None:
    out, result, stages = whole
    evolution, control = result.arm("evolution"), result.arm("control")
    assert [(r.wave, r.policy_version, r.steps, r.explored) for r in evolution] == [
        (0, 0, 6, 0),
        (1, 1, 11, 16),
        (2, 2, 16, 32),
    ]
    # The control has spent as many steps at the same wave, on the same base.
    assert [(r.wave, r.steps) for r in control] == [(1, 11), (2, 16)]
    assert [r.policy_version for r in control] == [3, 4]
    assert result.stopped == "all 2 waves were run"
    assert result.best in {0, 1, 2}
    for row in result.rows:
        assert (row.dev.episodes, row.test.episodes if row.test else 0) == (6, 7)
        assert row.dev.faults == {}
        assert (Path(row.model) / "config.json").is_file()
        trained = read_training(row.model)
        assert trained.steps > 0
        # The cloned policy and the control have their training in the table, too.
        told = (trained.kept, trained.metrics, trained.dropped)
        assert (row.kept, row.metrics, row.dropped) == told
    for stage in ("experts", "wave 2: explore", "publish policy-0001", "evaluate policy 4 on test"):
        assert stage in stages
    assert any(stage.startswith("train policy-0002: step 5 of 5") for stage in stages)
    assert (out / "report.json").is_file()


def test_what_is_evaluated_is_never_learned_from(
    whole: tuple[Path, CampaignResult, list[str]],
) -> None:
    out, _, _ = whole
    with Store.open(out) as store:
        learned = {t.task_id for n in (0, 1, 2) for t in store.read(n).trajectories}
        waves = store.waves()
    assert [info.number for info in waves] == [0, 1, 2]
    assert [info.trajectories for info in waves] == [6, 16, 16]
    evaluated: dict[str, set[str]] = {}
    for part in ("dev", "test"):
        with Store.open(out / "evaluations" / part) as store:
            assert [info.number for info in store.waves()] == [0, 1, 2, 3, 4]
            evaluated[part] = {t.task_id for t in store.read(0).trajectories}
            for number in range(1, 5):
                assert {t.task_id for t in store.read(number).trajectories} == evaluated[part]
                assert {t.versions for t in store.read(number).trajectories} == {(number, number)}
    assert not evaluated["dev"] & evaluated["test"]
    assert not learned & (evaluated["dev"] | evaluated["test"])


def test_waves_are_explored_by_the_policy_before_and_evaluated_greedily(
    whole: tuple[Path, CampaignResult, list[str]],
) -> None:
    out, result, _ = whole
    turns = 0
    with Store.open(out) as store:
        for wave in (1, 2):
            explored = store.read(wave)
            assert explored.policy_version == wave - 1
            assert {t.versions for t in explored.trajectories} == {(wave - 1, wave - 1)}
            assert {t.temperature for t in explored.trajectories} == {1.0}
            turns += sum(len(t.turns) for t in explored.trajectories)
    for part in ("dev", "test"):
        with Store.open(out / "evaluations" / part) as store:
            for info in store.waves():
                evaluated = store.read(info.number).trajectories
                assert {t.temperature for t in evaluated} == {0.0}
                turns += sum(len(t.turns) for t in evaluated)
    assert result.turns == turns


@pytest.mark.parametrize(
    "lost",
    [
        ["report.json"],
        ["models/control-0002", "evaluations/test/waves/wave-0004.parquet"],
        [
            "models/policy-0002",
            "models/control-0001",
            "models/control-0002",
            "waves/wave-0002.parquet",
            "evaluations/dev/waves/wave-0002.parquet",
            "evaluations/dev/waves/wave-0003.parquet",
            "evaluations/dev/waves/wave-0004.parquet",
            "evaluations/test/waves/wave-0002.parquet",
            "evaluations/test/waves/wave-0003.parquet",
            "evaluations/test/waves/wave-0004.parquet",
        ],
    ],
)
def test_a_campaign_that_was_killed_goes_on_to_the_same_table(
    whole: tuple[Path, CampaignResult, list[str]], tmp_path: Path, lost: list[str]
) -> None:
    out, result, _ = whole
    killed = tmp_path / "run"
    shutil.copytree(out, killed)
    for name in lost:
        path = killed / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run(killed, config())
    assert figures(again) == figures(result)
    assert (again.best, again.turns, again.stopped) == (result.best, result.turns, result.stopped)
    for name in lost:
        assert (killed / name).exists()


def hashes(out: Path) -> dict[str, str]:
    from rollwave.learners.training.checkpoint import hash_model

    return {path.name: hash_model(path) for path in sorted((out / "models").iterdir())}


@pytest.mark.parametrize("stage", ["policy-0000", "policy-0002", "control-0001"])
def test_a_step_that_broke_off_resumes_in_its_middle_to_bit_equal_weights(
    whole: tuple[Path, CampaignResult, list[str]], tmp_path: Path, stage: str
) -> None:
    """Cloning, an evolution step, and the control. How often it saves may change meanwhile."""
    out, result, _ = whole
    saving = config(
        cloning={"checkpoint_every": 2},
        learner={"training": DOCUMENT["learner"]["training"] | {"checkpoint_every": 2}},
    )

    def breaking(snapshot: Snapshot) -> None:
        if snapshot.stage.startswith(f"train {stage}: step 5 of"):
            raise RuntimeError("the device is gone")

    with pytest.raises(LearnerError, match=rf"train {stage}: RuntimeError: the device is gone;"):
        run(tmp_path, saving, breaking)
    assert not (tmp_path / "models" / stage).exists()
    stages: list[str] = []
    again = run(tmp_path, config(), lambda snapshot: stages.append(snapshot.stage))
    steps = 6 if stage == "policy-0000" else 5
    assert f"train {stage}: resumed at step 4 of {steps}" in stages
    assert figures(again) == figures(result)
    assert hashes(tmp_path) == hashes(out)


def test_a_learner_that_dies_in_its_step_is_one_error_and_the_same_command_goes_on(
    whole: tuple[Path, CampaignResult, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result, _ = whole

    class Dying(LearnerActor):
        async def receive(self, message: UpdatePolicy) -> PolicyUpdated:  # type: ignore[override]
            if message.out.endswith("policy-0001"):
                raise MemoryError("a defect of the actor itself")
            return await super().receive(message)

    with monkeypatch.context() as patch:
        patch.setattr("rollwave.actors.campaign.LearnerActor", Dying)
        with pytest.raises(LearnerError, match=r"train policy-0001: the learner died .*goes on"):
            run(tmp_path, config())
    assert figures(run(tmp_path, config())) == figures(result)
    assert hashes(tmp_path) == hashes(out)


def test_what_a_crash_leaves_of_models_is_no_model_and_goes(
    whole: tuple[Path, CampaignResult, list[str]], tmp_path: Path
) -> None:
    """A base model cut off in its weights passed for whole, by its config alone."""
    out, result, _ = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    models = tmp_path / "models"
    shutil.rmtree(models / "base")
    (models / ".base.draft").mkdir()
    (models / ".base.draft" / "config.json").write_text("{}")
    (models / "policy-0001.training" / "checkpoint").mkdir(parents=True)
    assert figures(run(tmp_path, config())) == figures(result)
    assert hashes(tmp_path) == hashes(out)


def test_a_damaged_training_json_says_what_to_do(
    whole: tuple[Path, CampaignResult, list[str]], tmp_path: Path
) -> None:
    out, result, _ = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "models" / "policy-0001" / "training.json"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointCorrupt, match=r"policy-0001/training\.json: .*Delete the dir"):
        run(tmp_path, config())
    shutil.rmtree(file.parent)
    assert figures(run(tmp_path, config())) == figures(result)


def test_a_run_of_other_settings_is_not_gone_on_with(
    whole: tuple[Path, CampaignResult, list[str]],
) -> None:
    out, _, _ = whole
    with pytest.raises(ConfigError, match=r"cloning\.lr = '0\.01', not '0\.02'"):
        run(out, config(cloning={"lr": 0.02}))
    with pytest.raises(ConfigError, match=r"inference\.context = '0', not '64'"):
        run(out, config(inference={"context": 64}))
    with pytest.raises(ConfigError, match=r"inference\.backend = 'transformers', not 'auto'"):
        run(out, config(inference={"backend": "auto"}))
    # Also one that is gone: a threshold, say, and its section with it.
    out = out.parent / "thresholds"
    with Store.open(out, settings=lasting(config(learner={"thresholds": {"*": 0.5}}))):
        pass
    with pytest.raises(ConfigError, match=r"learner\.thresholds\.\* = '0\.5', which is not set"):
        run(out, config())


def test_how_fast_it_runs_and_when_it_gives_up_may_change(
    whole: tuple[Path, CampaignResult, list[str]],
) -> None:
    out, result, _ = whole
    seconds = dict.fromkeys(("wave_seconds", "step_seconds", "swap_seconds"), 1000.0)
    changed = {"concurrency": 4, "max_fault_share": 0.5, "shutdown_seconds": 5.0, **seconds}
    again = config(run=changed, inference={"batch": 8, "kv_cache_gib": 2.0})
    assert figures(run(out, again)) == figures(result)


def test_how_often_an_opening_is_saved_may_change() -> None:
    often = {"checkpoint_every": 3, "checkpoint_seconds": 5.0}
    eto = {"algorithm": "eto", "training": {"lr": 0.01}}
    plain, changed = (
        lasting(parse_config({**DOCUMENT, "learner": eto | {"opening_training": opening}}))
        for opening in ({}, often)
    )
    assert plain == changed
    assert "learner.opening_training.lr" in plain


def test_two_processes_cannot_write_to_one_campaign(
    whole: tuple[Path, CampaignResult, list[str]],
) -> None:
    out, _, _ = whole
    with Store.open(out), pytest.raises(RunLocked):
        run(out, config())


def broken(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make every session of the environment raise at that step."""

    def flaky(id_: str) -> EnvSpec:
        return wrap(resolve(id_), lambda env: Flaky(env, {at: Trouble.RAISE}))

    monkeypatch.setattr("rollwave.actors.embedding.resolve", flaky)


def test_too_many_faults_stop_the_campaign_before_anything_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(control={"enabled": False}, stop={"waves": 0})
    with monkeypatch.context() as patch:
        broken(patch, at=1)
        with pytest.raises(TooManyFaults, match=r"experts: \d of 6 episodes are faults.*injected"):
            run(tmp_path, settings)
    assert not list((tmp_path / "models").glob("policy-*"))
    with Store.open(tmp_path) as store:
        assert store.waves() == []
    # Mended, the same command plays them, and goes on.
    run(tmp_path, settings)
    with Store.open(tmp_path) as store:
        assert {t.outcome for t in store.read(0).trajectories} == {Outcome.SUCCESS}


def test_without_experts_or_control_it_evolves_from_the_base_alone(tmp_path: Path) -> None:
    settings = config(
        experts={"tasks": 0},
        control={"enabled": False},
        stop={"waves": 1},
        evaluate={"test_tasks": 0},
        learner={"thresholds": {"*": -1.0}, "training": {"max_steps": 2, "batch": 4}},
    )
    result = run(tmp_path, settings)
    assert [(r.arm, r.wave, r.kept > 0, r.test) for r in result.rows] == [
        ("evolution", 0, False, None),
        ("evolution", 1, True, None),
    ]
    assert not (tmp_path / "waves" / "wave-0000.parquet").exists()


def test_an_environment_without_a_vocabulary_cannot_have_a_tiny_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="closed vocabulary, and wordle-v1 has none"):
        run(tmp_path / "out", config(environment={"id": "wordle-v1"}))
    assert not (tmp_path / "out").exists()  # or the corrected file would be refused there

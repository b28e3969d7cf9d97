"""The TOML file of a campaign: whatever is wrong with it is one error that names the key."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.actors.config import CampaignConfig, load_config, parse_config
from rollwave.engine.errors import ConfigError
from rollwave.learners.settings import GrpoSettings, PpoSettings
from rollwave.learners.settings.policy_gradient import ImportanceSettings

MINIMAL = """
[environment]
id = "maze-grid-v1?style=terse"
[model]
path = "models/base"
"""


def load(tmp_path: Path, text: str, *overrides: str) -> CampaignConfig:
    path = tmp_path / "campaign.toml"
    path.write_text(text)
    return load_config(path, overrides)


def test_all_but_the_environment_and_the_model_has_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.environment.id == "maze-grid-v1?style=terse"
    assert config.model.path == "models/base"
    assert (config.run.max_fault_share, config.stop.waves, config.control.enabled) == (
        0.05,
        3,
        False,
    )
    assert config.evaluate.dev_split != config.evaluate.test_split


def test_every_section_is_read_with_its_types(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        environment = { id = "x-v1", turn_limit = 9 }
        model.tiny = { width = 32, layers = 1 }
        run = { seed = 5, turn_seconds = 10, threads = 2 }
        inference = { backend = "transformers", batch = 8 }
        experts = { tasks = 3, first = 2 }
        cloning = { lr = 1e-2, max_steps = 7, lora = { rank = 4 } }
        rollout = { attempts = 2, temperature = 0.5 }
        stop = { waves = 1 }
        control = { enabled = true }
        [learner]
        merge = "cumulative"
        thresholds = { "*" = 0.5 }
        training = { epochs = 2 }
        """,
    )
    assert config.model.tiny is not None
    assert (config.model.tiny.width, config.model.tiny.heads) == (32, 4)
    assert config.run.turn_seconds == 10.0
    assert config.cloning.lora is not None
    assert config.cloning.lora.rank == 4
    assert config.learner.thresholds == {"*": 0.5}
    assert config.learner.training.epochs == 2
    assert config.control.enabled


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[environment\n", "is not TOML: .*line 1"),
        ("", "missing required field `environment`"),
        ("[environment]\n", "missing required field `id` - at `$.environment`"),
        (MINIMAL + "[typo]\n", "unknown field `typo`"),
        (MINIMAL + "[run]\nconcurency = 3\n", "unknown field `concurency` - at `$.run`"),
        (MINIMAL + "[run]\nseed = 1.5\n", "got `float` - at `$.run.seed`"),
        (MINIMAL + "[run]\nseed = true\n", "got `bool` - at `$.run.seed`"),
        (MINIMAL + '[run]\nconcurrency = "many"\n', "got `str` - at `$.run.concurrency`"),
        (MINIMAL + '[inference]\nbackend = "tpu"\n', "'tpu' - at `$.inference.backend`"),
        (MINIMAL + "[cloning]\nrate = 1\n", "unknown field `rate` - at `$.cloning`"),
        (MINIMAL + "[cloning]\nlr = -1.0\n", "lr = -1.0"),
        (MINIMAL + "[learner]\nbeta = 0\n", "beta = 0.0"),
        (MINIMAL + "[learner.training]\nepochs = 0\n", "epochs = 0"),
        (
            MINIMAL + '[run]\nlearner_processes = 2\n[cloning]\ndevice = "cuda:1"\n',
            'cloning.device = "cuda:1" is one GPU',
        ),
        (MINIMAL + "[run]\nconcurrency = 0\n", "run.concurrency must be above 0, not 0"),
        (MINIMAL + "[run]\nturn_seconds = nan\n", "run.turn_seconds must be above 0, not nan"),
        (MINIMAL + "[run]\nwave_seconds = 0\n", "run.wave_seconds must be above 0, not 0"),
        (MINIMAL + "[run]\nstep_seconds = -1.0\n", "run.step_seconds must be above 0"),
        (MINIMAL + "[run]\nswap_seconds = nan\n", "run.swap_seconds must be above 0"),
        (MINIMAL + "[run]\nshutdown_seconds = 0\n", "run.shutdown_seconds must be above 0"),
        (MINIMAL + "[run]\nmax_fault_share = 1.5\n", "run.max_fault_share"),
        (MINIMAL + "[rollout]\nattempts = 0\n", "rollout.attempts must be above 0"),
        (MINIMAL + "[rollout]\ntemperature = -1.0\n", "rollout.temperature must be 0 or more"),
        (MINIMAL + "[rollout]\ntemperature = inf\n", "rollout.temperature must be 0 or more"),
        (MINIMAL + "[rollout]\nfirst = -3\n", "rollout.first must be 0 or more, not -3"),
        (MINIMAL + "[experts]\ntasks = -1\n", "experts.tasks must be 0 or more, not -1"),
        (MINIMAL + "[experts]\nfirst = -1\n", "experts.first must be 0 or more, not -1"),
        (MINIMAL + "[evaluate]\ntest_tasks = -2\n", "evaluate.test_tasks must be 0 or more"),
        (MINIMAL + "[evaluate]\nmax_tokens = -2\n", "evaluate.max_tokens must be 0 or more"),
        (MINIMAL + "[stop]\nwaves = -1\n", "stop.waves must be 0 or more, not -1"),
        (MINIMAL + "[stop]\npatience = 0\n", "stop.patience must be above 0, not 0"),
        (MINIMAL + "[inference]\ncontext = -1\n", "inference.context must be 0 or more"),
        (MINIMAL + "[model.tiny]\n", "model needs either path or a [model.tiny] section"),
        (MINIMAL.replace('path = "models/base"', ""), "model needs either path"),
        (
            MINIMAL.replace('path = "models/base"', "tiny = { heads = 0 }"),
            "model.tiny.heads must be above 0, not 0",
        ),
        (
            MINIMAL.replace('path = "models/base"', "tiny = { width = 32, heads = 3 }"),
            "model.tiny.width = 32 must be an even multiple of model.tiny.heads = 3",
        ),
        (MINIMAL + '[experts]\npath = ""\n', "experts.path is empty"),
        (
            MINIMAL + '[evaluate]\ndev_split = "train"\n',
            "evaluate.dev_split = 'train' is also trained on",
        ),
        (
            MINIMAL + '[rollout]\nsplit = "test"\n',
            "evaluate.test_split = 'test' is also trained on",
        ),
        (
            MINIMAL + '[evaluate]\ntest_split = "dev"\n',
            "evaluate.dev_split and test_split are both 'dev'",
        ),
        (
            MINIMAL + '[experts]\ntasks = 0\n[learner]\nscope = "expert_tasks"\n',
            "learner.scope = 'expert_tasks' needs experts.tasks above 0",
        ),
        (
            MINIMAL + "[experts]\ntasks = 0\n[control]\nenabled = true\n",
            "control.enabled needs experts.tasks above 0",
        ),
        (MINIMAL + "[experts]\nreplay = true\n", "experts.replay needs experts.path"),
        (MINIMAL + '[experts]\npath = ["a.json", ""]\n', "experts.path names a file or directory"),
        (MINIMAL + "[run]\nmax_staleness = -1\n", "run.max_staleness must be 0 or more"),
        (MINIMAL + "[run]\nmax_staleness = 1\n", "run.max_staleness above 0 needs an algorithm"),
        (MINIMAL + "[evaluate]\nevery = 0\n", "evaluate.every must be above 0, not 0"),
        (MINIMAL + "[rollout]\nbatch = 301\n", "rollout.batch = 301 is more than the 300 of"),
        (
            MINIMAL + '[rollout]\nbatch = 41\n[learner]\nscope = "expert_tasks"\n',
            "rollout.batch = 41 is more than the 40 of experts.tasks",
        ),
        (MINIMAL + "[rollout]\nhorizon = [4, 0]\n", "rollout.horizon must be turns above 0"),
        (MINIMAL + "[rollout]\nhorizon_waves = 0\n", "rollout.horizon_waves must be above 0"),
        (
            MINIMAL.replace("[model]", "turn_limit = 5\n[model]") + "[rollout]\nhorizon = [4]\n",
            "rollout.horizon and environment.turn_limit say the same twice",
        ),
        (MINIMAL + "[rollout]\nrounds = 0\n", "rollout.rounds must be above 0"),
        (MINIMAL + "[rollout]\nrounds = 2\n", "rollout.rounds above 1 needs rollout.batch"),
        (
            MINIMAL + "[rollout]\nrounds = 2\nbatch = 3\nattempts = 1\n",
            "rollout.rounds above 1 needs rollout.attempts of 2 or more",
        ),
        (
            MINIMAL + "[rollout]\nrounds = 2\nbatch = 3\n",
            "needs an algorithm that learns from the groups of the last wave",
        ),
        (
            MINIMAL + '[learner]\nalgorithm = "eto"\ncontrast = "step"\nscope = "all_tasks"\n',
            "learner.scope must be 'expert_tasks' where single turns are contrasted",
        ),
        (
            MINIMAL
            + '[rollout]\nattempts = 2\n[learner]\nalgorithm = "eto"\ncontrast = "mixture"\n',
            "rollout.attempts must be 1, not 2, where whole episodes and single turns",
        ),
        (MINIMAL + "[stop]\nsteps = -1\n", "stop.steps must be 0 or more"),
        (MINIMAL + "[stop]\nmin_entropy = 1.5\n", "stop.min_entropy is a share in [0, 1]"),
        (MINIMAL + "[stop]\nmax_format_errors = -1.0\n", "stop.max_format_errors is a share"),
        (MINIMAL + '[learner]\nalgorithm = "grop"\n', "'grop': it must be one of agent_evol, "),
        (MINIMAL + "[cloning]\nevaluate_every = 5\n", "cloning.evaluate_every must be 0"),
        (
            MINIMAL
            + '[learner]\nalgorithm = "eto"\n[learner.opening_training]\nevaluate_every = 5\n',
            "learner.opening_training.evaluate_every must be 0",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    text = str(caught.value)
    assert complaint in text or re.search(complaint, text)
    assert "\n" not in text


def test_files_of_experts_bring_all_that_they_hold_unless_it_is_said_how_many(
    tmp_path: Path,
) -> None:
    files = MINIMAL + '[experts]\npath = "a.json"\n'
    assert load(tmp_path, files).experts.tasks == 0
    assert load(tmp_path, files).experts.paths == ("a.json",)
    assert load(tmp_path, files + "tasks = 7\n").experts.tasks == 7
    overridden = load_config(tmp_path / "campaign.toml", ['experts.path=["a.json", "b"]'])
    assert overridden.experts.paths == ("a.json", "b")
    plain = load(tmp_path, MINIMAL).experts
    assert (plain.tasks, plain.paths) == (40, ())
    # Its own expert is not needed, so what needs experts has them.
    needing = '[learner]\nscope = "expert_tasks"\n[control]\nenabled = true\n'
    assert load(tmp_path, files + needing).control.enabled


def test_a_learner_takes_what_the_run_makes_unless_it_says_otherwise(tmp_path: Path) -> None:
    ahead = MINIMAL + "[run]\nmax_staleness = 2\n"
    followed = load(tmp_path, ahead + '[learner]\nalgorithm = "grpo"\n').learner
    assert isinstance(followed, GrpoSettings)
    assert followed.max_staleness == 2
    own = load(tmp_path, ahead + '[learner]\nalgorithm = "ppo"\nmax_staleness = 1\n').learner
    assert isinstance(own, PpoSettings)
    assert own.max_staleness == 1


def test_what_an_older_policy_sampled_is_weighted_unless_it_is_said_how(tmp_path: Path) -> None:
    def importance(staleness: int, more: str = "") -> ImportanceSettings:
        text = f'[run]\nmax_staleness = {staleness}\n[learner]\nalgorithm = "grpo"\n{more}'
        learner = load(tmp_path, MINIMAL + text).learner
        assert isinstance(learner, GrpoSettings)
        return learner.importance

    assert importance(0) == ImportanceSettings()
    assert importance(1) == ImportanceSettings(correction="token", cap=2.0)
    masked = importance(1, '[learner.importance]\nmask = "geometric"\n')
    assert masked == ImportanceSettings(mask="geometric")
    off = importance(1, '[learner.importance]\ncorrection = "none"\n')
    assert off == ImportanceSettings()


def test_eto_beside_experts_explores_greedily_and_once_unless_it_is_said_how(
    tmp_path: Path,
) -> None:
    def explored(more: str) -> tuple[float, int]:
        rollout = load(tmp_path, MINIMAL + more).rollout
        return rollout.temperature, rollout.attempts

    assert explored('[learner]\nalgorithm = "eto"\n') == (0.0, 1)
    assert explored('[rollout]\ntasks = 9\n[learner]\nalgorithm = "eto"\n') == (0.0, 1)
    warm = "[rollout]\ntemperature = 0.7\nattempts = 2\n"
    assert explored(warm + '[learner]\nalgorithm = "eto"\n') == (0.7, 2)
    alone = 'scope = "all_tasks"\nself_play = true\n'
    assert explored(f'[learner]\nalgorithm = "eto"\n{alone}') == (1.0, 6)
    assert explored("") == (1.0, 6)


def test_the_file_itself_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.toml"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot read .*latin\.toml"):
        load_config(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match=r"campaign\.toml: .*seed"):
        load(tmp_path, MINIMAL + "[run]\nseed = []\n")
    with pytest.raises(ConfigError, match=r"campaign\.toml: .*lr = -1"):
        load(tmp_path, MINIMAL + "[cloning]\nlr = -1.0\n")


def test_set_overrides_one_key_at_a_time(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MINIMAL,
        "run.seed=7",
        "run.out=runs/other place",
        'rollout.split="train"',
        "cloning.lr = 5e-4",
        "control.enabled=true",
        "learner.training.epochs=2",
        "learner.thresholds={'*' = 0.25}",
        "run.seed=8",
    )
    assert (config.run.seed, config.run.out) == (8, "runs/other place")
    assert config.cloning.lr == 5e-4
    assert config.control.enabled
    assert config.learner.training.epochs == 2
    assert config.learner.thresholds == {"*": 0.25}
    # What the file says otherwise stays.
    assert config.model.path == "models/base"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.seed", "--set takes section.key=value, not 'run.seed'"),
        ("=3", "--set takes section.key=value"),
        ("run..seed=3", "--set takes section.key=value"),
        ("run.seed=three", "got `str` - at `$.run.seed`"),
        ("run.sead=3", "unknown field `sead` - at `$.run`"),
        ("environment.id.x=3", "--set environment.id.x: id is a value, not a section"),
        ("nonsense=3", "unknown field `nonsense`"),
    ],
)
def test_an_override_that_cannot_be_is_named(tmp_path: Path, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL, override)
    assert complaint in str(caught.value)


def test_an_override_is_one_value_and_no_more_of_the_file(tmp_path: Path) -> None:
    # As TOML this would be two lines, and thus a second key.
    with pytest.raises(ConfigError, match="seed"):
        load(tmp_path, MINIMAL, "run.seed=1\nx = 2")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
sections = st.sampled_from(sorted(CampaignConfig.__struct_fields__))
keys = st.sampled_from(["tasks", "seed", "id", "tiny", "lr", "split", "waves", "enabled", "x"])


@given(st.dictionaries(sections, st.dictionaries(keys, values, max_size=3) | values))
def test_no_document_raises_anything_but_a_config_error(document: dict[str, Any]) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_config(document), CampaignConfig)


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_text(MINIMAL, "utf-8-sig")
    assert load_config(path) == load(tmp_path, MINIMAL)

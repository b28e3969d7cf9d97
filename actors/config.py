"""A campaign as a TOML file: typed, with every unknown key refused by name.

    [run] [environment] [model] [inference] [experts] [cloning] [rollout] [learner]
    [evaluate] [stop] [control]

`[cloning]` and `[learner]` are the learners' own settings (`learners.settings`).
Every section but `environment` may be left out; every key has a default that is
written below with its reason. `--set section.key=value` overrides one key.

Invariant: a config that loads can be started; what only the machine can tell
(a missing backend, a missing model directory) is checked before the first episode.

Not here: what a campaign does with it (`campaign`).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..engine.errors import ConfigError
from ..learners.settings import AnyLearner, EvolSettings, TrainingSettings


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections."""


class RunSection(_Section, frozen=True):
    """Where and how big."""

    out: str = "runs/campaign"
    seed: int = 0
    concurrency: int = 128
    """Live sessions at most."""
    workers: int = 0
    """Worker processes to run the environment in; 0 = where it says itself."""
    turn_seconds: float = 120.0
    """Deadline of one turn: completion and step."""
    episode_seconds: float = 3600.0
    """Deadline of one episode."""
    wave_seconds: float = 86_400.0
    """Deadline of one wave, of experts, exploration or evaluation."""
    step_seconds: float = 86_400.0
    """Deadline of one evolution step, cloning and control included."""
    swap_seconds: float = 600.0
    """Deadline of one weight swap: running requests end, and the weights are loaded."""
    shutdown_seconds: float = 30.0
    """Deadline for stopping everything at the end, or after an error."""
    max_fault_share: float = 0.05
    """A wave with more faults than this stops the campaign: a broken world teaches nothing."""
    threads: int = 1
    """torch threads of the learner. Two busy threads on two cores spin: 1 is faster there."""


class EnvironmentSection(_Section, frozen=True):
    """What is played."""

    id: str
    turn_limit: int = 0
    """0 = the environment's own."""


class TinySection(_Section, frozen=True):
    """A small Llama made on the spot, with the environment's closed vocabulary."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    context: int = 256
    tie_embeddings: bool = True


class ModelSection(_Section, frozen=True):
    """The policy to start from: a model directory, or a tiny one."""

    path: str = ""
    tiny: TinySection | None = None


class InferenceSection(_Section, frozen=True):
    """What serves the policy."""

    backend: Literal["auto", "vllm", "transformers"] = "auto"
    batch: int = 256
    context: int = 0
    """0 = the model's own."""
    kv_cache_gib: float = 0.0
    """vLLM's KV cache; 0 = 1 GiB on a CPU, a share of the memory on a GPU."""


class ExpertsSection(_Section, frozen=True):
    """Where demonstrations come from: the environment's expert on some tasks of a split."""

    split: str = "train"
    first: int = 0
    """Skip so many tasks of the split: other seeds of an experiment take other tasks."""
    tasks: int = 40
    """So many tasks of the split; 0 = no experts, and no cloning."""


class RolloutSection(_Section, frozen=True):
    """The exploration of a wave."""

    split: str = "train"
    first: int = 0
    """Skip so many tasks of the split."""
    tasks: int = 300
    """So many tasks of the split; never evaluation tasks."""
    attempts: int = 6
    """K: episodes a task and wave."""
    temperature: float = 1.0
    max_tokens: int = 4
    """Per turn."""


class EvaluateSection(_Section, frozen=True):
    """Greedy evaluation after each step."""

    dev_split: str = "dev"
    dev_first: int = 0
    dev_tasks: int = 100
    """Chooses the wave to keep. Never the test split."""
    test_split: str = "test"
    test_first: int = 0
    test_tasks: int = 200
    """Only reported. 0 = none."""
    max_tokens: int = 0
    """Per turn; 0 = as in the rollout."""


class StopSection(_Section, frozen=True):
    """When to stop (algorithms 1.11)."""

    waves: int = 3
    """M: at most so many."""
    min_gain: float = 0.005
    """A wave that gains less on dev than this counts as stale."""
    patience: int = 2
    """Stop after so many stale waves in a row."""
    rollback_errors: float = 2.0
    """Stop, and go back to the best, when dev falls by more standard errors than this."""


class ControlSection(_Section, frozen=True):
    """The honest comparison: the same base and optimiser steps, experts only."""

    enabled: bool = False


class CampaignConfig(_Section, frozen=True):
    """The whole file."""

    environment: EnvironmentSection
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    inference: InferenceSection = InferenceSection()
    experts: ExpertsSection = ExpertsSection()
    cloning: TrainingSettings = TrainingSettings()
    rollout: RolloutSection = RolloutSection()
    learner: AnyLearner = EvolSettings()
    evaluate: EvaluateSection = EvaluateSection()
    stop: StopSection = StopSection()
    control: ControlSection = ControlSection()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CampaignConfig:
    """Read a TOML file and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key or a
            value of the wrong type; the text names the key.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for override in overrides:
        _override(document, override)
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], name: str = "config") -> CampaignConfig:
    """Check a document and give it types.

    Raises:
        ConfigError: an unknown key, a wrong type, or values that contradict each other.
    """
    learner = document.get("learner")
    if isinstance(learner, dict):
        document = {**document, "learner": {"algorithm": "agent_evol"} | learner}
    try:
        config = msgspec.convert(document, CampaignConfig)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{name}: {error}") from None
    _check(config, name)
    return config


def _override(document: dict[str, Any], text: str) -> None:
    """Put one `a.b=value` into the document; the value is TOML, or else a string."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set takes section.key=value, not {text!r}")
    parsed: Any = value
    with suppress(tomllib.TOMLDecodeError):
        lines = tomllib.loads(f"value = {value}")
        if len(lines) == 1:
            parsed = lines["value"]
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {path}: {key} is a value, not a section")
        document = inner
    document[keys[-1]] = parsed


def _check(config: CampaignConfig, name: str) -> None:
    """Refuse contradictions, naming the key."""
    positive = {
        "run.concurrency": config.run.concurrency,
        "run.threads": config.run.threads,
        "run.turn_seconds": config.run.turn_seconds,
        "run.episode_seconds": config.run.episode_seconds,
        "run.wave_seconds": config.run.wave_seconds,
        "run.step_seconds": config.run.step_seconds,
        "run.swap_seconds": config.run.swap_seconds,
        "run.shutdown_seconds": config.run.shutdown_seconds,
        "rollout.tasks": config.rollout.tasks,
        "rollout.attempts": config.rollout.attempts,
        "rollout.max_tokens": config.rollout.max_tokens,
        "inference.batch": config.inference.batch,
        "evaluate.dev_tasks": config.evaluate.dev_tasks,
        "stop.patience": config.stop.patience,
    }
    not_negative = {
        "run.workers": config.run.workers,
        "environment.turn_limit": config.environment.turn_limit,
        "inference.context": config.inference.context,
        "experts.first": config.experts.first,
        "experts.tasks": config.experts.tasks,
        "rollout.first": config.rollout.first,
        "rollout.temperature": config.rollout.temperature,
        "evaluate.dev_first": config.evaluate.dev_first,
        "evaluate.test_first": config.evaluate.test_first,
        "evaluate.test_tasks": config.evaluate.test_tasks,
        "evaluate.max_tokens": config.evaluate.max_tokens,
        "stop.waves": config.stop.waves,
    }
    for key, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{name}: {key} must be above 0, not {value}")
    for key, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name}: {key} must be 0 or more, not {value}")
    if bool(config.model.path) == (config.model.tiny is not None):
        raise ConfigError(f"{name}: model needs either path or a [model.tiny] section, not both")
    if not 0 <= config.run.max_fault_share <= 1:
        raise ConfigError(f"{name}: run.max_fault_share is a share in [0, 1]")
    if not config.experts.tasks:
        if config.learner.scope == "expert_tasks":
            raise ConfigError(
                f"{name}: learner.scope = 'expert_tasks' needs experts.tasks above 0: it explores "
                "the experts' tasks"
            )
        if config.control.enabled:
            raise ConfigError(
                f"{name}: control.enabled needs experts.tasks above 0: the control learns from "
                "experts only"
            )
    trained = {config.experts.split, config.rollout.split}
    for key, split in (
        ("evaluate.dev_split", config.evaluate.dev_split),
        ("evaluate.test_split", config.evaluate.test_split),
    ):
        if split in trained:
            raise ConfigError(f"{name}: {key} = {split!r} is also trained on; choose another split")
    if config.evaluate.dev_split == config.evaluate.test_split:
        raise ConfigError(
            f"{name}: evaluate.dev_split and test_split are both {config.evaluate.test_split!r}; "
            "the split that chooses must not be the one that is reported"
        )
    if config.control.enabled and not config.experts.tasks:
        raise ConfigError(f"{name}: control.enabled needs experts.tasks above 0")

"""A campaign as a TOML file: typed, with every unknown key refused by name.

    [run] [environment] [model] [inference] [experts] [cloning] [rollout] [learner]
    [evaluate] [stop] [control] [track]

`[cloning]` and `[learner]` are the learners' own settings (`learners.settings`).
Every section but `environment` may be left out; every key has a default (`sections`).
`--set section.key=value` overrides one key. The staleness that a learner takes is that of
the run, unless it is given by itself; with any, importance weights are on, unless it is said
what they are. ETO beside experts explores greedily and once, unless it is said how.

Invariant: a config that loads can be started; what only the machine can tell
(a missing backend, a missing model directory) is checked before the first episode.

Not here: the keys (`sections`), what contradicts what (`config_rules`), what was meant by
a wrong key (`config_hints`), and what a campaign does with it (`campaign`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..engine.errors import ConfigError
from ..learners.settings import (
    ALGORITHMS,
    AnyLearner,
    EvolSettings,
    GradientSettings,
    TrainingSettings,
)
from .config_hints import explained
from .config_rules import contradiction
from .sections import (
    ControlSection,
    EnvironmentSection,
    EvaluateSection,
    ExpertsSection,
    InferenceSection,
    ModelSection,
    RolloutSection,
    RunSection,
    Section,
    StopSection,
    TrackSection,
)


class CampaignConfig(Section, frozen=True):
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
    track: TrackSection = TrackSection()

    @property
    def trainings(self) -> dict[str, TrainingSettings]:
        """Every training that it may run, by section."""
        learners = {f"learner.{key}": value for key, value in self.learner.trainings.items()}
        return {"cloning": self.cloning} | learners


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CampaignConfig:
    """Read a TOML file and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key or a
            value of the wrong type; the text names the key.
    """
    try:
        text = Path(path).read_text("utf-8-sig")  # some editors begin a file with a mark
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
        learner = {"algorithm": "agent_evol"} | learner
        if learner["algorithm"] not in ALGORITHMS:
            raise ConfigError(
                f"{name}: learner.algorithm = {learner['algorithm']!r}: it must be one of "
                f"{', '.join(ALGORITHMS)}"
            )
        document = {**document, "learner": learner}
    experts = document.get("experts")
    if isinstance(experts, dict) and experts.get("path"):
        document = {**document, "experts": {"tasks": 0} | experts}  # all that the files hold
    try:
        config = msgspec.convert(document, CampaignConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {explained(str(error), CampaignConfig, document)}") from None
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    config = _explored(config, document.get("rollout", {}))
    if isinstance(learner, dict):
        config = _followed(config, learner)
    if found := contradiction(config):
        raise ConfigError(f"{name}: {found}")
    return config


def _explored(config: CampaignConfig, said: Mapping[str, Any]) -> CampaignConfig:
    """Explore as the learner is used to, where nothing is said of it."""
    unsaid = {k: v for k, v in config.learner.rollout_defaults.items() if k not in said}
    rollout = msgspec.structs.replace(config.rollout, **unsaid)
    return msgspec.structs.replace(config, rollout=rollout)


def _followed(config: CampaignConfig, said: Mapping[str, Any]) -> CampaignConfig:
    """Let the learner take what the run makes: no older trajectories, and no younger; and weigh
    what an older policy sampled, where nothing is said of that."""
    learner, staleness = config.learner, config.run.max_staleness
    if not isinstance(learner, GradientSettings) or staleness < 0:
        return config
    if "max_staleness" not in said:
        learner = msgspec.structs.replace(learner, max_staleness=staleness)
    if staleness and "importance" not in said:
        learner = msgspec.structs.replace(
            learner, importance=msgspec.structs.replace(learner.importance, correction="token")
        )
    return msgspec.structs.replace(config, learner=learner)


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

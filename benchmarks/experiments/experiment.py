"""One experiment: a claim, the arms that would show it, and the contrasts that decide.

    id = "E1"
    claim = "…"                       # what a paper says, in one sentence
    source = "…"                      # which paper, where
    base = "maze.toml"                # the campaign that every arm starts from
    seeds = 10

    [arms.evolved]                    # what this arm sets in it
    "rollout.attempts" = 4

    [[tests]]
    name = "wave 4 − cloned"
    terms = [{ weight = 1, arm = "evolved", wave = 4 }, { weight = -1, arm = "evolved", wave = 0 }]

The base file is a campaign of `rollwave evolve` with one section more: `[seed]` says by how
much a setting moves from one seed to the next (its tasks, its weights, its sampling).

Invariant: an arm is its settings; two experiments whose arms are equal share the runs.

Not here: running (`runs`) and judging (`verdict`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from ...engine.errors import ConfigError

HERE: Final = Path(__file__).parent
FILES: Final = HERE / "files"
"""Where the experiments' TOML files are."""


class Term(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arm at one of its waves, in a contrast."""

    weight: float
    arm: str
    wave: int = -1
    """-1: the last one."""
    chosen: bool = False
    """The wave that the arm's dev tasks chose, in place of `wave`."""
    metric: str = ""
    """One of the learner's figures of that wave (`runs.KEPT`) in place of test success."""


class Test(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A contrast that the claim says is above 0."""

    name: str
    terms: tuple[Term, ...]
    unit: str = "points"
    __test__ = False  # for pytest: this is no test case


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file."""

    id: str
    claim: str
    source: str
    base: str
    seeds: int
    arms: dict[str, dict[str, Any]]
    tests: tuple[Test, ...]
    budget: str
    """What the arms spend, and whether it is equal: in words."""
    notes: str = ""


def load_experiment(path: Path) -> Experiment:
    """Read and check one experiment.

    Raises:
        ConfigError: it cannot be read, or a test names an arm that is not there.
    """
    try:
        experiment = msgspec.toml.decode(path.read_bytes(), type=Experiment)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for test in experiment.tests:
        for term in test.terms:
            if term.arm not in experiment.arms:
                raise ConfigError(f"{path}: test {test.name!r} names no arm: {term.arm!r}")
    if experiment.seeds < 2:
        raise ConfigError(f"{path}: seeds must be at least 2, the unit of the statistics")
    return experiment


class Arm(msgspec.Struct, frozen=True):
    """A campaign with its settings, for any seed."""

    base: str
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, experiment: Experiment, name: str) -> Arm:
        """The arm of that name."""
        return cls(experiment.base, tuple(sorted(experiment.arms[name].items())))

    def document(self, seed: int) -> dict[str, Any]:
        """The campaign's config for one seed, as `actors.config.parse_config` takes it.

        Raises:
            ConfigError: the base file cannot be read.
        """
        path = FILES / self.base
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        moves: Mapping[str, int] = _flat(document.pop("seed", {}))
        for key, value in self.settings:
            _put(document, key, value)
        for key, step in moves.items():
            _put(document, key, _get(document, key, 0) + step * seed)
        return document

    def key(self, seed: int) -> str:
        """Names the run: equal configs have equal keys."""
        text = msgspec.json.encode(self.document(seed), order="sorted")
        return blake2b(text, digest_size=8).hexdigest()


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in section.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= _flat(value, name) if isinstance(value, Mapping) else {name: int(value)}
    return found


def _get(document: Mapping[str, Any], key: str, default: int) -> int:
    value: Any = document
    for part in key.split("."):
        value = value.get(part, {}) if isinstance(value, Mapping) else {}
    return default if value == {} else int(value)


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for part in sections:
        document = document.setdefault(part, {})
    document[last] = value

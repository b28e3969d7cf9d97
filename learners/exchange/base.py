"""What a format is: it reads trajectories from a path and writes them to one.

Invariant: a tally adds up: what was read is what is written or left out.

Not here: rows and files (`rows`, `files`), and the formats themselves, one module each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec

from ...engine.errors import ConfigError
from ...engine.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is taken for granted where a file does not say it."""

    env: str = ""
    """Environment id put in place of the records' own; tasks keep their numbers."""
    split: str = "train"
    reward: float = 1.0
    """Of a record without a reward: published demonstrations are successes."""

    def renamed(self, trajectory: Trajectory) -> Trajectory:
        """Give a whole record the environment id that is wanted."""
        if not self.env:
            return trajectory
        return msgspec.structs.replace(trajectory, env=self.env)


@dataclass(slots=True)
class Tally:
    """What happened to the trajectories, counted while they pass."""

    read: int = 0
    """Records, those that were left out included."""
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """By reason: `fault`, `no_conversation`, …"""
    lost: Counter[str] = field(default_factory=Counter)
    """Trajectories that the format could not carry whole, by the name of what it lost: a field
    of `Trajectory`, or `turns.` and one of `Turn`, or `prompt.loss`."""
    assumed: Counter[str] = field(default_factory=Counter)
    """Trajectories that got a value from `Reading`, by field."""


class Format(ABC):
    """One format. Stateless."""

    name: ClassVar[str]
    """As `--to` and `--from` take it."""
    summary: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Of files that can be written; () for a directory. `.gz` may follow those of JSON."""

    @abstractmethod
    def read(self, path: Path, reading: Reading, tally: Tally) -> Iterator[Trajectory]:
        """Give the trajectories of a file or directory, in order, one after the other.

        Raises:
            BadDataFile: it is not of this form; names the file, the item and the field.
            MissingDependency: the extra that reads it is not installed.
            StoreError: a run or wave cannot be read.
        """

    @abstractmethod
    def write(self, path: Path, trajectories: Iterable[Trajectory], tally: Tally) -> None:
        """Write trajectories, in order; `path` appears whole or not at all.

        Raises:
            ConfigError: the path does not end as this format's files do.
            MissingDependency: the extra that writes it is not installed.
            StorageFailed: the disk refused.
        """

    def require_suffix(self, path: Path) -> None:
        """Refuse a path that readers of this format would not recognise.

        Raises:
            ConfigError: it ends otherwise; says how it may.
        """
        name = path.name.removesuffix(".gz")
        packed = name != path.name
        allowed = [s for s in self.suffixes if not packed or s.startswith(".json")]
        if self.suffixes and Path(name).suffix not in allowed:
            known = ", ".join(self.suffixes)
            raise ConfigError(f"{path}: a file in the format {self.name} ends in {known}")

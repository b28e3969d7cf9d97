"""The table of a campaign: one row for each policy, and the file it is kept in.

Invariant: report.json is derived from the stores and model directories alone, so a
campaign that went on after a crash reports what an uninterrupted one does (but for
`seconds`, which nobody compares).

Not here: printing and drawing it (`cli.evolve`, `cli.figures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..engine.disk import Disk
from ..engine.errors import CheckpointCorrupt, storage_error
from ..engine.store import Store
from .evaluator import Evaluation
from .turnlog import read_progress
from .wave_figures import WaveFigures


@dataclass(frozen=True, slots=True)
class Row:
    """One policy of a campaign, and how good it is."""

    arm: str
    """"evolution" or "control"."""
    wave: int
    """0 is the cloned policy that both arms start from."""
    policy_version: int
    steps: int
    """Optimiser steps spent on this arm so far, cloning included."""
    explored: int
    """Episodes that this arm has explored so far; the control explores none."""
    kept: int
    """Trajectories trained on in this wave."""
    dev: Evaluation | None
    """None where this policy was not evaluated (`evaluate.every`)."""
    test: Evaluation | None
    model: str
    turns: int = 0
    """Turns that this arm has explored so far."""
    figures: WaveFigures | None = None
    """Of the wave that it was trained on; None for what was cloned."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """What the learner said of its step: loss, win, tie, lose, mismatch, … None: not finite."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Trajectories of the wave that were left out, by reason."""


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """What a campaign ends with."""

    rows: tuple[Row, ...]
    best: int
    """Wave of the evolution arm that dev chose."""
    stopped: str
    """Why it ended."""
    turns: int
    """Turns that were learned from or evaluated."""
    out: str
    unused: int = 0
    """Episodes that were explored when it ended, and that no policy was trained on."""

    def arm(self, name: str) -> list[Row]:
        """The rows of one arm, by wave."""
        return [row for row in self.rows if row.arm == name]

    def write(self) -> Path:
        """Write report.json into the run directory, whole or not at all; return its path.

        Raises:
            StorageFailed: the disk refused; an earlier report is as it was.
        """
        path = Path(self.out) / "report.json"
        text = msgspec.json.format(msgspec.json.encode(self), indent=2)
        try:
            Disk().replace(path, text + b"\n")
        except OSError as error:
            raise storage_error(error, path) from error
        return path


def has_ended(out: Path) -> bool:
    """Whether a campaign in that directory has come to an end, and written its report."""
    return (out / "report.json").is_file()


def turns_of(rows: Iterable[Row]) -> int:
    """Turns that were learned from or evaluated."""
    rows = list(rows)
    evaluations = (part.turns for row in rows for part in (row.dev, row.test) if part is not None)
    return sum(evaluations) + max((row.turns for row in rows), default=0)


def unused_episodes(main: Store, learned: AbstractSet[int]) -> int:
    """Episodes that the main store holds beside those of these waves. Blocks."""
    sealed = sum(info.trajectories for info in main.waves() if info.number not in learned)
    return sealed + len(read_progress(main.journal_path)[0])


class Training(msgspec.Struct, frozen=True):
    """What a campaign reads of the training.json beside a model."""

    metrics: dict[str, float | None]
    kept: int
    dropped: dict[str, int] = {}

    def __post_init__(self) -> None:
        """Refuse what says nothing of its steps; decoding then names the file."""
        if self.metrics.get("steps") is None:
            raise ValueError("metrics has no steps")

    @property
    def steps(self) -> int:
        """Optimiser steps of that training."""
        return int(self.metrics["steps"] or 0)


def read_training(model: str) -> Training:
    """Read how a model directory came to be.

    Raises:
        CheckpointCorrupt: its training.json is missing or damaged.
    """
    path = Path(model) / "training.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Training)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointCorrupt(
            f"{path}: {error}. Delete the directory {model} and run the same command again: this "
            "policy is then trained anew"
        ) from error

"""The table of a campaign: one row for each policy, and the file it is kept in.

Invariant: report.json is derived from the stores and model directories alone, so a
campaign that went on after a crash reports what an uninterrupted one does (but for
`seconds`, which nobody compares).

Not here: printing and drawing it (`cli.evolve`, `cli.figures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..engine.disk import Disk
from ..engine.errors import CheckpointCorrupt, storage_error
from .evaluator import Evaluation


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
    dev: Evaluation
    test: Evaluation | None
    model: str


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """What a campaign ends with."""

    rows: tuple[Row, ...]
    best: int
    """Wave of the evolution arm that dev chose."""
    stopped: str
    """Why it ended."""
    turns: int
    """Turns played with a model, evaluations included."""
    out: str

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


class _Metrics(msgspec.Struct, frozen=True):
    steps: float


class Training(msgspec.Struct, frozen=True):
    """What a campaign reads of the training.json beside a model."""

    metrics: _Metrics
    kept: int

    @property
    def steps(self) -> int:
        """Optimiser steps of that training."""
        return int(self.metrics.steps)


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

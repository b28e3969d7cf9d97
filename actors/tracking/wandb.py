"""Weights & Biases: one run of theirs for one of ours, also over crashes.

Steps are under `train/`, rows under the name of their arm; the axis is `global_step`. With
`offline` nothing is sent; `wandb sync RUN/wandb/…` does it later.

Not here: what is told (`tracking`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import MissingDependency
from .base import RowRecord, StepRecord, Tracker


class WeightsAndBiases(Tracker):
    """Logs to one W&B run.

    Args:
        directory: where its own files go.
        project: of theirs.
        name: of the run, as it is shown.
        id: the same for a run that goes on, so that its curves do.
        offline: send nothing.

    Raises:
        MissingDependency: wandb is not installed.
    """

    def __init__(self, directory: Path, *, project: str, name: str, id: str, offline: bool) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingDependency(
                "track.wandb needs Weights & Biases: pip install 'rollwave[wandb]'"
            ) from None
        self._run: Any = wandb.init(
            project=project,
            name=name,
            id=id,
            resume="allow",
            dir=str(directory),
            mode="offline" if offline else "online",
            # Runs of one process do not share a run, and our output is our own.
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def config(self, settings: Mapping[str, str]) -> None:
        """Set the run's config."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def step(self, record: StepRecord) -> None:
        """Log a step."""
        self._log("train", record.global_step, record.metrics)

    def row(self, record: RowRecord) -> None:
        """Log a row."""
        self._log(record.arm, record.global_step, record.metrics)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    def _log(self, head: str, step: int, metrics: Mapping[str, float | None]) -> None:
        figures = {f"{head}/{name}": v for name, v in metrics.items() if v is not None}
        self._run.log({**figures, "global_step": step})

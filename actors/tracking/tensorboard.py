"""Curves for TensorBoard, written with its own event writer: torch is not needed.

    tensorboard --logdir RUN/tensorboard

Optimiser steps are under `train/`, rows under the name of their arm; both over the optimiser
steps of the run. A run that goes on writes a further file beside the earlier ones.

Not here: what is told (`tracking`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import MissingDependency
from .base import RowRecord, StepRecord, Tracker


class TensorBoard(Tracker):
    """Writes event files into a directory.

    Raises:
        MissingDependency: TensorBoard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise MissingDependency(
                "track.tensorboard needs TensorBoard: pip install 'rollwave[tensorboard]'"
            ) from None
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2
        self._writer: Any = EventFileWriter(str(directory))

    def config(self, settings: Mapping[str, str]) -> None:
        """Write the settings as a text."""
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        lines = "".join(f"| {key} | {value} |\n" for key, value in settings.items())
        text = f"| key | value |\n|---|---|\n{lines}"
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        value = self._summary.Summary.Value(
            tag="settings",
            metadata=self._summary.SummaryMetadata(plugin_data=plugin),
            tensor=TensorProto(dtype=7, string_val=[text.encode()]),
        )
        self._write(0, [value])

    def step(self, record: StepRecord) -> None:
        """Write a step's scalars."""
        self._scalars("train", record.global_step, record.metrics)

    def row(self, record: RowRecord) -> None:
        """Write a row's scalars, and all that is waiting."""
        self._scalars(record.arm, record.global_step, record.metrics)
        self._writer.flush()

    def close(self) -> None:
        """Write all that is waiting."""
        self._writer.close()

    def _scalars(self, head: str, step: int, metrics: Mapping[str, float | None]) -> None:
        self._write(
            step,
            [
                self._summary.Summary.Value(tag=f"{head}/{name}", simple_value=value)
                for name, value in metrics.items()
                if value is not None
            ],
        )

    def _write(self, step: int, values: list[Any]) -> None:
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

"""RUN/metrics.jsonl: one JSON object a line, only ever appended to.

    {"kind": "config", "settings": {…}}
    {"kind": "step", "stage": "policy-0001", "step": 3, "steps": 12, "global_step": 27,
     "metrics": {"loss": …}}
    {"kind": "row", "arm": "evolution", "wave": 1, "global_step": 36, "evaluated": true,
     "metrics": {"dev/success_rate": …}}

Invariants: a line is one write, so a process that is killed leaves whole lines and at most one
torn one, which the next cuts off; a figure that is not finite is null.

Not here: which steps are already there is asked of `past`, and decided in `tracking`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from ...engine.errors import storage_error
from .base import RowRecord, StepRecord, Tracker

NAME: Final = "metrics.jsonl"


class MetricsFile(Tracker):
    """Appends to a file; `past` is what it held when it was opened.

    Raises:
        StorageFailed: the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            held = path.read_bytes()
            whole = held.rfind(b"\n") + 1
            if whole < len(held):
                os.ftruncate(self._file, whole)
        except OSError as error:
            raise storage_error(error, path) from error
        self.past: Final = list(_records(held[:whole]))

    def config(self, settings: Mapping[str, str]) -> None:
        """Append the settings, unless the file has the same ones last."""
        record = {"kind": "config", "settings": dict(settings)}
        had = [old for old in self.past if old.get("kind") == "config"]
        if not had or had[-1] != record:
            self._append(record)

    def step(self, record: StepRecord) -> None:
        """Append a step."""
        self._append({"kind": "step", **asdict(record)})

    def row(self, record: RowRecord) -> None:
        """Append a row."""
        self._append({"kind": "row", **asdict(record)})

    def close(self) -> None:
        """Make it durable."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def _append(self, record: Mapping[str, Any]) -> None:
        line = msgspec.json.encode(record) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(f"only part of a line was written to {self.path}")


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    """Decode lines; one that somebody else wrote is not ours to judge."""
    for line in data.splitlines():
        try:
            found = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found

"""The trackers of a campaign together.

Invariants:

* each optimiser step and each row is told once, also when the campaign is killed and goes on:
  what metrics.jsonl holds is not told again (a step that is trained again gives the same
  figures: training resumes bit-exactly);
* a tracker that fails is warned about once and let go; nothing it raises reaches the campaign.

Not here: the trackers themselves, one module each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Final

import msgspec
import trio

from ...engine.blocking import run_blocking
from ...engine.errors import MissingDependency, classify
from ..monitor import Snapshot, Watch
from ..report import Row
from ..sections import TrackSection
from .base import RowRecord, StepRecord, Tracker
from .jsonl import NAME, MetricsFile

CLOSE_SECONDS: Final = 60.0
"""Deadline of closing the trackers at the end: one of them may have to send a lot."""

_log: Final = logging.getLogger("rollwave.actors")


class Tracking:
    """Tells trackers. Safe to call from any thread.

    Args:
        trackers: who is told.
        past: what a metrics.jsonl of this run held before.
    """

    def __init__(
        self, trackers: Sequence[Tracker] = (), past: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._trackers = list(trackers)
        self._lock = Lock()
        self._offsets: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._rows: set[tuple[str, int, bool]] = set()
        self._global = 0
        for record in past:
            self._recall(record)

    def add(self, factory: Callable[[], Tracker]) -> None:
        """Make a tracker and tell it from now on; one that cannot be made is a failed one.

        Raises:
            MissingDependency: its extra is not installed.
        """
        try:
            self._trackers.append(factory())
        except MissingDependency:
            raise
        except Exception as error:  # noqa: BLE001 (the boundary to trackers)
            _warn("a tracker", error)

    def config(self, settings: Mapping[str, str]) -> None:
        """Tell the settings."""
        with self._lock:
            self._tell(lambda tracker: tracker.config(settings))

    def watching(self, watch: Watch) -> Watch:
        """Give a watch that also tells the trackers of every optimiser step."""

        def both(snapshot: Snapshot) -> None:
            self.step(snapshot)
            watch(snapshot)

        return both

    def step(self, snapshot: Snapshot) -> None:
        """Tell an optimiser step, if the snapshot is of one."""
        training = snapshot.training
        if training is None or int(training.metrics.get("resumed", -1)) == training.step:
            return  # the latter announces at which step a training goes on
        with self._lock:
            if training.step <= self._done.get(training.name, 0):
                return
            offset = self._offsets.setdefault(training.name, self._global - training.step + 1)
            self._done[training.name] = training.step
            self._global = offset + training.step
            record = StepRecord(
                training.name,
                training.step,
                training.steps,
                self._global,
                _finite({k: v for k, v in training.metrics.items() if k != "resumed"}),
            )
            self._tell(lambda tracker: tracker.step(record))

    def row(self, row: Row) -> None:
        """Tell a row of the table."""
        key = (row.arm, row.wave, row.dev is not None)
        with self._lock:
            if key in self._rows:
                return
            self._rows.add(key)
            record = RowRecord(row.arm, row.wave, self._global, key[2], _finite(figures_of(row)))
            self._tell(lambda tracker: tracker.row(record))

    async def told(self, row: Row) -> None:
        """Tell a row of the table, off the loop: a tracker may block."""
        await run_blocking(self.row, row)

    def close(self) -> None:
        """Close every tracker."""
        with self._lock:
            self._tell(lambda tracker: tracker.close())
            self._trackers = []

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # noqa: BLE001 (of every kind; none may stop a campaign)
                self._trackers.remove(tracker)
                _warn(type(tracker).__name__, error)

    def _recall(self, record: Mapping[str, Any]) -> None:
        """Take up what was told before; lines of another form are passed over."""
        try:
            if record["kind"] == "step":
                stage, step = str(record["stage"]), int(record["step"])
                self._global = max(self._global, int(record["global_step"]))
                self._offsets.setdefault(stage, int(record["global_step"]) - step)
                self._done[stage] = max(step, self._done.get(stage, 0))
            elif record["kind"] == "row":
                key = str(record["arm"]), int(record["wave"]), bool(record["evaluated"])
                self._rows.add(key)
        except (LookupError, TypeError, ValueError):
            return


def _warn(name: str, error: Exception) -> None:
    text = classify(error)[1]
    _log.warning("%s failed and is told nothing more; the campaign goes on: %s", name, text)


@asynccontextmanager
async def tracked(
    out: Path, section: TrackSection, settings: Mapping[str, str], *, created: str
) -> AsyncIterator[Tracking]:
    """Open the trackers of a run directory for a block, and close them within a deadline.

    Raises:
        MissingDependency, StorageFailed: as `open_tracking`.
    """
    tracking = await run_blocking(open_tracking, out, section, settings, created)
    try:
        yield tracking
    finally:
        # What a tracker still sends is sent in vain after that; its own files are kept.
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await run_blocking(tracking.close, abandon_on_cancel=True)


def open_tracking(
    out: Path, section: TrackSection, settings: Mapping[str, str], created: str
) -> Tracking:
    """Open the trackers of a run directory and tell them its settings. Blocks.

    Args:
        out: the run directory, which exists.
        section: who is to be told.
        settings: of the campaign.
        created: when the run was; with its name it tells it from others.

    Raises:
        MissingDependency: a tracker's extra is not installed; says which.
        StorageFailed: the disk refused.
    """
    file = MetricsFile(out / NAME)
    trackers: list[Tracker] = [file]
    tracking = Tracking(trackers, file.past)
    if section.tensorboard:
        from .tensorboard import TensorBoard

        tracking.add(lambda: TensorBoard(out / "tensorboard"))
    if section.wandb:
        from .wandb import WeightsAndBiases

        name = section.name or out.name
        id = blake2b(f"{created} {name}".encode(), digest_size=8).hexdigest()
        tracking.add(
            lambda: WeightsAndBiases(
                out, project=section.project, name=name, id=id, offline=section.offline
            )
        )
    tracking.config(settings)
    return tracking


def figures_of(row: Row) -> dict[str, float]:
    """Give the figures of a row, flat, named by `/`."""
    plain: dict[str, Any] = msgspec.to_builtins(row)
    evaluations = {"dev": plain.pop("dev"), "test": plain.pop("test")}
    parts = {"wave": plain.pop("figures"), "learner": plain.pop("metrics")}
    found: dict[str, float] = {}
    for head, part in (evaluations | parts | {"dropped": plain.pop("dropped")}).items():
        _flatten(head, part, found)
    for name, value in plain.items():
        if name not in {"arm", "wave", "policy_version"}:
            _flatten(name, value, found)
    return found


def _flatten(name: str, value: Any, into: dict[str, float]) -> None:
    """Put every number below a value into a dictionary, lists and texts left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{name}/{key}", inner, into)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        into[name] = float(value)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}

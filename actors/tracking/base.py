"""What a tracker is: somebody who takes figures down.

Invariant: a tracker is told each thing once, in order, by one thread at a time, though not
always the same one: steps come from the thread that trains.

Not here: what is left out and who is let go (`tracking`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step."""

    stage: str
    """Name of the model directory in the making: "policy-0002"."""
    step: int
    """Counted from 1 within the stage."""
    steps: int
    """Of the whole stage."""
    global_step: int
    """Counted from 1 over all stages of the run: the axis of every curve."""
    metrics: Mapping[str, float | None]
    """None: not a finite number."""


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One row of a campaign's table: a policy, and how good it is."""

    arm: str
    """"evolution" or "control"."""
    wave: int
    global_step: int
    """Optimiser steps of the run before it."""
    evaluated: bool
    metrics: Mapping[str, float | None]
    """Named by `/`: dev/success_rate, dropped/too_long, …"""


class Tracker(ABC):
    """Takes figures down. Every method may block, and may raise what it likes."""

    @abstractmethod
    def config(self, settings: Mapping[str, str]) -> None:
        """Take the campaign's settings down; told first, again when a run goes on."""

    @abstractmethod
    def step(self, record: StepRecord) -> None:
        """Take an optimiser step down."""

    @abstractmethod
    def row(self, record: RowRecord) -> None:
        """Take a policy down; one that is evaluated later is told again then."""

    @abstractmethod
    def close(self) -> None:
        """Make durable what was taken down; nothing is told after that."""

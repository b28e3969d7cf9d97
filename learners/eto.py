"""ETO: under construction."""

from __future__ import annotations

from .base import Evidence, Progress, Report
from .settings import EtoSettings


def evolve(
    settings: EtoSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    raise NotImplementedError

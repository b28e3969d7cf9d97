"""Trackers: who is told what a campaign measures, step by step and policy by policy.

    jsonl         RUN/metrics.jsonl, always
    tensorboard   RUN/tensorboard, with the extra `tensorboard`
    wandb         Weights & Biases, with the extra `wandb`; its files are in RUN/wandb

`tracking` keeps them together: it leaves out what a file of before a crash holds already, and
lets a tracker go that fails. A campaign is never stopped by one.
"""

from __future__ import annotations

from .base import RowRecord, StepRecord, Tracker
from .tracking import Tracking, open_tracking, tracked

__all__ = ["RowRecord", "StepRecord", "Tracker", "Tracking", "open_tracking", "tracked"]

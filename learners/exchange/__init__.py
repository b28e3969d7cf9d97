"""Trajectories in and out of the formats of others, each format one module.

    agenttraj    AgentGym's JSON, published and of its evaluator
    openmanus    OpenManus-RL's Parquet
    sharegpt     LLaMA-Factory's JSON
    trl          TRL's conversational prompt and completion, JSON lines or Parquet
    datasets     a directory of Hugging Face's `datasets`, with our own columns
    store        a run directory of ours, or one sealed wave

The record between them all is `Trajectory`. Pairs go out only (`preferences`).

Invariant: what goes in is read, left out under one reason, or refused by one error that names
the file, the item and the field; what comes out is compared with what went in, and each
trajectory that lost something is counted under the name of what it lost.

Not here: which trajectories are worth learning from (`learners.evidence.filters`).
"""

from __future__ import annotations

from .base import Format, Reading, Tally
from .finding import FORMATS, detect, find_format, read

__all__ = ["FORMATS", "Format", "Reading", "Tally", "detect", "find_format", "read"]

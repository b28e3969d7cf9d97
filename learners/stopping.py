"""When evolution should stop, and which wave's policy is kept: a pure rule.

Stop if dev reward gained less than `min_gain` over the best so far in `patience` waves
in a row, or if it fell more than `fall` standard errors below the best: then the best is
returned to.

Invariants: the verdict depends on the scores alone; the best is the earliest among equals.

Not here: budgets in waves or steps, and playing dev tasks (`actors.campaign`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Decision(StrEnum):
    """What to do after a wave."""

    GO_ON = "go_on"
    STOP = "stop"
    ROLL_BACK = "roll_back"
    """Stop, because the newest policy is clearly worse than the best one."""


@dataclass(frozen=True, slots=True)
class Score:
    """Dev reward of one policy."""

    mean: float
    error: float
    """Standard error of the mean."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, and the index of the best score so far."""

    decision: Decision
    best: int


def judge(
    scores: Sequence[Score], *, min_gain: float = 0.005, patience: int = 2, fall: float = 2.0
) -> Verdict:
    """Judge the scores of all policies so far, the starting one first.

    The standard error of a difference of two means is the root of the sum of squares.
    """
    best = 0
    without_gain = 0
    for index, score in enumerate(scores[1:], start=1):
        gained = score.mean - scores[best].mean >= min_gain
        without_gain = 0 if gained else without_gain + 1
        if score.mean > scores[best].mean:
            best = index
    if scores and best != len(scores) - 1:
        newest = scores[-1]
        error = math.hypot(newest.error, scores[best].error)
        if scores[best].mean - newest.mean > fall * error:
            return Verdict(Decision.ROLL_BACK, best)
    return Verdict(Decision.STOP if without_gain >= patience else Decision.GO_ON, best)

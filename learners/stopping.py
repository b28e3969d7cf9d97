"""When evolution should stop, and which wave's policy is kept: pure rules.

Stop if dev reward gained less than `min_gain` over the best so far in `patience`
evaluations in a row, or if it fell more than `fall` standard errors below the best: then
the best is returned to. Stop, too, if the policy collapses: `collapse`.

Invariants: the verdict depends on the scores alone; the best is the earliest among equals;
what was not measured is no collapse.

Not here: budgets in waves or steps, and playing dev tasks (`actors.campaign`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

_SETTLED: Final = 5
"""KLs before one may be called a jump: the first ones rise from 0 by large factors."""


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


def collapse(
    *,
    kls: Sequence[float] = (),
    entropies: Sequence[float] = (),
    format_errors: float = 0.0,
    max_kl: float = 10.0,
    min_entropy: float = 0.1,
    max_format_errors: float = 0.5,
) -> str:
    """Say how the policy has collapsed; nothing if it has not.

    Args:
        kls: to the reference, of each wave so far in which it was measured.
        entropies: nats a token of what each wave explored, the first wave's first.
        format_errors: share of the newest wave's turns that broke the action format.
        max_kl: times the median of the earlier KLs; 0: no limit.
        min_entropy: share of the first entropy.
        max_format_errors: share of turns.
    """
    usual = median(kls[:-1]) if len(kls) > _SETTLED else 0.0
    if max_kl and usual > 0 and kls[-1] > max_kl * usual:
        return f"KL {kls[-1]:.3g} is above {max_kl:g} times its median of {usual:.3g}"
    if entropies and entropies[-1] < min_entropy * entropies[0]:
        return (
            f"entropy {entropies[-1]:.3g} is below {min_entropy:g} of the first wave's "
            f"{entropies[0]:.3g}"
        )
    if format_errors > max_format_errors:
        return f"{format_errors:.1%} of the turns broke the action format"
    return ""

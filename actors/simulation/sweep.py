"""How many replicas are worth it: the same draws with more and more of them.

More replicas pay while they bring at least half of what they cost: from 2 to 4 the speed
could double, so it must grow by half. After the first that does not pay, no more are
recommended.

Invariant: every simulation of a sweep has the same draws; only the replicas differ.

Not here: one simulation (`simulation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from .simulation import Simulated

_PAYS: Final = 0.5
"""Share of the ideal gain that must come true."""


def knee(results: Sequence[Simulated]) -> tuple[int, str]:
    """The number of replicas after which more do not pay, and why, in one sentence.

    Args:
        results: by rising number of replicas, one at least.
    """
    for fewer, more in pairwise(results):
        gained = fewer.wall_seconds / more.wall_seconds - 1.0 if more.wall_seconds else 0.0
        if gained < _PAYS * (more.replicas / fewer.replicas - 1.0):
            return fewer.replicas, (
                f"More than {_replicas(fewer.replicas)} do not pay: {more.replicas} bring only "
                f"{gained:.0%} more speed (the lower bound, {more.lower_bound_seconds:.0f} s, "
                f"then comes from {more.limit})."
            )
    last = results[-1]
    if len(results) == 1:
        return last.replicas, f"The lower bound comes from {last.limit}."
    return last.replicas, (
        f"All {_replicas(last.replicas)} pay (the lower bound comes from {last.limit}): try more."
    )


def _replicas(number: int) -> str:
    return "1 replica" if number == 1 else f"{number} replicas"

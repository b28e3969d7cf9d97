"""Restart policy as pure values: what restarts, together with what, how often, how soon.

    strategy     what goes down with a failed child
    one_for_one  nothing else
    one_for_all  every sibling
    rest_for_one the siblings started after it

    restart      when a child that ended comes back
    permanent    always, also after a normal end
    transient    after a failure only
    temporary    never

Invariant: a supervisor restarts at most `max_restarts` times in any window of
`window_seconds`; the next failure escalates to its own parent.

Not here: tasks, clocks and children (see `supervisor`). Nothing in this file
knows trio; times are passed in.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .errors import ConfigError


class Strategy(StrEnum):
    """What a supervisor restarts when one child fails."""

    ONE_FOR_ONE = "one_for_one"
    """The failed child alone."""
    ONE_FOR_ALL = "one_for_all"
    """Every child: they hold state about each other."""
    REST_FOR_ONE = "rest_for_one"
    """The failed child and those started after it: later ones build on earlier ones."""


class Restart(StrEnum):
    """When a child that ended is started again."""

    PERMANENT = "permanent"
    """Always. Only a stop asked for from outside (`ref.stop`, `stop_child`) ends it."""
    TRANSIENT = "transient"
    """After a failure; a normal end is final."""
    TEMPORARY = "temporary"
    """Never: whatever ended it is told to `on_exit`."""

    def wanted(self, *, failed: bool) -> bool:
        """Whether a child of this kind comes back after a failure or a normal end."""
        return self is Restart.PERMANENT or (failed and self is Restart.TRANSIENT)


@dataclass(frozen=True, slots=True)
class RestartIntensity:
    """At most `max_restarts` within any `window_seconds`. (0, …) never restarts."""

    max_restarts: int = 5
    window_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ConfigError(f"max_restarts must be 0 or more, not {self.max_restarts}")
        if not self.window_seconds > 0:
            raise ConfigError(f"window_seconds must be above 0, not {self.window_seconds}")


class RestartWindow:
    """The restarts of one supervisor, counted over a sliding window."""

    __slots__ = ("_times", "intensity", "total")

    def __init__(self, intensity: RestartIntensity) -> None:
        self.intensity: Final = intensity
        self.total = 0
        """Restarts granted since the start."""
        self._times: deque[float] = deque()

    def allow(self, time: float) -> bool:
        """Grant one restart at `time` (seconds, never decreasing), or refuse it.

        A refused restart is not counted: the supervisor that asked is failing.
        """
        while self._times and self._times[0] <= time - self.intensity.window_seconds:
            self._times.popleft()
        if len(self._times) >= self.intensity.max_restarts:
            return False
        self._times.append(time)
        self.total += 1
        return True


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before restart k of a child: first · factor^k, capped, jittered.

    The jitter spreads children that died of the same cause; it only shortens a
    delay, so `limit` is a true upper bound.
    """

    first: float = 0.1
    """Seconds before the first restart; 0 restarts at once."""
    factor: float = 2.0
    limit: float = 30.0
    """Longest delay, seconds."""
    jitter: float = 0.1
    """Largest share taken off a delay, in [0, 1]."""

    def __post_init__(self) -> None:
        if not (self.first >= 0 and self.limit >= 0 and math.isfinite(self.limit)):
            raise ConfigError("backoff: first and limit must be finite and 0 or more seconds")
        if not self.factor >= 1:
            raise ConfigError(f"backoff: factor must be 1 or more, not {self.factor}")
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"backoff: jitter must be within [0, 1], not {self.jitter}")

    def delay(self, attempt: int, generator: random.Random) -> float:
        """Seconds before restart number `attempt` (0 = the first in a row).

        `generator` is private to the caller (`seeds.generator`): the same seed
        gives the same delay.
        """
        try:
            full = min(self.limit, self.first * self.factor**attempt)
        except OverflowError:
            full = self.limit if self.first else 0.0
        return full * (1.0 - self.jitter * generator.random())


NO_BACKOFF: Final = Backoff(first=0.0)
"""Restart at once."""

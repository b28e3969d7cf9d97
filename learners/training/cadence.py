"""When a checkpoint is due: every so many steps, or after so many seconds.

Invariant: by seconds, checkpoints cost at most a twentieth of the time, however slow the
disk and however large the model. When they are taken changes nothing in what is trained.

Not here: what a checkpoint is (`checkpoint`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SHARE: Final = 20
"""After a checkpoint of s seconds, the next one by seconds is due SHARE * s later at the
earliest."""


class Cadence:
    """The times of one run's checkpoints. `steps` and `seconds` of 0 ask for none."""

    def __init__(
        self, steps: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._last = clock()
        self._cost = 0.0

    @property
    def enabled(self) -> bool:
        """Whether there will be checkpoints at all."""
        return self._steps > 0 or self._seconds > 0

    def due(self, step: int) -> bool:
        """Whether one should be taken after this step."""
        if self._steps > 0 and step % self._steps == 0:
            return True
        since = self._clock() - self._last
        return self._seconds > 0 and since >= max(self._seconds, SHARE * self._cost)

    def begin(self) -> None:
        """A checkpoint is being written from now on."""
        self._last = self._clock()

    def end(self) -> None:
        """It is written."""
        now = self._clock()
        self._cost, self._last = now - self._last, now

"""Time as the actors see it: the running loop's clock, real or virtual, in seconds.

Invariant: nothing in the runtime reads another clock, so a run under a virtual
clock takes no real time and gives the same times again.

Not here: the virtual clock itself (see `testing`) and wall-clock dates (`store`).
"""

from __future__ import annotations

from types import TracebackType
from typing import Final

import trio

from .errors import ConfigError, DeadlineExceeded

now: Final = trio.current_time
"""Seconds on the running loop's clock. Only differences mean anything."""


class deadline:  # noqa: N801 (reads as a statement: `with deadline("turn", 30):`)
    """Bound a stage of work: `with deadline("turn 3", 30.0): ...`.

    One trio cancel scope and one small object; about 12 µs, so take it per turn,
    not per message. `math.inf` seconds never expire.

    Raises:
        DeadlineExceeded: on leaving the block, if it was cut short by this deadline.
            A cancellation from outside passes through untouched.
        ConfigError: `seconds` is negative or not a number.
    """

    __slots__ = ("_scope", "seconds", "stage")

    def __init__(self, stage: str, seconds: float) -> None:
        if not seconds >= 0:
            raise ConfigError(f"the deadline of {stage} must be 0 or more seconds, not {seconds}")
        self.stage: Final = stage
        self.seconds: Final = seconds
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        """Start the clock."""
        self._scope.deadline = trio.current_time() + self.seconds
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The scope is private, so only the clock can have cancelled it.
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise DeadlineExceeded(f"{self.stage} took longer than {self.seconds:g} s") from None

"""Time as the actors see it: the running loop's clock, real or virtual, in seconds.

Invariant: nothing in the runtime reads another clock, so a run under a virtual
clock takes no real time and gives the same times again.

Not here: the virtual clock itself (see `testing`) and wall-clock dates (`store`).
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

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

    def __enter__(self) -> None:
        """Start the clock."""
        # Made here with its deadline: setting it on a scope that is open costs more.
        self._scope = trio.CancelScope(deadline=trio.current_time() + self.seconds)
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


class rolling_deadline:  # noqa: N801 (as `deadline`)
    """One scope for a chain of stages, each with a deadline of its own.

        with rolling_deadline("episode 7", 3600.0) as limit:
            limit.stage("turn 0", 30.0, now())
            ...
            limit.stage("turn 1", 30.0, now())

    Moving an open scope's deadline costs a quarter of opening a new one, which counts
    where a stage takes microseconds.

    Raises:
        DeadlineExceeded: on leaving the block, if a stage or the whole was cut short;
            names whichever it was.
        ConfigError: a number of seconds is negative or not a number.
    """

    __slots__ = ("_began", "_end", "_name", "_scope", "_seconds", "_stage", "_total")

    def __init__(self, name: str, seconds: float) -> None:
        if not seconds >= 0:
            raise ConfigError(f"the deadline of {name} must be 0 or more seconds, not {seconds}")
        self._name = self._stage = name
        self._total = self._seconds = seconds

    def __enter__(self) -> Self:
        """Start the clock of the whole."""
        self._began = trio.current_time()
        self._end = self._began + self._total
        self._scope = trio.CancelScope(deadline=self._end)
        self._scope.__enter__()
        return self

    def stage(self, name: str, seconds: float, now: float) -> None:
        """Begin the next stage at `now` (the loop's clock); the last one was in time."""
        self._began = now
        until = now + seconds
        if until < self._end:
            self._stage, self._seconds = name, seconds
            self._scope.deadline = until
        else:
            self._stage, self._seconds = self._name, self._total
            self._scope.deadline = self._end

    def current(self) -> tuple[str, float]:
        """The stage under way, and when it began."""
        return self._stage, self._began

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise DeadlineExceeded(f"{self._stage} took longer than {self._seconds:g} s") from None

"""What a forked child has to let go of: processes, connections and locks are its parent's.

Invariant: nothing is kept alive for it. A hook of a fork cannot be taken back, so that there
is one for all, which finds those that still live.

Not here: what letting go means (`jvm`, `pool`).
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Leaver(Protocol):
    """Has something that a forked child must not use."""

    def leave(self) -> None:
        """In the child: let go of it, whatever other threads held when they were left behind."""


_alive: Final[weakref.WeakSet[Leaver]] = weakref.WeakSet()


def leave_when_forked(leaver: Leaver) -> None:
    """Have it let go in every child that is forked while it lives."""
    _alive.add(leaver)


def _forked() -> None:
    for leaver in list(_alive):
        leaver.leave()


os.register_at_fork(after_in_child=_forked)

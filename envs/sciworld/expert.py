"""The expert: the package's own solution of the task, as far as the episode follows it.

The package works out a solution from the start of a task only. So there is advice while
the episode has gone that way, and none once it has left it: no guess, and no way back.
What costs no time and asks nothing back (looking about, the inventory, what is no command)
leaves the world as it is, and the advice stands.

Invariant: advice is the next action of the path whose earlier actions were all said, in order.

Not here: working the path out (`simulator`, `pool`).
"""

from __future__ import annotations

from collections.abc import Callable


class Guide:
    """Follows one episode."""

    __slots__ = ("_at", "_left", "_path", "_said", "_solve")

    def __init__(self, solve: Callable[[], tuple[str, ...]]) -> None:
        """`solve` gives the path; it takes long, and is called when advice is first wanted."""
        self._solve = solve
        self._path: tuple[str, ...] | None = None
        self._said: list[tuple[str, bool]] = []
        self._at = 0
        self._left = False

    def hear(self, action: str, *, idle: bool) -> None:
        """An action was taken; `idle`: it left the world as it was."""
        self._said.append((action, idle))

    def advise(self) -> str | None:
        """The next action from here; None off the path and at its end."""
        if self._path is None:
            self._path = self._solve()
        for action, idle in self._said:
            if action == self._next():
                self._at += 1
            elif not idle:
                self._left = True
        self._said.clear()
        return self._next()

    def _next(self) -> str | None:
        path = self._path or ()
        return path[self._at] if not self._left and self._at < len(path) else None

"""What is asked of one live session: a step in two exchanges with the Java process.

The package's own step looks around before and after, keeps a history and lists what could
be done, for about 60 ms. Here only what moves the world is called.

Invariant: `step` answers as `PythonInterface.step` does, word for word, and draws the same
random numbers. (The package's Python class lists all valid actions after each step, and the
listing draws, too: where there are bees, its worlds go another way from then on. Here no
question about a session moves it.)

Not here: how a session begins, and how several take turns (`machinery`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...engine.errors import EnvironmentFault
from .gateway import Call
from .machinery import Live, Machinery

LONGEST: Final = 10_000
"""Characters of an action that are looked at, and kept; the longest that means anything has
some 200."""

_BLANKS: Final = "".join(map(chr, range(33)))
"""What Java trims."""
_UNKNOWN: Final = (
    "Unknown action.  Type 'help' for a list of actions, and 'objects' for a list of possible "
    "object referents. "
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What an action did."""

    observation: str
    score: int
    """Of the task so far, 0 to 100; below 0 once the task is failed for good."""
    done: bool
    """The simulator says that the task is over."""
    moves: int
    """Ticks of the simulated world so far: some actions cost none, waiting costs several."""


def step(machinery: Machinery, live: Live, action: str) -> Moved:
    """Take an action.

    Raises:
        EnvironmentFault: the simulator raised.
        EnvironmentLost: the Java process is gone.
    """
    action = action[:LONGEST]
    said = _said(machinery, live, action)
    if said is None:
        said = _moved(machinery, live, action) or _UNKNOWN
    return Moved(said, round(100 * live.score), live.done, live.moves)


def look(machinery: Machinery, live: Live) -> str:
    """The room."""
    return _told(machinery, live, "freeActionLook")


def inventory(machinery: Machinery, live: Live) -> str:
    """What is carried."""
    return _told(machinery, live, "freeActionInventory")


def valid_actions(machinery: Machinery, live: Live) -> tuple[str, ...]:
    """All actions that would do something, in order. Takes about 100 ms."""
    turn = [*machinery.turn(live), *machinery.aside()]
    listing = Call(live.agent, "getValidActionObjectCombinations")
    return tuple(sorted(set(machinery.texts(*turn, listing))))


def _moved(machinery: Machinery, live: Live, action: str) -> str:
    gateway = machinery.gateway
    result = gateway.calls(*machinery.turn(live), Call(live.agent, "step", action))[-1]
    text, live.ids, live.moves = gateway.calls(
        Call(result, "toString"), machinery.count, Call(live.agent, "getCurIterations")
    )
    gateway.drop(result)
    # A Scala triple in print: no text in it can hide where the last two begin.
    said, score, done = str(text)[1:-1].rsplit(",", 2)
    if done not in ("true", "false"):
        raise EnvironmentFault(f"ScienceWorld's simulator answered {str(text)[-80:]!r}")
    live.score, live.done = float(score), done == "true"
    return said


def _said(machinery: Machinery, live: Live, action: str) -> str | None:
    """The answer to the three words that are no action; None for any other."""
    word = action.strip(_BLANKS).lower()
    if word == "task":
        return f"Task description:\n{live.description}"
    if word == "help":
        found = machinery.texts(Call(live.agent, "getPossibleActions"))
        return "\n\t".join(("Possible actions: ", *found))
    if word == "objects":
        found = machinery.texts(*machinery.turn(live), Call(live.agent, "getPossibleObjects"))
        return "\n\t".join(("Possible object references: ", *found))
    return None


def _told(machinery: Machinery, live: Live, method: str) -> str:
    *_, text, live.ids = machinery.gateway.calls(
        *machinery.turn(live), Call(live.agent, method), machinery.count
    )
    return str(text)

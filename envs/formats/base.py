"""What an action format is: completion text in, action or a sentence about the error out.

Invariants:

* `parse` accepts any text and never raises; it gives either an action or an error,
  never both and never neither;
* an action is stripped and not empty;
* `parse(render(thought, action))` gives the action back, for an action that is
  stripped, not empty and does not itself use the format's markers.

Not here: what an action means (the environments), and the turn that a format error
costs (the session).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from one completion."""

    action: str | None
    """The action for the environment; None if the format was not met."""
    thought: str = ""
    """The reasoning that came with it; "" where the format has none."""
    error: str = ""
    """One short sentence for the agent about what to change; "" if there is an action."""


class ActionFormat(Protocol):
    """Reads and writes actions. Stateless, so one object serves every session."""

    @property
    def name(self) -> str:
        """The name under which `get_format` finds it."""

    def parse(self, completion: str) -> Parsed:
        """Read a completion. Any text is legal."""

    def render(self, thought: str, action: str) -> str:
        """Write the completion that an agent would write, without the closer."""

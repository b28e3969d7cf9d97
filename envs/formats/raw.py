"""Raw: the completion is the action, without the space around it.

For closed-vocabulary policies and worlds whose actions are single words. There is no
thought, so `render` leaves it out.

Not here: any marker, quoting or escaping.
"""

from __future__ import annotations

from typing import Final

from .base import Parsed

_EMPTY: Final = "Error: the response is empty. Write one action."


class Raw:
    """The format without a form."""

    @property
    def name(self) -> str:
        """`raw`."""
        return "raw"

    def parse(self, completion: str) -> Parsed:
        """Strip the completion; empty text is the only error."""
        action = completion.strip()
        return Parsed(action) if action else Parsed(None, error=_EMPTY)

    def render(self, thought: str, action: str) -> str:
        """The action alone."""
        return action

"""ReAct: a thought, then an action, each under its marker.

    Thought:
    I need wood first.

    Action:
    get 1 oak log

As AgentGym reads it: what follows the *last* `Action:` is the action, and what
follows the first `Thought:` before it is the thought, whatever stands around them.
One difference: a completion without an action is an error here and the environment
is not stepped, where AgentGym may hand it an empty action.

The strict form (`react-strict`) also asks for exactly one of each marker, in order,
with nothing before the thought. It suits training a model to keep to the format, and
is the rule that AgentGym's TextCraft and BabyAI clients apply to `Action:`.

Not here: which part of the action a world uses (its first line, its letters); the
worlds clean up their own input.
"""

from __future__ import annotations

from typing import Final

from .base import Parsed

_THOUGHT: Final = "Thought:"
_ACTION: Final = "Action:"

_NO_ACTION: Final = 'Error: no action found. End your response with "Action:" and one action.'
_EMPTY_ACTION: Final = 'Error: the action is empty. Write one action after "Action:".'
_ONE_ACTION: Final = 'Error: write "Action:" once, followed by one action.'
_ONE_THOUGHT: Final = 'Error: start your response with one "Thought:", then write "Action:".'


class React:
    """The ReAct format, lenient or strict."""

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict

    @property
    def name(self) -> str:
        """`react`, or `react-strict`."""
        return "react-strict" if self._strict else "react"

    def parse(self, completion: str) -> Parsed:
        """Read thought and action; see the module's text for what is an error."""
        before, marker, after = completion.rpartition(_ACTION)
        if not marker:
            return Parsed(None, _thought(completion), _NO_ACTION)
        thought, action = _thought(before), after.strip()
        if self._strict:
            if _ACTION in before:
                return Parsed(None, thought, _ONE_ACTION)
            if before.count(_THOUGHT) != 1 or not before.lstrip().startswith(_THOUGHT):
                return Parsed(None, thought, _ONE_THOUGHT)
        if not action:
            return Parsed(None, thought, _EMPTY_ACTION)
        return Parsed(action, thought)

    def render(self, thought: str, action: str) -> str:
        """Write it as AgentTraj's conversations do."""
        return f"{_THOUGHT}\n{thought}\n\n{_ACTION}\n{action}"


def _thought(text: str) -> str:
    """What follows the first marker; all of the text where there is none."""
    _, marker, after = text.partition(_THOUGHT)
    return (after if marker else text).strip()

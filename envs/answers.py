"""What a world may answer: text that can be sent, and sound step results.

Invariant: what passed here becomes a message, in this process or another, and a reward
that can be summed.

Not here: the laws of whole episodes (`laws`), the reward range (the session's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..engine.errors import EnvironmentFault
from .base import StepResult


def require_text(what: str, text: object) -> None:
    """Refuse what an environment says if it is no text, or text that no message can carry.

    Raises:
        EnvironmentFault: it is of another type, or has half a character (a lone surrogate).
    """
    if type(text) is not str:
        raise EnvironmentFault(f"{what} answered {type(text).__name__}, not text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EnvironmentFault(f"{what} answered text that is not Unicode: {error}") from None


def require_result(result: object) -> StepResult:
    """Refuse garbage before it becomes a reward.

    Raises:
        EnvironmentFault: it is no StepResult, or a field of it is of another type.
    """
    if type(result) is not StepResult:
        raise EnvironmentFault(f"step answered {type(result).__name__}, not a StepResult")
    require_text("step", result.observation)
    if not isinstance(result.reward, int | float) or not math.isfinite(result.reward):
        raise EnvironmentFault(f"step answered the reward {result.reward!r}")
    for flag in (result.terminated, result.truncated, result.success):
        if type(flag) is not bool:
            raise EnvironmentFault(f"step answered the flag {flag!r}, not a bool")
    return result


def require_actions(actions: Sequence[str]) -> tuple[str, ...]:
    """Refuse a list of actions in which something is no text."""
    listed = tuple(actions)
    for action in listed:
        require_text("available_actions", action)
    return listed


def require_facts(facts: Mapping[str, str | int]) -> Mapping[str, str | int]:
    """Refuse facts of which one is neither text nor a whole number.

    Raises:
        EnvironmentFault: one is.
    """
    for name, value in facts.items():
        if type(value) is not int:
            require_text(f"about's {name}", value)
    return facts

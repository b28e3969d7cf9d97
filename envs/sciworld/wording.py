"""What the published trajectories word otherwise than the package of today.

They were made with an older release. It spelled two names in two words, gave temperatures
of the task without their unit, and listed things in no particular order.

Invariant: by `PUBLISHED` an agent hears and says the old names, and by `SERVER` the
simulator's text goes through untouched, either way.

Not here: which world is played (`environment`), and comparing with the data (`envs.replay`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final


class Wording(StrEnum):
    """Which texts."""

    SERVER = "server"
    """The package's own, which live servers send."""
    PUBLISHED = "published"
    """As in the published trajectories."""


_NAMES: Final = (("greenhouse", "green house"), ("bathtub", "bath tub"))
"""Names of today and of then."""

_UNIT: Final = " degrees celsius"


def describe(text: str, wording: Wording) -> str:
    """The task's description in that wording."""
    if wording is Wording.PUBLISHED:
        text = text.replace(_UNIT, " degrees")
    return say(text, wording)


def say(text: str, wording: Wording) -> str:
    """An observation of the simulator in that wording."""
    if wording is Wording.PUBLISHED:
        for now, then in _NAMES:
            text = text.replace(now, then)
    return text


def hear(action: str, wording: Wording) -> str:
    """An agent's action as the simulator is to be told it."""
    if wording is Wording.PUBLISHED:
        for now, then in _NAMES:
            action = re.sub(then, now, action, flags=re.IGNORECASE)
    return action


def unordered(text: str) -> str:
    """The text with each of its listings in one fixed order, whatever order they had."""
    lines: list[str] = []
    listed: list[str] = []
    for line in text.split("\n"):
        if line.startswith("\t"):
            listed.append(_line(line))
            continue
        lines += [*sorted(listed), line]
        listed = []
    return "\n".join([*lines, *sorted(listed)])


def _line(line: str) -> str:
    """One thing, and what is on it or in it."""
    thing, mark, contents = line.partition(" is: ")
    if not mark:
        return _brackets(line, _listing)
    stop = "." if contents.endswith(".") else ""
    return f"{_brackets(thing, _listing)}{mark}{_listing(contents.removesuffix('.'))}{stop}"


def _listing(text: str) -> str:
    """Things between commas. What a thing is at the moment follows it behind a comma, too."""
    things: list[str] = []
    for part in _parts(text):
        if things and part.startswith(_STATES):
            things[-1] += f", {part}"
        else:
            things.append(_brackets(part, _listing))
    return ", ".join(sorted(things))


_STATES: Final = ("which is ", "currently reading ")
_HOLDING: Final = "(containing "


def _brackets(text: str, inner: Callable[[str], str]) -> str:
    """Apply `inner` to what the outermost brackets list."""
    start = text.find(_HOLDING)
    if start < 0:
        return text
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            held = inner(text[start + len(_HOLDING) : place])
            return f"{text[:start]}{_HOLDING}{held}){_brackets(text[place + 1 :], inner)}"
    return text


def _parts(text: str) -> Iterator[str]:
    """Split at the commas outside of brackets."""
    depth = start = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth and text.startswith(", ", place):
            yield text[start:place]
            start = place + 2
    yield text[start:]

"""What the engine and a worker process say to each other.

    Load(make) → Loaded                    once, first
    Open(7) → Done                         one session, numbered by the engine
    Reset(7, task, seed) → Said
    Step(7, action) → StepResult
    Hint(7) → Hinted · List(7) → Listed · About(7) → Facts
    Close(7) → Done                        also told, when nobody waits for it
    Census → Counted

What the world raised comes back as `Raised`, in place of any answer but `Loaded`'s too.

Invariant: an error of a class of ours is raised again as that class with its text; any
other keeps kind and text, so that a fault reads the same wherever the world ran.

Not here: the frames that carry these (`engine.wire`).
"""

from __future__ import annotations

from typing import Final

from ...engine import errors
from ...engine.codec import Message
from ...engine.errors import AskFailed, FaultKind, RollwaveError, classify
from ..base import Task

NAME: Final = "environments"
"""Under which a worker serves its sessions."""


class Load(Message, frozen=True):
    """Import the environment."""

    paths: tuple[str, ...]
    """Where the engine's process imports from."""
    make: bytes
    """As `importable.pack` gives it."""


class Loaded(Message, frozen=True):
    """The environment is imported; sessions can be opened."""


class Open(Message, frozen=True):
    """Make a session."""

    session: int


class Reset(Message, frozen=True):
    """`Environment.reset`."""

    session: int
    task: Task
    seed: int


class Said(Message, frozen=True):
    """The first observation."""

    observation: str


class Step(Message, frozen=True):
    """`Environment.step`."""

    session: int
    action: bytes
    """UTF-8 with surrogates let through: any text is a legal action, half a character too."""


class Hint(Message, frozen=True):
    """`Environment.expert`."""

    session: int


class Hinted(Message, frozen=True):
    """The expert's action."""

    action: str | None


class List(Message, frozen=True):
    """`Environment.available_actions`."""

    session: int


class Listed(Message, frozen=True):
    """The actions."""

    actions: tuple[str, ...]


class About(Message, frozen=True):
    """`Environment.about`."""

    session: int


class Facts(Message, frozen=True):
    """The facts."""

    facts: dict[str, str | int]


class Close(Message, frozen=True):
    """`Environment.close`. Closing what is not open does nothing."""

    session: int


class Done(Message, frozen=True):
    """It is done."""


class Census(Message, frozen=True):
    """How many sessions are open?"""


class Counted(Message, frozen=True):
    """As many."""

    sessions: int
    calls: int
    """Answered since the start."""


class Raised(Message, frozen=True):
    """What the world raised instead of answering."""

    name: str
    """The class, if it is one of `engine.errors`."""
    kind: str
    text: str

    def error(self) -> RollwaveError:
        """The error to raise in its place."""
        found = getattr(errors, self.name, None) if self.name in _OURS else None
        return found(self.text) if found is not None else AskFailed(self.kind, self.text)


_OURS: Final = frozenset(
    {"ConfigError", "EnvironmentFault", "EnvironmentLost", "BadDataFile", "MissingDependency"}
)

Request = Load | Open | Reset | Step | Hint | List | About | Close | Census


def raised(error: BaseException) -> Raised:
    """Put what the world raised into a message."""
    name = type(error).__name__
    if name in _OURS and type(error).__module__ == errors.__name__:
        return Raised(name, "", _sendable(str(error)))
    kind, text = classify(error, unknown=FaultKind.ENVIRONMENT)
    return Raised("", kind.value, _sendable(text))


def _sendable(text: str) -> str:
    return text[:_LONGEST].encode(errors="replace").decode()


_LONGEST: Final = 10_000

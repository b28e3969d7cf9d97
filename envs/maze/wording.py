"""What an agent reads and writes in a maze: AgentGym's sentences, or a closed vocabulary.

Invariant: in the terse wording every observation and action is made of the words
of `VOCABULARY`, whatever the agent wrote.

Not here: the rules of movement (`environment`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .layout import DOWN, LEFT, RIGHT, UP, Position

MAX_SIZE: Final = 16
"""Largest maze that the closed vocabulary has numbers for."""

VOCABULARY: Final = (
    *("goal", "pos", "walls", "none", "up", "down", "left", "right", "success"),
    *(str(number) for number in range(MAX_SIZE)),
)
"""Every word that a terse maze says or understands: 25 words."""


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to talk about mazes."""

    actions: Mapping[str, int]
    """Direction bit of each action text."""
    place: str
    """Goal and position: a format string with goal row, goal column, row, column, walls."""
    walls: tuple[str, ...]
    """Text for each combination of open sides, indexed by their bits."""
    success: str
    failure: str
    opening: str = ""
    """Put before the first observation."""

    def describe(self, goal: Position, position: Position, sides: int) -> str:
        """The observation at a position whose open sides are `sides`."""
        return self.place.format(*goal, *position, self.walls[sides])


def _sentence(sides: int) -> str:
    """AgentGym's wall sentence; its order is right, left, above, below."""
    spelled = ((RIGHT, "to your right"), (LEFT, "to your left"), (UP, "above you"))
    walls = [text for side, text in (*spelled, (DOWN, "below you")) if not sides & side]
    if not walls:
        return "There are no walls near you."
    return f"There {'is a wall' if len(walls) == 1 else 'are walls'} {', '.join(walls)}."


def _words(sides: int) -> str:
    spelled = ((UP, "up"), (DOWN, "down"), (LEFT, "left"), (RIGHT, "right"))
    return " ".join(text for side, text in spelled if not sides & side) or "none"


_PLACE: Final = "The goal is at position {}, {}. Your current position is at position {}, {}. {}\n"

TEXT: Final = Wording(
    actions={"move up": UP, "move down": DOWN, "move left": LEFT, "move right": RIGHT},
    place=_PLACE,
    walls=tuple(_sentence(sides) for sides in range(16)),
    success="Success\n",
    failure="Failure\n",
)
"""AgentGym's sentences, each with the newline that its server sends."""

TERSE: Final = Wording(
    actions={"up": UP, "down": DOWN, "left": LEFT, "right": RIGHT},
    place="goal {} {} pos {} {} walls {}",
    walls=tuple(_words(sides) for sides in range(16)),
    success="success",
    failure="",
)
"""One word a token: for models with a closed vocabulary."""

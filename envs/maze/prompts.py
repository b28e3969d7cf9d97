"""What an agent is told before its first move.

The double-T maze's texts are those of the published trajectories, word for word:
a model trained on them meets the same tokens here. Their worked example is a walk
through the maze itself, so it is walked here rather than written down.

Not here: observations (`wording`).
"""

from __future__ import annotations

from typing import Final

from ...engine.trajectory import ChatMessage
from .layout import STEPS
from .tasks import DOUBLE_T, DOUBLE_T_GOAL
from .wording import TEXT

DOUBLE_T_PROMPT: Final = (
    ChatMessage("user", "You are an expert maze solver."),
    ChatMessage(
        "assistant",
        "OK. I'll follow your instructions and try my best to solve the task.",
        False,
    ),
)

_EXAMPLE_START: Final = (5, 6)
_EXAMPLE_MOVES: Final = (
    *("left", "left", "up", "left", "down", "left", "down", "left"),
    *("right", "down", "right", "right", "down", "down", "right", "down"),
)


def _example() -> str:
    """The published example: from (5, 6) into the left arm and back, with six blocked moves."""
    row, column = _EXAMPLE_START
    lines = []
    for move in _EXAMPLE_MOVES:
        sides = DOUBLE_T.open((row, column))
        lines.append(f"environment: {TEXT.describe(DOUBLE_T_GOAL, (row, column), sides)}")
        action = f"move {move}"
        lines.append(f"action: {action}\n")
        if TEXT.actions[action] & sides:
            down, right = STEPS[TEXT.actions[action]]
            row, column = row + down, column + right
    lines.append(f"environment: {TEXT.success}")
    return "".join(lines)


_FORMAT: Final = """Thought:
<Your Thought>

Action:
<Your Action>"""

DOUBLE_T_OPENING: Final = (
    "Your objective is to reach the goal in as few steps as possible. At each step you will be "
    "given information about where the goal is, your current position,\n"
    "and the walls that surround you. \n\n"
    "When you move right you increase your y position by 1, when you move down you increase your "
    "x position by 1. \n\n"
    f"Here is an example.\n\n```\n{_example()}```\n\n"
    'Your possible actions are "move up", "move down", "move left", "move right". Formally, your '
    f"return should be in this format:\n{_FORMAT}\n\n"
    "Now let's start a new game. Return your action and your thought in the format above strictly. "
    "Now, make the optimal action given the current environment state:\n"
)
"""Put before the first observation, in the same message, as AgentGym's client does."""

GRID_PROMPT: Final = (
    ChatMessage(
        "user",
        "You are in a maze of square cells. Walk to the goal in as few moves as you can. A "
        "position is a row, counted downwards from 0, and a column, counted rightwards from 0. "
        "A move into a wall leaves you where you are and still counts.\n\n"
        'Your actions are "move up", "move down", "move left" and "move right". Answer in this '
        f"format, with one action:\n{_FORMAT}",
    ),
    ChatMessage("assistant", "I will walk to the goal, one move at a time.", False),
)

"""BabyAI (`babyai-v1`): instructions in a grid of rooms, told in text. Needs the extra `babyai`.

The worlds are those of the `minigrid` package; numbers, texts and actions are AgentGym's.
Options: `scoring` ("minigrid": the level's own; "agentgym": that server's, which can be
farmed), `wording` ("published": as in the published trajectories; "server": with the list
of available actions that live servers append) and `turn_limit`.
"""

from __future__ import annotations

import math
from typing import Final

from ...engine.errors import ConfigError
from ...engine.trajectory import ChatMessage
from ..base import EnvFamily, EnvSpec
from .environment import BabyAI, Scoring, Wording
from .tasks import splits

__all__ = ["PROMPT", "BabyAI", "families"]

PROMPT: Final = (
    ChatMessage(
        "user",
        "You are an exploration master that wants to finish every goal you are given. Every round "
        "I will give you an observation, and you have to respond an action and your thought based "
        "on the observation to finish the given task. You are placed in a room and you need to "
        "accomplish the given goal with actions.\n\nYou can use the following actions: \n\n"
        "- turn right \n\n- turn left \n\n- move forward \n\n- go to <obj> <id> \n\n"
        "- pick up <obj> <id> \n\n- go through <door> <id>: <door> must be an open door. \n\n"
        "- toggle and go through <door> <id>: <door> can be a closed door or a locked door. If you "
        "want to open a locked door, you need to carry a key that is of the same color as the "
        "locked door. \n\n- toggle: there is a closed or locked door right in front of you and you "
        "can toggle it.\nYour response should use the following format:\nThought:\n<Your Thought>"
        "\n\nAction:\n<Your Action>",
    ),
    ChatMessage(
        "assistant",
        "OK. I'll follow your instructions and try my best to solve the task.",
        False,
    ),
)
"""The opening of the published trajectories, word for word."""

_SOLVED: Final = ((64, 0.9), (40, 0.85), (20, 0.75), (10, 0.6), (5, 0.45), (2, 0.3), (1, 0.15))
"""Share of all tasks that the expert solves within so many turns, rounded down: measured on 25
seeds of each level. AgentGym's 18 levels alone: 0.98, 0.96, 0.91, 0.84, 0.73, 0.60 and 0.35."""


def _build(*, id: str, scoring: str, wording: str, turn_limit: int) -> EnvSpec:
    if scoring not in tuple(Scoring):
        raise ConfigError(f"babyai-v1: scoring is {' or '.join(Scoring)}, not {scoring!r}")
    if wording not in tuple(Wording):
        raise ConfigError(f"babyai-v1: wording is {' or '.join(Wording)}, not {wording!r}")
    if not 1 <= turn_limit <= 1000:
        raise ConfigError(f"babyai-v1: turn_limit must be 1 to 1000, not {turn_limit}")
    return EnvSpec(
        id=id,
        make=lambda: BabyAI(Scoring(scoring), Wording(wording)),
        splits=splits(),
        prompt=PROMPT,
        turn_limit=turn_limit,
        reward_range=(0.0, 1.0) if scoring == Scoring.MINIGRID else (-math.inf, math.inf),
        cost="worker",
        expert_success=next(share for turns, share in _SOLVED if turn_limit >= turns),
    )


def families() -> list[EnvFamily]:
    """The one family."""
    return [
        EnvFamily(
            id="babyai-v1",
            summary="40 levels of BabyAI's instructions in a grid of rooms, told in text",
            build=_build,
            options={"scoring": "minigrid", "wording": "published", "turn_limit": 20},
        )
    ]

"""TextCraft (`textcraft-v1`): craft an item of Minecraft from raw things, in text.

Recipes are those of Minecraft 1.16; commands, answers and prompt are AgentGym's. The
one option is `turn_limit`. Its default lets the expert finish every task (the longest
shortest plan, a netherite block, has 48 actions); AgentGym's own scripts stop after 20
or 30 turns.
"""

from __future__ import annotations

from typing import Final

from ...engine.errors import ConfigError
from ...engine.trajectory import ChatMessage
from ..base import EnvFamily, EnvSpec
from .environment import TextCraft
from .tasks import plan_lengths, splits

__all__ = ["PROMPT", "TextCraft", "families"]

PROMPT: Final = (
    ChatMessage(
        "user",
        "You are given few useful crafting recipes to craft items in Minecraft. Crafting "
        'commands are of the format "craft [target object] using [input ingredients]".\n'
        "Every round I will give you an observation, you have to respond an action based on the "
        'state and instruction. You can "get" an object (ingredients) from the inventory or the '
        'environment, look-up the game inventory by "inventory", or "craft" (target) using any of '
        "the crafting commands. You can use ONLY these crafting commands provided, do not use your "
        "own crafting commands. However, if the crafting command uses a generic ingredient like "
        '"planks", you can use special types of the same ingredient e.g. "dark oak planks" in the '
        "command instead.\nYour response should use the following format:\n\n"
        "Thought:\n ... \n\nAction:\n ... ",
    ),
    ChatMessage(
        "assistant",
        "OK. I'll follow your instructions and try my best to solve the task.",
        False,
    ),
)
"""The opening of the published trajectories, word for word, so that models trained on them
meet the same text here."""


def _build(*, id: str, turn_limit: int) -> EnvSpec:
    if not 1 <= turn_limit <= 1000:
        raise ConfigError(f"textcraft-v1: turn_limit must be 1 to 1000, not {turn_limit}")
    solved = sum(length <= turn_limit for length in plan_lengths())
    return EnvSpec(
        id=id,
        make=TextCraft,
        splits=splits(),
        prompt=PROMPT,
        turn_limit=turn_limit,
        expert_success=solved / len(plan_lengths()),
    )


def families() -> list[EnvFamily]:
    """The one family."""
    return [
        EnvFamily(
            id="textcraft-v1",
            summary="craft any of Minecraft's 562 craftable items from raw things",
            build=_build,
            options={"turn_limit": 50},
        )
    ]

"""Wordle: with a hidden word drawn anew each turn, as AgentGym plays it (`wordle-v1`),
and with a fixed one (`wordle-fixed-v1`).

Option `words`: how many words are in play and spelled out in the prompt. For the
fixed word 0, its default, means all 4,635 shipped words, not spelled out.
"""

from __future__ import annotations

from ...engine.errors import ConfigError
from ..base import EnvFamily, EnvSpec
from .environment import Wordle
from .prompts import PROMPT
from .tasks import MOST_WORDS, fixed, redrawn

__all__ = ["Wordle", "families"]


def _redrawn(*, id: str, words: int) -> EnvSpec:
    _check(id, words, 10)
    games, splits = redrawn(words)
    return EnvSpec(
        id=id,
        make=lambda: Wordle(games),
        splits=splits,
        prompt=PROMPT,
        turn_limit=8,  # as AgentGym's evaluation scripts; two more than there are guesses
    )


def _fixed(*, id: str, words: int) -> EnvSpec:
    _check(id, words, 10 if words else 0)
    games, splits = fixed(words)
    return EnvSpec(
        id=id,
        make=lambda: Wordle(games),
        splits=splits,
        prompt=PROMPT,
        turn_limit=8,
        expert_success=0.99,  # six guesses are too few for some rare words
    )


def _check(id: str, words: int, least: int) -> None:
    if not least <= words <= MOST_WORDS:
        raise ConfigError(f"{id}: words must be {least} to {MOST_WORDS}, not {words}")


def families() -> list[EnvFamily]:
    """The two families of Wordle."""
    return [
        EnvFamily(
            id="wordle-v1",
            summary="guess a word that is drawn anew from the words still possible",
            build=_redrawn,
            options={"words": 400},
        ),
        EnvFamily(
            id="wordle-fixed-v1",
            summary="guess a fixed word in six guesses",
            build=_fixed,
            options={"words": 0},
        ),
    ]

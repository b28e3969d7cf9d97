"""ALFWorld (`alfworld-v1`): household tasks in text, on an engine of our own.

Six types of task in 120 published rooms: put something somewhere, two of them, clean, heated
or cooled, or look at it in the light. Task numbers 0 to 2619 are AgentGym's. Options:

* `wording`: texts of alfworld "0.3.3" (`put apple 1 in/on fridge 1`; AgentGym's) or "0.4.2"
  (`move apple 1 to fridge 1`);
* `actions`: which observations list the commands, the "first" as in AgentGym, "all" or "none";
* `expert`: "search" uses only what was seen in the episode, "planner" knows everything.
"""

from __future__ import annotations

from typing import Final

from ...engine.errors import ConfigError
from ..base import EnvFamily, EnvSpec
from .environment import AlfWorld
from .prompts import prompt
from .tasks import SPLITS, numbered
from .wording import WORDINGS

__all__ = ["AlfWorld", "families"]

_TURN_LIMIT: Final = 30
"""As AgentGym's evaluation scripts; the environment's own limit is 50."""

_SEARCH_SUCCESS: Final = 0.95
"""Of the 3,120 tasks the searcher solves 96.25 % within 30 turns; the rest take it longer."""


def _build(*, id: str, wording: str, actions: str, expert: str) -> EnvSpec:
    if wording not in WORDINGS:
        raise ConfigError(f"alfworld-v1: wording is 0.3.3 or 0.4.2, not {wording!r}")
    if actions not in ("first", "all", "none"):
        raise ConfigError(f"alfworld-v1: actions is first, all or none, not {actions!r}")
    if expert not in ("search", "planner"):
        raise ConfigError(f"alfworld-v1: expert is search or planner, not {expert!r}")
    spoken = WORDINGS[wording]
    knows = expert == "planner"
    return EnvSpec(
        id=id,
        make=lambda: AlfWorld(numbered, spoken, show=actions, knows=knows),
        splits=SPLITS,
        prompt=prompt(spoken),
        turn_limit=_TURN_LIMIT,
        expert_success=1.0 if knows else _SEARCH_SUCCESS,
    )


def families() -> list[EnvFamily]:
    """The one family."""
    return [
        EnvFamily(
            id="alfworld-v1",
            summary="household tasks of six types in ALFWorld's 120 rooms",
            build=_build,
            options={"wording": "0.3.3", "actions": "first", "expert": "search"},
        )
    ]

"""ScienceWorld (`sciworld-v1`): primary-school science in text. Needs `sciworld` and Java.

The world is that of the `scienceworld` package; numbers, texts and limits are AgentGym's.
Options:

* `ids`: what the task numbers mean, "data" (the published trajectories), "server" (AgentGym's
  server of today) or "all" (the package's own order); see `tasks`;
* `simplification`: "" (AgentGym's server), "easy" (the published trajectories: doors are open,
  places can be reached by `teleport to`), or the package's names, separated by commas;
* `wording`: "server" (the package's of today) or "published" (a few names of its older release);
* `actions`: which are told as available, all that are "valid" (slow to find) or a "few";
* `turn_limit`: 50, since published episodes take up to 43; AgentGym evaluates with 30.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from ...engine.errors import ConfigError
from ..base import EnvFamily, EnvSpec
from .environment import Actions, SciWorld
from .jvm import find_all
from .pool import LIMITS, Simulators
from .prompts import PROMPT
from .tasks import Ids, table
from .wording import Wording

__all__ = ["PROMPT", "SciWorld", "families"]

SIMPLIFICATIONS: Final = (
    *("easy", "teleportAction", "selfWateringFlowerPots", "openContainers"),
    *("openDoors", "noElectricalAction"),
)
"""What the package can make easier; "easy" is most of the others."""

_SOLVED: Final = ((100, 0.85), (50, 0.7), (40, 0.65), (30, 0.55), (20, 0.4), (10, 0.15), (1, 0.0))
"""Share of tasks that the package's own solutions solve within so many turns, splits counting
alike, rounded down: measured on eight variations of each kind, without simplification and with
"easy". Of `train`, `dev` and `test` alone: 0.99, 0.92, 0.91, 0.74, 0.54 and 0.24. Most solutions
of three kinds of `unseen` take more than 100 moves: mendelian-genetics-known-plant and
-unknown-plant, inclined-plane-friction-unnamed-surfaces."""


@cache
def simulators() -> Simulators:
    """The Java process of this process, which all its sessions share. It starts when needed."""
    return Simulators()


def _build(
    *, id: str, ids: str, simplification: str, wording: str, actions: str, turn_limit: int
) -> EnvSpec:
    for name, value, kinds in (
        ("ids", ids, Ids),
        ("wording", wording, Wording),
        ("actions", actions, Actions),
    ):
        if value not in tuple(kinds):
            raise ConfigError(f"sciworld-v1: {name} is {', '.join(kinds)}, not {value!r}")
    for part in filter(None, simplification.split(",")):
        if part not in SIMPLIFICATIONS:
            known = ", ".join(SIMPLIFICATIONS)
            raise ConfigError(
                f"sciworld-v1: there is no simplification {part!r}; there are {known}"
            )
    if not 1 <= turn_limit <= 1000:
        raise ConfigError(f"sciworld-v1: turn_limit must be 1 to 1000, not {turn_limit}")
    numbering = table(Ids(ids))
    claims = _SOLVED if simplification in ("", "easy") else ((1, 0.0),)
    return EnvSpec(
        id=id,
        make=lambda: SciWorld(
            simulators().open(),
            numbering,
            simplification=simplification,
            wording=Wording(wording),
            actions=Actions(actions),
        ),
        splits=numbering.splits(),
        prompt=PROMPT,
        turn_limit=turn_limit,
        reward_range=(-1.0, 1.0),
        cost="worker",
        needs=find_all,
        workers=LIMITS,
        expert_success=next(share for turns, share in claims if turn_limit >= turns),
    )


def families() -> list[EnvFamily]:
    """The one family."""
    return [
        EnvFamily(
            id="sciworld-v1",
            summary="30 kinds of primary-school science in ScienceWorld's own simulator",
            build=_build,
            options={
                "ids": "data",
                "simplification": "",
                "wording": "server",
                "actions": "valid",
                "turn_limit": 50,
            },
        )
    ]

"""The 40 levels, played by the `minigrid` package itself: generation, steps and rewards.

A level and a seed give one grid and one instruction. What is wrapped here is the
package's own level; only its picture of the view is left out, since `sight` reads the
view straight off the grid, which is most of the time of a step.

Invariant: a `Level` is what AgentGym plays under the same level number and seed. The
number means the class and settings of the minigrid release that AgentGym pins (below
2.5). Later releases generate the same grids; the one id that changed its meaning,
GoToObjS6, is pinned here. No generator of the process is touched: the seed alone decides.

Not here: what the agent sees (`sight`), texts (`wording`), which tasks there are (`tasks`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from ...engine.errors import ConfigError, MissingDependency
from .sight import View, look

LEVELS: Final[tuple[str, ...]] = (
    *("GoToRedBallGrey", "GoToRedBall", "GoToRedBallNoDists", "GoToObjS6", "GoToLocalS8N7"),
    *("GoToObjMazeS7", "GoToImpUnlock", "GoToSeqS5R2", "GoToRedBlueBall", "GoToDoor"),
    *("GoToObjDoor", "Open", "OpenRedDoor", "OpenDoorLoc", "OpenRedBlueDoorsDebug"),
    *("OpenDoorsOrderN4Debug", "Pickup", "UnblockPickup", "PickupLoc", "PickupDistDebug"),
    *("PickupAbove", "PutNextLocalS6N4", "PutNextS7N4Carrying", "Unlock", "UnlockLocalDist"),
    *("KeyInBox", "UnlockPickupDist", "BlockedUnlockPickup", "UnlockToUnlock", "ActionObjDoor"),
    *("FindObjS7", "KeyCorridorS6R3", "OneRoomS20", "MoveTwoAcrossS8N9", "SynthS5R2"),
    *("SynthLoc", "SynthSeq", "MiniBossLevel", "BossLevel", "BossLevelNoUnlock"),
)
"""Names of the levels 1 to 40, in AgentGym's order."""

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
"""The package's primitive actions."""

_PINNED: Final[dict[str, dict[str, Any]]] = {"GoToObjS6": {"room_size": 4}}
"""Settings that a later release changed under a new id (`-v1` has room_size 6)."""


class Level:
    """One world of minigrid, from its seed on. Not shared between sessions."""

    __slots__ = ("env", "level", "primitives", "seed", "view")

    def __init__(self, level: int, seed: int, primitives: bytes = b"") -> None:
        """Generate it, 0.2 to 30 ms, on rare seeds some 100, and play primitive actions.

        Raises:
            MissingDependency: minigrid is not installed.
        """
        self.level: Final = level
        self.seed: Final = seed
        self.env: Final = _maker(level)()
        self.env.reset(seed=seed)
        if getattr(self.env, "locked_room", None) is not None:
            self.env.reset(seed=seed)  # as AgentGym does; see `_Remembering`
        for primitive in primitives:
            self.env.step(primitive)
        self.primitives: Final = bytearray(primitives)
        """Every primitive action so far: with the seed, the whole state."""
        self.view: View = look(self.env)

    @property
    def facing(self) -> int:
        """Where the agent looks: 0 right, 1 down, 2 left, 3 up."""
        return int(self.env.agent_dir)

    @property
    def mission(self) -> str:
        """The instruction in the package's words."""
        return str(self.env.mission)

    def act(self, primitive: int) -> tuple[float, bool, bool]:
        """Do one primitive action; gives reward, terminated, truncated."""
        self.primitives.append(primitive)
        _, reward, terminated, truncated, _ = self.env.step(primitive)
        self.view = look(self.env)
        return float(reward), bool(terminated), bool(truncated)

    def follow(self, path: Iterable[int], *, past_the_end: bool) -> tuple[float, bool, bool]:
        """Do primitive actions until one leaves the view as it was.

        The level's end stops it too, unless it is to go `past_the_end`. Gives the last
        one's reward, terminated and truncated.
        """
        answer = 0.0, False, False
        for primitive in path:
            before = self.view
            answer = self.act(primitive)
            if self.view == before or (not past_the_end and (answer[1] or answer[2])):
                break
        return answer

    def again(self) -> Level:
        """The same world in the same state, made anew."""
        return Level(self.level, self.seed, bytes(self.primitives))


class _Remembering:
    """A level as releases below 2.5 generate it: a draw that was rejected leaves its locked room
    behind, which the next draw then avoids. In one of some 150 tasks of SynthLoc that decides."""

    _room: Any = None

    @property
    def locked_room(self) -> Any:
        """The latest locked room of any draw."""
        return self._room

    @locked_room.setter
    def locked_room(self, room: Any) -> None:
        if room is not None:
            self._room = room


@cache
def _maker(level: int) -> Callable[[], Any]:
    """What makes an unseeded world of a level."""
    gymnasium = _import()
    name = LEVELS[level - 1]
    ids = (f"BabyAI-{name}-v0", f"BabyAI-{name}-v1")
    spec = next((gymnasium.spec(id) for id in ids if id in gymnasium.registry), None)
    if spec is None:
        raise ConfigError(
            f"the installed minigrid has no level {ids[0]}; install one from 3.0 on: "
            "pip install 'rollwave[babyai]'"
        )
    settings = _PINNED.get(name, dict(spec.kwargs))
    entry: Any = gymnasium.envs.registration.load_env_creator(spec.entry_point)
    blind = type(f"Blind{name}", (_Remembering, entry), {"gen_obs": lambda _: None})
    return lambda: blind(**settings)


def _import() -> Any:
    """Import the package without what it, and pygame below it, print."""
    hide = "PYGAME_HIDE_SUPPORT_PROMPT"
    before = os.environ.get(hide)
    os.environ[hide] = "1"
    try:
        import gymnasium
        import minigrid  # noqa: F401 (registers its levels)
        from minigrid.envs.babyai.core import roomgrid_level
    except ImportError as error:
        raise MissingDependency(
            f"BabyAI needs minigrid ({error}); install it with: pip install 'rollwave[babyai]'"
        ) from None
    finally:
        if before is None:
            del os.environ[hide]
        else:
            os.environ[hide] = before
    # It says each rejected draw on standard output, where a command writes its answer.
    vars(roomgrid_level)["print"] = lambda *_: None
    return gymnasium

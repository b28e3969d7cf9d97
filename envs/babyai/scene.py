"""What follows from a view: its description, the actions there are, and why others are not.

An action stands for a path of primitive ones: "go to red ball 1" walks up to the ball,
"pickup red ball 1" also picks it up. Things of one name are numbered from the nearest on.

Invariant: a scene is a function of the view and the direction the agent faces; names,
order, numbers and reasons are AgentGym's, its slips included, since published episodes
contain them: doors are numbered when seen, other things only as far as they can be
reached, and a reason about a door may show that server's count of doors.

Not here: what happens when an action is carried out (`environment`).
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Final, NamedTuple

from .levels import DROP, FORWARD, LEFT, PICKUP, RIGHT, TOGGLE
from .paths import Cell, Walk
from .sight import AGENT, EMPTY, SIZE, WALL, Kind, View, kind

CHECK: Final = "check available actions"
UNKNOWN: Final = "The action is not recognized. Please check valid actions."
NOTHING: Final = "No change in state."

_IN_THE_WAY: Final = ("wall", "box", "lava", "ball", "key")
_TAKEN: Final = ("key", "ball", "box", "lava")
"""Types that "pickup" is offered for."""


class Thing(NamedTuple):
    """Something in sight."""

    kind: Kind
    ahead: int
    aside: int
    """Steps to the right; to the left if negative."""

    @property
    def name(self) -> str:
        """Of its kind."""
        return self.kind.name

    @property
    def cell(self) -> Cell:
        """Where it is, as the agent sees it."""
        return self.ahead, self.aside


_PLACES: Final = sorted(
    (
        (SIZE - 1 - place // SIZE, place % SIZE - SIZE // 2, place)
        for place in range(SIZE * SIZE)
        if place != AGENT
    ),
    key=lambda cell: cell[0] + abs(cell[1]),
)
"""(ahead, aside, index) of the cells of a view: the nearest first, then row by row from afar."""


class Scene:
    """One view, seen in one direction. Shared by all sessions that come to it."""

    def __init__(self, view: View, facing: int) -> None:
        """`facing`: 0 right, 1 down, 2 left, 3 up."""
        self._facing: Final = facing
        carried = view[AGENT]
        self.carried: Final = kind(carried) if carried > EMPTY else None
        things = []
        solid = []
        walls = []
        for ahead, aside, place in _PLACES:
            number = view[place]
            if number == WALL:
                walls.append((ahead, aside))
            elif number > EMPTY:
                seen = kind(number)
                things.append(Thing(seen, ahead, aside))
                if seen.type in _IN_THE_WAY:
                    solid.append((ahead, aside))
        self._things: Final = tuple(things)
        """The nearest first, without walls."""
        self._solid: Final = frozenset(solid + walls)
        self._walls: Final = walls

    @cached_property
    def description(self) -> str:
        """What the agent is told that it sees."""
        counts: dict[str, int] = {}
        parts = []
        if self._things or self._walls:
            parts.append("In front of you in this room, you can see several objects: ")
        else:
            parts.append("You cannot see any objects within sight.")
        for thing in self._things:
            counts[thing.name] = counts.get(thing.name, 0) + 1
            if thing.aside == 0:
                where = f"right in front of you {thing.ahead} steps away. "
            else:
                side = "right" if thing.aside > 0 else "left"
                where = (
                    f"{thing.ahead} steps in front of you and {abs(thing.aside)} steps to your "
                    f"{side}. "
                )
            parts.append(f"There is a {thing.name} {counts[thing.name]} {where} ")
        parts.append("The room has walls around you. ")
        barrier = self._barrier
        if barrier is not None:
            parts.append(f"You are facing a {barrier[1]} {barrier[0]} steps away. ")
        if self.carried is None:
            parts.append("You are not carrying anything.")
        else:
            parts.append(f"You are carrying a {self.carried.colour} {self.carried.type}.")
        return "".join(parts)

    @cached_property
    def _barrier(self) -> tuple[int, str] | None:
        """The nearest wall or box straight ahead: how far, and which."""
        ahead = [(steps, "wall") for steps, aside in self._walls if aside == 0]
        ahead += [(t.ahead, "box") for t in self._things if t.aside == 0 and t.kind.type == "box"]
        return min(ahead, default=None)

    @property
    def actions(self) -> dict[str, tuple[int, ...]]:
        """Every action there is now, with the primitive ones that it stands for."""
        return self._found[0]

    @property
    def reasons(self) -> dict[str, str]:
        """Why some others are not there."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        actions: dict[str, tuple[int, ...]] = {"turn left": (LEFT,), "turn right": (RIGHT,)}
        reasons: dict[str, str] = {}
        walk = Walk(self._solid, self._facing)
        barrier = self._barrier
        if barrier is None or barrier[0] > 1:
            actions["move forward"] = (FORWARD,)
        else:
            reasons["move forward"] = "There is a barrier in front of you, you can't move forward."
        if self.carried is None:
            self._find_pickups(walk, actions, reasons)
            reasons["drop"] = "You cannot drop the object, as you are not carrying anything."
        elif (1, 0) in self._solid:
            reasons["drop"] = (
                "You cannot drop the object, as there is already an object in front of you."
            )
        else:
            actions["drop"] = (DROP,)
        self._find_doors(walk, actions, reasons)
        self._find_goal(walk, actions, reasons)
        self._find_ways(walk, actions, reasons)
        actions[CHECK] = ()
        return actions, reasons

    def _find_pickups(
        self, walk: Walk, actions: dict[str, tuple[int, ...]], reasons: dict[str, str]
    ) -> None:
        counts: dict[str, int] = {}
        for thing in self._things:
            if thing.kind.type not in _TAKEN:
                continue
            path = walk.before(thing.cell)
            number = counts.get(thing.name, 0) + 1
            named = f"{thing.name} {number}"
            if path is not None:
                counts[thing.name] = number
                actions[f"pickup {named}"] = (*path, PICKUP)
            else:
                reasons[f"pickup {named}"] = (
                    f"You cannot pickup {named}, as there is no path leading to it."
                )

    def _find_doors(
        self, walk: Walk, actions: dict[str, tuple[int, ...]], reasons: dict[str, str]
    ) -> None:
        counts: dict[str, int] = {}
        carried = self.carried
        for thing in self._things:
            if thing.kind.type != "door":
                continue
            counts[thing.name] = counts.get(thing.name, 0) + 1
            named = f"{thing.name} {counts[thing.name]}"
            through, toggle = f"go through {named}", f"toggle and go through {named}"
            if thing.kind.state == "open":
                path = walk.to(thing.cell)
                if path is not None:
                    actions[through] = path
                else:
                    reasons[through] = (
                        f"You cannot go through {named}, as there is no path leading to it."
                    )
                continue
            if thing.kind.state == "locked":
                if carried is None or carried.type != "key":
                    reasons[toggle] = f"You cannot {toggle}, as you are not carrying a key."
                    continue
                if carried.colour != thing.kind.colour:
                    reasons[toggle] = (
                        f"You cannot {toggle}, as the color of the key you are carrying does not "
                        "match the color of door."
                    )
                    continue
            path = walk.before(thing.cell)
            if path is not None:
                actions[toggle] = (*path, TOGGLE, FORWARD)
                if not path:
                    actions["toggle"] = (TOGGLE,)
            else:
                reasons[toggle] = (
                    f"You cannot toggle and go through {thing.name} {counts}, as there is no path "
                    "leading to it."
                )
            if thing.kind.state == "closed":
                reasons[through] = (
                    f"You cannot go through {named}, as it is closed. You should toggle it first."
                )

    def _find_goal(
        self, walk: Walk, actions: dict[str, tuple[int, ...]], reasons: dict[str, str]
    ) -> None:
        for thing in self._things:
            if thing.kind.type == "goal":
                path = walk.to(thing.cell)
                if path is not None:
                    actions["go to goal"] = path
                else:
                    reasons["go to goal"] = (
                        "You cannot go to the goal, as there is no path leading to it."
                    )

    def _find_ways(
        self, walk: Walk, actions: dict[str, tuple[int, ...]], reasons: dict[str, str]
    ) -> None:
        counts: dict[str, int] = {}
        for thing in self._things:
            if thing.kind.type == "goal":
                continue
            path = walk.before(thing.cell)
            number = counts.get(thing.name, 0) + 1
            go = f"go to {thing.name} {number}"
            if path is not None:
                counts[thing.name] = number
                actions[go] = path
            else:
                reasons[go] = f"You cannot {go}, as there is no path leading to it."

    def listed(self) -> str:
        """The answer to "check available actions"."""
        return "You can take the following actions: " + ", ".join(self.actions)


@lru_cache(maxsize=4096)
def scene(view: View, facing: int) -> Scene:
    """The scene of a view. Cached: attempts at one task see the same things again."""
    return Scene(view, facing)

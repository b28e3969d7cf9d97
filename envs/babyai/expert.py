"""The expert: the package's own bot, in as few of our actions as its way can be said in.

The bot explores as an agent must: it knows what it has seen, and gives primitive actions.
It plays the rest of the episode in a copy of the world. Then the fewest actions are found
that pass through states of its way: a macro action serves where it ends in a state that
the bot comes to, however it gets there, or before the thing that the bot ends at.

Invariant: a plan is tried out in another copy before it is advised, so its actions do what
the plan says; where the session does something else, the bot plans anew from there. The
session itself is not touched.

Not here: levels that the bot does not solve. There is no advice in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .bot import make_bot
from .levels import FORWARD, LEFT, PICKUP, RIGHT, TOGGLE, Level
from .scene import Scene, scene

_STEPS: Final = ((1, 0), (0, 1), (-1, 0), (0, -1))
_MOVES: Final = (LEFT, RIGHT, FORWARD)
_LONGEST: Final = 500
"""Most primitive actions that a way of the bot may have."""
_TRIALS: Final = 8
"""Plans tried out at most, each without the action at which the one before went wrong."""


@dataclass(frozen=True)
class _Stop:
    """A state on the bot's way, and what it does there."""

    place: tuple[int, int, int]
    """Column, row, direction."""
    scene: Scene
    primitive: int


class Guide:
    """Advice for one episode. Plans are kept as long as the session follows them."""

    __slots__ = ("_advice", "_past_the_end")

    def __init__(self, *, past_the_end: bool) -> None:
        """`past_the_end`: how actions are carried out, see `Level.follow`."""
        self._past_the_end = past_the_end
        self._advice: dict[bytes, str | None] = {}
        """By the primitive actions so far."""

    def advise(self, level: Level) -> str | None:
        """The next action from here; None where the bot finds no way."""
        key = bytes(level.primitives)
        if key not in self._advice:
            self._advice = self._planned(level)
        return self._advice.get(key)

    def _planned(self, level: Level) -> dict[bytes, str | None]:
        way = _way(level.again())
        banned: set[tuple[int, str]] = set()
        for _ in range(_TRIALS):
            plan = _shortest(way, banned)
            if plan is None:
                break
            advice, wrong = self._try_out(level.again(), way, plan)
            if wrong is None:
                return advice
            banned.add(wrong)
        return {bytes(level.primitives): None}

    def _try_out(
        self, world: Level, way: list[_Stop], plan: list[tuple[int, str, int]]
    ) -> tuple[dict[bytes, str | None], tuple[int, str] | None]:
        """Play a plan; gives the advice, and the first action that goes wrong."""
        advice: dict[bytes, str | None] = {}
        for start, name, end in plan:
            advice[bytes(world.primitives)] = name
            path = scene(world.view, world.facing).actions.get(name, ())
            reward, _, _ = world.follow(path, past_the_end=self._past_the_end)
            right = _place(world) == way[end].place if end < len(way) else reward > 0
            if not right:
                return advice, (start, name)
        return advice, None


def _place(world: Level) -> tuple[int, int, int]:
    column, row = world.env.agent_pos
    return int(column), int(row), world.facing


def _way(world: Level) -> list[_Stop]:
    """The bot's way to the end of the episode; empty if it finds none. Uses up the world."""
    stops: list[_Stop] = []
    try:
        bot = make_bot(world.env)
        primitive: int | None = None
        for _ in range(_LONGEST):
            primitive = int(bot.replan(primitive))
            if primitive > TOGGLE:
                return []
            stops.append(_Stop(_place(world), scene(world.view, world.facing), primitive))
            reward, terminated, truncated = world.act(primitive)
            if terminated:
                return stops if reward > 0 else []
            if truncated:
                return []
    except Exception:  # noqa: BLE001 (the bot gives up by whatever error its plan runs into)
        return []
    return []


def _shortest(way: list[_Stop], banned: set[tuple[int, str]]) -> list[tuple[int, str, int]] | None:
    """The fewest actions along the way, each with its first and last state's number."""
    if not way:
        return None
    best: list[tuple[int, str, int] | None] = [None] * len(way)
    costs: list[float] = [float("inf")] * len(way) + [0.0]
    last_move = len(way)  # up to here the bot only moves
    target = _ahead(_moved(way[-1].place, (way[-1].primitive,)))
    for start in range(len(way) - 1, -1, -1):
        if way[start].primitive not in _MOVES:
            last_move = start
        for name, path in way[start].scene.actions.items():
            if (start, name) in banned:
                continue
            for end in _ends(way, start, path, last_move, target):
                if 1 + costs[end] < costs[start]:
                    costs[start], best[start] = 1 + costs[end], (start, name, end)
    plan = []
    at = 0
    while at < len(way):
        step = best[at]
        if step is None:
            return None
        plan.append(step)
        at = step[2]
    return plan


def _ends(
    way: list[_Stop], start: int, path: tuple[int, ...], last_move: int, target: tuple[int, int]
) -> list[int]:
    """Numbers of the states in which this path, begun in a state of the way, may end."""
    if path == (way[start].primitive,):
        return [start + 1]
    tail = 1 if path[-1:] == (PICKUP,) else 2 if path[-2:] == (TOGGLE, FORWARD) else 0
    rest = path[len(path) - tail :]
    place = _moved(way[start].place, path[: len(path) - tail])
    ends = []
    for stop in range(start, min(last_move, len(way) - 1) + 1):
        if way[stop].place == place and all(
            stop + n < len(way) and way[stop + n].primitive == primitive
            for n, primitive in enumerate(rest)
        ):
            ends.append(stop + tail)
    if last_move >= len(way) - 1 and path and _ahead(place) == target:
        last = way[-1].primitive
        if rest == (PICKUP,) == (last,) or (not rest and last in _MOVES):
            ends.append(len(way))
    return [end for end in ends if end > start]


def _moved(place: tuple[int, int, int], moves: tuple[int, ...]) -> tuple[int, int, int]:
    """Where moves lead on free ground; what is no move leads nowhere."""
    column, row, facing = place
    for primitive in moves:
        if primitive == FORWARD:
            column, row = column + _STEPS[facing][0], row + _STEPS[facing][1]
        elif primitive in _MOVES:
            facing = (facing + (1 if primitive == RIGHT else -1)) % 4
    return column, row, facing


def _ahead(place: tuple[int, int, int]) -> tuple[int, int]:
    """The cell before the agent."""
    column, row, facing = place
    return column + _STEPS[facing][0], row + _STEPS[facing][1]

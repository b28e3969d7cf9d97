"""A session as a message: where things are, and what was done to them.

Invariants: the message holds everything that differs between two sessions on one game; and
a message that describes no state of the game is refused.

Not here: sessions (`environment`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...engine.codec import Message
from ...engine.errors import ConfigError
from .game import NOWHERE, Game
from .rules import State

_MARKS: Final = ("hot", "cool", "clean", "used", "sliced")


class AlfWorldState(Message, frozen=True):
    """A snapshot: everything that a session knows."""

    index: int
    """Task number."""
    place: int
    held: int
    place_of: tuple[int, ...]
    """See `State.place_of`."""
    opened: tuple[int, ...]
    seen: tuple[int, ...]
    taken: tuple[tuple[int, int], ...]
    """Pairs of receptacle and thing, see `State.taken`."""
    marks: tuple[tuple[int, ...], ...]
    """Things that are hot, cool, clean, used, sliced."""
    observation: str
    steps: int
    over: bool


def taken(state: State, index: int, observation: str, steps: int, over: bool) -> AlfWorldState:
    """Take a snapshot."""
    numbers = range(len(state.game.things))
    return AlfWorldState(
        index,
        state.place,
        state.held,
        tuple(state.place_of),
        tuple(sorted(state.opened)),
        tuple(sorted(state.seen)),
        tuple((r, t) for r, bits in enumerate(state.taken) for t in numbers if bits >> t & 1),
        tuple(tuple(t for t in numbers if getattr(state, m) >> t & 1) for m in _MARKS),
        observation,
        steps,
        over,
    )


def restored(game: Game, s: AlfWorldState) -> State:
    """The state of a snapshot.

    Raises:
        ConfigError: it is none of this game.
    """
    state = State(game)
    receptacles, things = range(len(game.receptacles)), range(len(game.things))
    lost = [
        t
        for t, (r, thing) in enumerate(zip(s.place_of, game.things, strict=False))
        if r not in receptacles and t != s.held and thing.start != NOWHERE
    ]
    numbers = [t for _, t in s.taken] + [t for marks in s.marks for t in marks]
    places = [*s.opened, *s.seen, *(r for r, _ in s.taken)]
    sound = (
        len(s.place_of) == len(things)
        and len(s.marks) == len(_MARKS)
        and not lost
        and all(t in things for t in numbers)
        and all(r in receptacles for r in places)
        and (s.held == NOWHERE or (s.held in things and s.place_of[s.held] == NOWHERE))
        and (s.place in game.at or s.place == game.start)
        and s.steps >= 0
    )
    if not sound:
        raise ConfigError("it describes no state of this game")
    state.place, state.held = s.place, s.held
    state.place_of = list(s.place_of)
    state.contents = [[] for _ in receptacles]
    for t, r in enumerate(s.place_of):
        if r != NOWHERE:
            state.contents[r].append(t)
    state.opened, state.seen = set(s.opened), set(s.seen)
    for r, t in s.taken:
        state.taken[r] |= 1 << t
    for name, marks in zip(_MARKS, s.marks, strict=True):
        setattr(state, name, _bits(marks))
    return state


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << t for t in set(numbers))

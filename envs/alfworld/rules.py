"""The rules: what can be done in a state, what it changes, and when the goal is reached.

The rules are those of alfworld's planning domain. Some are odd: a hand holds one thing; a
lamp can only be switched on, also in a closed drawer; heating needs a microwave, open or
not; a knife slices what is at the same place, also behind a door; only what is in the hand
can be examined.

Invariants: every thing is in exactly one place (a receptacle, the hand, or the floor from
the start on); a command of `commands` always does something, and nothing else does.

Not here: what is answered (`wording`), and sessions (`environment`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .game import NOWHERE, Game

GO: Final = "go to"
OPEN: Final = "open"
CLOSE: Final = "close"
TAKE: Final = "take"
PUT: Final = "put"
USE: Final = "use"
HEAT: Final = "heat"
COOL: Final = "cool"
CLEAN: Final = "clean"
SLICE: Final = "slice"
EXAMINE: Final = "examine"
EXAMINE_THING: Final = "examine thing"
LOOK: Final = "look"
INVENTORY: Final = "inventory"

TREATED: Final = {HEAT: "microwave", COOL: "fridge", CLEAN: "sinkbasin"}
"""What a treatment is done with."""

KNIVES: Final = frozenset({"knife", "butterknife"})


class Command(NamedTuple):
    """One thing to do. Numbers are those of the game; NOWHERE where a verb takes none."""

    verb: str
    thing: int = NOWHERE
    receptacle: int = NOWHERE
    """For `slice`, the number of the knife, which is a thing."""


class State:
    """Where everything is, and what was done to it.

    Sets of things are bits of an integer: bit n is thing n.
    """

    __slots__ = (
        *("clean", "contents", "cool", "game", "held", "hot", "opened", "place", "place_of"),
        *("seen", "sliced", "taken", "used"),
    )

    def __init__(self, game: Game) -> None:
        self.game = game
        self.place = game.start
        """The agent's."""
        self.held = NOWHERE
        self.place_of = [thing.start for thing in game.things]
        """The receptacle of each thing; NOWHERE if it is held."""
        self.contents: list[list[int]] = [[] for _ in game.receptacles]
        """The things in each receptacle, in order."""
        for number, thing in enumerate(game.things):
            if thing.start != NOWHERE:
                self.contents[thing.start].append(number)
        self.taken = [0] * len(game.receptacles)
        """Things taken out of each receptacle and not put back into it: ALFWorld's `look`
        shows them "next to" it if they are put into another one at the same place."""
        self.opened = set(game.opened)
        self.seen: set[int] = set()
        """Receptacles into which the agent has looked. What they hold now is known to it."""
        self.hot = self.cool = self.clean = self.used = self.sliced = 0

    def visible(self, receptacle: int) -> bool:
        """Whether one can see and reach into it."""
        return not self.game.receptacles[receptacle].openable or receptacle in self.opened

    def commands(self) -> list[Command]:
        """All that can be done now, but for going elsewhere and looking."""
        game, held = self.game, self.held
        found: list[Command] = []
        add = found.append
        if held != NOWHERE:
            add(Command(EXAMINE_THING, held))
        for r in game.at.get(self.place, ()):
            receptacle = game.receptacles[r]
            add(Command(EXAMINE, NOWHERE, r))
            seen = True
            if receptacle.openable:
                seen = r in self.opened
                add(Command(CLOSE if seen else OPEN, NOWHERE, r))
            for t in self.contents[r]:
                thing = game.things[t]
                if seen and held == NOWHERE and thing.takeable:
                    add(Command(TAKE, t, r))
                if thing.toggleable:
                    add(Command(USE, t))
                if thing.sliceable and held != NOWHERE and game.things[held].kind in KNIVES:
                    add(Command(SLICE, t, held))
            if held != NOWHERE:
                thing = game.things[held]
                if seen and game.admits(receptacle, thing):
                    add(Command(PUT, held, r))
                if thing.heatable and receptacle.kind == TREATED[HEAT]:
                    add(Command(HEAT, held, r))
                if thing.coolable and receptacle.kind == TREATED[COOL]:
                    add(Command(COOL, held, r))
                if thing.cleanable and receptacle.kind == TREATED[CLEAN]:
                    add(Command(CLEAN, held, r))
        return found

    def apply(self, command: Command) -> None:
        """Do what `commands` listed, or go to a receptacle at another place, or look."""
        verb, t, r = command
        if verb == GO:
            self.place = self.game.receptacles[r].place
            self._see(r)
        elif verb == EXAMINE:
            self._see(r)
        elif verb == OPEN:
            self.opened.add(r)
            self.seen.add(r)
        elif verb == CLOSE:
            self.opened.discard(r)
        elif verb == TAKE:
            self.contents[r].remove(t)
            self.taken[r] |= 1 << t
            self.place_of[t] = NOWHERE
            self.held = t
        elif verb == PUT:
            self.contents[r].append(t)
            self.contents[r].sort()
            self.taken[r] &= ~(1 << t)
            self.place_of[t] = r
            self.held = NOWHERE
        elif verb == USE:
            self.used |= 1 << t
        elif verb == SLICE:
            self.sliced |= 1 << t
        elif verb == CLEAN:
            self.clean |= 1 << t
        elif verb == HEAT:
            self.hot |= 1 << t
            self.cool &= ~(1 << t)
        elif verb == COOL:
            self.cool |= 1 << t
            self.hot &= ~(1 << t)

    def _see(self, receptacle: int) -> None:
        if self.visible(receptacle):
            self.seen.add(receptacle)

    def won(self) -> bool:
        """Whether the goal is reached."""
        game, goal = self.game, self.game.goal
        if goal.kind == "look":
            return (
                self.held != NOWHERE
                and game.things[self.held].kind == goal.thing
                and any(
                    self.used >> t & 1 and game.things[t].kind == goal.target
                    for r in game.at.get(self.place, ())
                    for t in self.contents[r]
                )
            )
        treated = {"heat": self.hot, "cool": self.cool, "clean": self.clean}.get(goal.kind, -1)
        wanted = 2 if goal.kind == "two" else 1
        for r, receptacle in enumerate(game.receptacles):
            if receptacle.kind == goal.target:
                here = [t for t in self.contents[r] if treated >> t & 1]
                if sum(game.things[t].kind == goal.thing for t in here) >= wanted:
                    return True
        return False

"""The scripted expert: one that knows where everything is, and one that has to look.

`advise(state, knows=True)` is the planner: it goes straight to what it wants. With
`knows=False` it is the searcher, which uses only what the agent has seen in this episode:
receptacles without a door first, then those that have to be opened, and only where the
thing may lie. Both go on from any state that an agent has got itself into.

Invariant: what is advised is always a command that can be given now.

Not here: the search for a shortest plan; the planner's is short, not always shortest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .game import NOWHERE
from .rules import (
    CLEAN,
    COOL,
    EXAMINE,
    GO,
    HEAT,
    OPEN,
    PUT,
    TAKE,
    TREATED,
    USE,
    Command,
    State,
)

_VERBS = {"heat": HEAT, "cool": COOL, "clean": CLEAN}


def advise(state: State, *, knows: bool) -> Command | None:
    """The next command; None where the goal is reached or out of reach."""
    if state.won():
        return None
    game, goal = state.game, state.game.goal
    advisor = _Advisor(state, knows)
    if state.held != NOWHERE:
        if game.things[state.held].kind != goal.thing:
            return advisor.put_away()
        if goal.kind == "look":
            return advisor.light()
        verb = _VERBS.get(goal.kind)
        if verb and not _treated(state, verb) >> state.held & 1:
            return advisor.treat(verb)
        return advisor.put(advisor.target())
    return advisor.fetch()


def _treated(state: State, verb: str) -> int:
    return {HEAT: state.hot, COOL: state.cool, CLEAN: state.clean}[verb]


class _Advisor:
    """Answers one question about one state."""

    def __init__(self, state: State, knows: bool) -> None:
        self._state = state
        self._game = state.game
        self._knows = knows

    def fetch(self) -> Command | None:
        """Get hold of what is wanted."""
        goal = self._game.goal
        settled = self.target() if goal.kind == "two" else NOWHERE
        known = [
            t
            for t in self._known()
            if self._game.things[t].kind == goal.thing
            and self._game.things[t].takeable
            and self._state.place_of[t] != settled
        ]
        if not known:
            return self._search(self._may_hold(goal.thing))
        t = min(known, key=lambda t: self._way(self._state.place_of[t]))
        r = self._state.place_of[t]
        return self._reach(r) or Command(TAKE, t, r)

    def target(self) -> int:
        """The receptacle to put things into: for `two` where most are already, else the nearest."""
        game, goal = self._game, self._game.goal
        best, most = NOWHERE, (-1, 0)
        for r, receptacle in enumerate(game.receptacles):
            if receptacle.kind == goal.target:
                here = 0
                if goal.kind == "two" and (self._knows or r in self._state.seen):
                    here = sum(game.things[t].kind == goal.thing for t in self._state.contents[r])
                if (here, -self._way(r)) > most:
                    best, most = r, (here, -self._way(r))
        return best

    def put(self, r: int) -> Command | None:
        """Put what is held into a receptacle."""
        if r == NOWHERE:
            return None
        return self._reach(r) or Command(PUT, self._state.held, r)

    def put_away(self) -> Command | None:
        """Put down what is held, where it is nearest."""
        thing = self._game.things[self._state.held]
        fit = [
            r for r, place in enumerate(self._game.receptacles) if self._game.admits(place, thing)
        ]
        return self.put(min(fit, key=self._way, default=NOWHERE))

    def treat(self, verb: str) -> Command | None:
        """Heat, cool or clean what is held."""
        kind = TREATED[verb]
        fit = [r for r, place in enumerate(self._game.receptacles) if place.kind == kind]
        if not fit:
            return None
        r = min(fit, key=self._way)
        if self._game.receptacles[r].place != self._state.place:
            return Command(GO, NOWHERE, r)
        return Command(verb, self._state.held, r)

    def light(self) -> Command | None:
        """Switch on a lamp, or go where one is on."""
        kind = self._game.goal.target
        lamps = [t for t in self._known() if self._game.things[t].kind == kind]
        if not lamps:
            closed = [r for r, place in enumerate(self._game.receptacles) if place.openable]
            return self._search(range(len(self._game.receptacles)), last=closed)
        t = min(lamps, key=lambda t: self._way(self._state.place_of[t]))
        r = self._state.place_of[t]
        if self._game.receptacles[r].place != self._state.place:
            return Command(GO, NOWHERE, r)
        return Command(USE, t)

    def _known(self) -> Iterator[int]:
        """Things in receptacles whose place the expert knows."""
        for r, contents in enumerate(self._state.contents):
            if self._knows or r in self._state.seen:
                yield from contents

    def _may_hold(self, kind: str) -> list[int]:
        holds = self._game.holds
        places = enumerate(self._game.receptacles)
        return [r for r, place in places if kind in holds.get(place.kind, ())]

    def _search(self, likely: Iterable[int], last: Iterable[int] = ()) -> Command | None:
        """Look into the next receptacle: a likely one, or any if all of these were seen."""
        seen, late = self._state.seen, set(last)
        unseen = [r for r in likely if r not in seen]
        if not unseen:
            unseen = [r for r in range(len(self._game.receptacles)) if r not in seen]
        if not unseen:
            return None
        r = min(unseen, key=lambda r: (r in late, self._way(r), -r))
        return self._reach(r) or Command(EXAMINE, NOWHERE, r)

    def _way(self, r: int) -> int:
        """Commands until one can reach into a receptacle."""
        far = self._game.receptacles[r].place != self._state.place
        return far + (not self._state.visible(r))

    def _reach(self, r: int) -> Command | None:
        """The next command on the way into a receptacle; None once it is in reach."""
        if self._game.receptacles[r].place != self._state.place:
            return Command(GO, NOWHERE, r)
        return None if self._state.visible(r) else Command(OPEN, NOWHERE, r)

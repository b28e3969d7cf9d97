"""Commands and answers in words: ALFWorld's, in the wording of two of its versions.

0.3.3, which AgentGym uses, says `put apple 1 in/on fridge 1` and "You put the apple 1 in/on
the fridge 1."; its "You arrive at loc 7." is left out, as AgentGym's server leaves it out.
0.4.2 says `move apple 1 to fridge 1`, "You move the apple 1 to the fridge 1." and "You
arrive at fridge 1.".

Invariant: two commands of one game have two texts.

Not here: what commands do (`rules`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .game import NOWHERE, Game
from .rules import (
    CLOSE,
    EXAMINE,
    EXAMINE_THING,
    GO,
    INVENTORY,
    LOOK,
    OPEN,
    PUT,
    SLICE,
    TAKE,
    USE,
    Command,
    State,
)

NOTHING: Final = "Nothing happens."
"""The answer to whatever is not a command now."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What differs between versions of ALFWorld."""

    put: str
    did_put: str
    arrive: str

    def command(self, game: Game, command: Command) -> str:
        """The text of a command."""
        verb, t, r = command
        if verb in (LOOK, INVENTORY):
            return verb
        if verb == SLICE:
            return f"slice {game.things[t].name} with {game.things[r].name}"
        if verb in (USE, EXAMINE_THING):
            return f"{'use' if verb == USE else 'examine'} {game.things[t].name}"
        place = game.receptacles[r].name
        if t == NOWHERE:
            return f"{verb} {place}"
        thing = game.things[t].name
        if verb == TAKE:
            return f"take {thing} from {place}"
        if verb == PUT:
            return self.put.format(thing, place)
        return f"{verb} {thing} with {place}"

    def answer(self, state: State, command: Command) -> str:
        """What is said once the command is done."""
        verb, t, r = command
        game = state.game
        if verb == GO:
            return self.arrive.format(game.receptacles[r].name) + _contents(state, r)
        if verb == EXAMINE:
            return _contents(state, r)
        if verb == OPEN:
            return f"You open the {game.receptacles[r].name}. {_contents(state, r)}"
        if verb == CLOSE:
            return f"You close the {game.receptacles[r].name}."
        if verb == LOOK:
            return look(state)
        if verb == INVENTORY:
            held = "not carrying anything"
            if state.held != NOWHERE:
                held = f"carrying: a {game.things[state.held].name}"
            return f"You are {held}."
        thing = game.things[t].name
        if verb == EXAMINE_THING:
            return _thing(state, t)
        if verb == USE:
            return f"You turn on the {thing}."
        if verb == SLICE:
            return f"You sliced the {thing} with the {game.things[r].name}."
        place = game.receptacles[r].name
        if verb == TAKE:
            return f"You pick up the {thing} from the {place}."
        if verb == PUT:
            return self.did_put.format(thing, place)
        return f"You {verb} the {thing} using the {place}."

    def opening(self, state: State) -> str:
        """What is said first."""
        return f"{look(state, first=True)}\nYour task is to: {state.game.sentence}."


AGENTGYM: Final = Wording("put {} in/on {}", "You put the {} in/on the {}.", "")
LATER: Final = Wording("move {} to {}", "You move the {} to the {}.", "You arrive at {}. ")

WORDINGS: Final = {"0.3.3": AGENTGYM, "0.4.2": LATER}
"""By version of the package alfworld."""

_ADJECTIVES: Final = {
    # hot, cool, clean, sliced: the odd gaps are ALFWorld's
    (1, 0, 1, 1): "hot and clean sliced",
    (0, 1, 1, 1): "cool and clean sliced",
    (0, 0, 1, 1): "clean sliced",
    (1, 0, 0, 1): "hot sliced",
    (0, 1, 0, 1): "cool sliced",
    (1, 0, 1, 0): "hot and clean",
    (0, 1, 1, 0): "cool and clean",
    (1, 0, 0, 0): "hot",
    (0, 0, 1, 0): "clean",
    (0, 1, 0, 0): "cold",
}


def look(state: State, *, first: bool = False) -> str:
    """What one sees from here. From the middle of the room that is everything the first time,
    and nothing when asked again: so says ALFWorld's grammar."""
    game = state.game
    here = game.at.get(state.place, ())
    if not here:
        seen = _list([f"a {receptacle.name}" for receptacle in game.receptacles if first])
        return f"You are in the middle of a room. Looking quickly around you, you see {seen}."
    facing = _list([game.receptacles[r].name for r in here])
    beside = [
        (t, r)
        for r in here
        for t in range(len(game.things))
        if state.taken[r] >> t & 1 and state.place_of[t] in here
    ]
    names = [f"a {game.things[t].name}" for t, _ in sorted(beside)]
    return f"You are facing the {facing}. Next to it, you see {_list(names)}."


def _contents(state: State, r: int) -> str:
    receptacle = state.game.receptacles[r]
    name = receptacle.name
    if not state.visible(r):
        return f"The {name} is closed."
    things = _list([f"a {state.game.things[t].name}" for t in state.contents[r]])
    if receptacle.openable:
        return f"The {name} is open. In it, you see {things}."
    return f"On the {name}, you see {things}."


def _thing(state: State, t: int) -> str:
    thing = state.game.things[t]
    if thing.container:
        inside = _list([f"a {name}" for name in thing.inside])
        return f"This is a normal {thing.name}. In it, you see {inside}."
    hot, cool, clean = state.hot >> t & 1, state.cool >> t & 1, state.clean >> t & 1
    sliced = state.sliced >> t & 1
    if adjective := _ADJECTIVES.get((hot, cool, clean, sliced)):
        return f"This is a {adjective} {thing.name}."
    if thing.toggleable and state.used >> t & 1:
        return f"This {thing.name} is on."
    if thing.sliceable and state.sliced >> t & 1:
        return f"This is a sliced {thing.name}."
    return f"There's nothing special about {thing.name}."


def _list(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"

"""One session in a household: go about, take, treat and put things, in text.

A command is one of `available_actions()`, letter for letter; whatever else is said is
answered "Nothing happens." and counts as a step. The episode ends with reward 1 when the
goal is reached, and is cut short after 50 steps, as AgentGym's server does.

Invariant: a snapshot is the task's number, where things are, and what was done to them;
what can be done and said follows from it.

Not here: the rules (`rules`), the texts (`wording`), which tasks there are (`tasks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ...engine.codec import decoder, encode
from ...engine.errors import ConfigError, EnvironmentFault, MessageError
from ..base import Environment, StepResult, Task
from .expert import advise
from .game import NOWHERE, Game
from .rules import EXAMINE, EXAMINE_THING, GO, INVENTORY, LOOK, Command, State
from .snapshot import AlfWorldState, restored, taken
from .tables import PUBLISHED_KINDS
from .wording import AGENTGYM, NOTHING, Wording

STEP_LIMIT: Final = 50
"""AgentGym's server ends an episode after so many steps."""

_IDLE: Final = frozenset({EXAMINE, EXAMINE_THING, INVENTORY, LOOK})
"""Verbs after which the same can be done as before."""

AVAILABLE: Final = "\nAVAILABLE ACTIONS: "
"""Stands before the list of commands in an observation."""


class AlfWorld(Environment):
    """A session. `games` gives the game of a task index, or raises ConfigError."""

    __slots__ = (
        *("_closed", "_games", "_index", "_knows", "_latest", "_legal", "_list", "_over"),
        *("_show", "_state", "_steps", "_w", "_ways"),
    )

    def __init__(
        self,
        games: Callable[[int], Game],
        wording: Wording = AGENTGYM,
        *,
        show: str = "first",
        knows: bool = False,
    ) -> None:
        """`show`: which observations list the commands, "first", "all" or "none"; `knows`:
        whether the expert knows where everything is."""
        self._games = games
        self._w = wording
        self._show = show
        self._knows = knows
        self._state: State | None = None
        self._index = -1
        self._legal: dict[str, Command] | None = None
        self._list: tuple[str, ...] | None = None
        self._ways: dict[int, dict[str, Command]] = {}
        """For each place, the ways to others: they never change in a game."""
        self._latest = ""
        self._steps = 0
        self._over = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        """Start the task; the seed changes nothing, tasks are fixed."""
        if self._closed:
            raise EnvironmentFault("this ALFWorld session is closed; make a new one")
        self._start(State(self._games(task.index)), task.index)
        self._latest = self._shown(self._w.opening(self._now()), "none")
        return self._latest

    def _start(self, state: State, index: int) -> None:
        self._state, self._index = state, index
        self._legal = self._list = None
        self._ways = {}
        self._steps = 0
        self._over = False

    def step(self, action: str) -> StepResult:
        state = self._now()
        if self._over:
            raise EnvironmentFault("the episode in this ALFWorld session is over; reset it first")
        self._steps += 1
        command = self._commands().get(action.strip())
        won = False
        answer = NOTHING
        if command is not None:
            state.apply(command)
            answer = self._w.answer(state, command)
            if command.verb not in _IDLE:
                self._legal = self._list = None
                won = state.won()
        lost = not won and self._steps >= STEP_LIMIT
        self._over = won or lost
        self._latest = answer if self._over else self._shown(answer, "first")
        return StepResult(self._latest, float(won), won, truncated=lost, success=won)

    def _shown(self, text: str, unless: str) -> str:
        """An observation with the list of commands, where it belongs."""
        if self._show in (unless, "none"):
            return text
        return f"{text}{AVAILABLE}{','.join(self.available_actions())}"

    def observation(self) -> str:
        self._now()
        return self._latest

    def available_actions(self) -> Sequence[str]:
        """All commands that do something now, sorted as ALFWorld sorts them."""
        self._now()
        if self._over:
            return ()
        if self._list is None:
            self._list = tuple(sorted(self._commands()))
        return self._list

    def _commands(self) -> dict[str, Command]:
        """What can be done now, by its text."""
        if self._legal is None:
            state, spell = self._now(), self._w.command
            game = state.game
            self._legal = self._elsewhere(state)
            for command in state.commands():
                self._legal[spell(game, command)] = command
        return self._legal

    def _elsewhere(self, state: State) -> dict[str, Command]:
        """Where one can go from here, and what can be done anywhere. A new dict."""
        known = self._ways.get(state.place)
        if known is None:
            game = state.game
            commands = [
                *(Command(GO, NOWHERE, r) for r in _other_places(game, state.place)),
                Command(INVENTORY),
                Command(LOOK),
            ]
            known = {self._w.command(game, command): command for command in commands}
            self._ways[state.place] = known
        return dict(known)

    def expert(self) -> str | None:
        state = self._now()
        advice = None if self._over else advise(state, knows=self._knows)
        return None if advice is None else self._w.command(state.game, advice)

    def about(self) -> Mapping[str, str | int]:
        """The type of the task, by ALFWorld's name."""
        kind = self._now().game.goal.kind
        return {"task_type": next(name for name, own in PUBLISHED_KINDS.items() if own == kind)}

    def snapshot(self) -> bytes:
        state = taken(self._now(), self._index, self._latest, self._steps, self._over)
        return encode(state)

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this ALFWorld session is closed; make a new one")
        try:
            s = decoder(AlfWorldState).decode(state)
            there = restored(self._games(s.index), s)
        except (MessageError, ConfigError) as error:
            raise EnvironmentFault(f"not a snapshot of ALFWorld: {error}") from None
        self._start(there, s.index)
        self._latest, self._steps, self._over = s.observation, s.steps, s.over

    def close(self) -> None:
        self._closed = True
        self._state = None

    def _now(self) -> State:
        if self._state is None:
            state = "closed; make a new one" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this ALFWorld session is {state}")
        return self._state


def _other_places(game: Game, place: int) -> list[int]:
    """Receptacles that are not here; from the middle of the room, all."""
    return [r for r, receptacle in enumerate(game.receptacles) if receptacle.place != place]

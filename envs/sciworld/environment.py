"""One session: a task of primary-school science, in the `scienceworld` package's simulator.

An episode begins as on AgentGym's server: the task's description, then what "look around"
answers. Its score runs from 0 to 100, and an action earns what it adds, divided by 100; what
the start has scored already ("easy" scores a first room that is the right one) is earned with
the first action. So the rewards of an episode sum to its last score. It ends

* solved: the score is 100;
* lost: the agent has focused on the wrong thing. The score is then -100, and the episode's
  rewards sum to -1, whatever it had earned;
* truncated: more than `MOVES` moves were made. Looking about and what is no command take
  none, and "wait" takes ten, so it is the engine's turn limit that ends idle talk.

The score may fall before that: "reset task" gives up all progress, which can then be earned
again but never adds up to more than 1.

Invariant: the state is a task and the actions since, so a snapshot is these, and restoring it
plays them again.

Not here: the simulator (`simulator`), sharing its process (`pool`), the numbering (`tasks`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from ...engine.codec import Message, decoder, encode
from ...engine.errors import ConfigError, EnvironmentFault, MessageError
from ..base import Environment, StepResult, Task
from .expert import Guide
from .pool import Simulator
from .tasks import Kind, Table
from .wording import Wording, describe, hear, say

MOVES: Final = 100
"""Moves after which the episode is truncated: the package's own default."""

FULL: Final = 100
"""The score of a solved task."""

_MAX_ACTIONS: Final = 10_000
"""Most actions in a snapshot that is believed: about two minutes of replay."""

_ASKS: Final = "Ambiguous request:"
"""So begins a question back: a number is expected next."""

_DOOR: Final = re.compile(r"^\tA door to the (.+?) \(", re.MULTILINE)


class Actions(StrEnum):
    """Which actions are told as available."""

    VALID = "valid"
    """Each that does something now: hundreds, and about 0.2 s to find them."""
    FEW = "few"
    """A sample: what is always there, and the doors."""


class SciWorldState(Message, frozen=True):
    """A snapshot."""

    index: int
    actions: tuple[bytes, ...]
    """UTF-8 with surrogates let through."""
    said: str
    """The latest observation."""


class SciWorld(Environment):
    """A session."""

    __slots__ = (
        "_actions",
        "_available",
        "_closed",
        "_guide",
        "_index",
        "_kind",
        "_moves",
        "_over",
        "_said",
        "_score",
        "_shown",
        "_simplification",
        "_simulator",
        "_table",
        "_variation",
        "_wording",
    )

    def __init__(
        self,
        simulator: Simulator,
        table: Table,
        *,
        simplification: str = "",
        wording: Wording = Wording.SERVER,
        actions: Actions = Actions.VALID,
    ) -> None:
        """Play tasks of this numbering in a simulator of one's own."""
        self._simulator = simulator
        self._table = table
        self._simplification = simplification
        self._wording = wording
        self._shown = actions
        self._kind: Kind | None = None
        self._variation = 0
        self._index = 0
        self._closed = False
        self._guide: Guide
        self._actions: list[str] = []
        self._available: tuple[str, ...] | None = None
        self._said = ""
        self._score = 0
        self._moves = 0
        self._over = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this SciWorld session is closed; make a new one")
        kind, variation = self._table.task(task.index)
        simulator = self._simulator
        self._kind = None  # also where loading fails: nothing is on then
        simulator.load(kind.name, variation, self._simplification)
        moved = simulator.step("look around")
        self._kind, self._variation, self._index = kind, variation, task.index
        self._guide = Guide(simulator.gold_path)
        self._actions = []
        self._available = None
        self._score, self._moves, self._over = 0, moved.moves, False
        described = describe(simulator.task_description(), self._wording)
        self._said = f"{described}\n{say(moved.observation, self._wording)}"
        return self._said

    def step(self, action: str) -> StepResult:
        self._started()
        if self._over:
            raise EnvironmentFault("the episode in this SciWorld session is over; reset it first")
        told = hear(action, self._wording)
        moved = self._simulator.step(told)
        asks = moved.observation.startswith(_ASKS)
        self._guide.hear(told, idle=moved.moves == self._moves and not asks)
        self._actions.append(action)
        self._available = None
        reward = (moved.score - self._score) / FULL
        self._score, self._moves = moved.score, moved.moves
        terminated = moved.done or moved.score < 0
        truncated = not terminated and moved.moves > MOVES
        self._over = terminated or truncated
        self._said = say(moved.observation, self._wording)
        success = terminated and moved.score >= FULL
        return StepResult(self._said, reward, terminated, truncated, success)

    def observation(self) -> str:
        self._started()
        return self._said

    def available_actions(self) -> Sequence[str]:
        self._started()
        if self._over:
            return ()
        if self._available is None:
            found = self._few() if self._shown is Actions.FEW else self._simulator.valid_actions()
            self._available = tuple(say(action, self._wording) for action in found)
        return self._available

    def expert(self) -> str | None:
        """The package's own solution, while the episode follows it."""
        self._started()
        advice = None if self._over else self._guide.advise()
        return None if advice is None else say(advice, self._wording)

    def about(self) -> Mapping[str, str | int]:
        """Kind and variation of the task, and its description, named as AgentGym's server does."""
        kind = self._started()
        described = describe(self._simulator.task_description(), self._wording)
        return {"task_name": kind.name, "var_num": self._variation, "task_description": described}

    def snapshot(self) -> bytes:
        self._started()
        said = tuple(action.encode(errors="surrogatepass") for action in self._actions)
        return encode(SciWorldState(self._index, said, self._said))

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this SciWorld session is closed; make a new one")
        try:
            saved = decoder(SciWorldState).decode(state)
            actions = [action.decode(errors="surrogatepass") for action in saved.actions]
            self._table.task(saved.index)
        except (MessageError, UnicodeDecodeError, ConfigError) as error:
            raise EnvironmentFault(f"not a snapshot of SciWorld: {error}") from None
        if len(actions) > _MAX_ACTIONS:
            raise EnvironmentFault(f"not a snapshot of SciWorld: it has {len(actions)} actions")
        self.reset(Task("", saved.index), 0)
        for action in actions:
            self.step(action)
        if self._said != saved.said:
            raise EnvironmentFault("not a snapshot of SciWorld: its actions lead elsewhere")

    def close(self) -> None:
        self._closed = True
        self._kind = None
        self._simulator.close()

    def _few(self) -> list[str]:
        doors = _DOOR.findall(self._simulator.look())
        ways = [f"{verb} {door}" for door in doors for verb in ("open door to", "go to")]
        return [*ways, "look around", "inventory", "task", "wait1"]

    def _started(self) -> Kind:
        if self._kind is None:
            state = "closed; make a new one" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this SciWorld session is {state}")
        return self._kind

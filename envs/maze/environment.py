"""One session in a maze: walk from a start to the goal.

A move into a wall, and any text that is no action, leaves the agent where it is
and is answered with the same place again; it counts as a move. The episode ends
with reward 1 on the first move that leaves the agent on the goal.

Invariant: a session's state is its setting, a position and a count of moves, so
a snapshot of some tens of bytes rebuilds it.

Not here: walls (`layout`), texts (`wording`), which mazes there are (`tasks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...engine.codec import Message, decoder, encode
from ...engine.errors import EnvironmentFault, MessageError
from ..base import Environment, StepResult, Task
from .expert import next_side
from .layout import STEPS, Layout, Position
from .tasks import Setting
from .wording import Wording


class MazeState(Message, frozen=True):
    """A snapshot: everything that a session knows."""

    columns: int
    passages: bytes
    start: Position
    goal: Position
    position: Position
    moves: int
    over: bool


class Maze(Environment):
    """A session. `settings` gives the maze of a task index, or raises ConfigError."""

    __slots__ = ("_closed", "_limit", "_moves", "_over", "_position", "_setting", "_settings", "_w")

    def __init__(
        self, settings: Callable[[int], Setting], wording: Wording, *, move_limit: int = 0
    ) -> None:
        """`move_limit` is the world's own: after so many moves it says failure; 0 for none."""
        self._settings = settings
        self._w = wording
        self._limit = move_limit
        self._setting: Setting | None = None
        self._position: Position = (0, 0)
        self._moves = 0
        self._over = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this maze session is closed; make a new one")
        self._setting = self._settings(task.index)
        self._position = self._setting.start
        self._moves = 0
        self._over = False
        return self.observation()

    def step(self, action: str) -> StepResult:
        setting = self._started()
        if self._over:
            raise EnvironmentFault("the episode in this maze is over; reset it first")
        side = self._w.actions.get(action.strip(), 0)
        if side & setting.layout.open(self._position):
            down, right = STEPS[side]
            self._position = (self._position[0] + down, self._position[1] + right)
        self._moves += 1
        success = self._position == setting.goal
        failure = not success and self._moves == self._limit
        self._over = success or failure
        return StepResult(
            self.observation(), float(success), success, truncated=failure, success=success
        )

    def observation(self) -> str:
        setting = self._started()
        if self._over:
            return self._w.success if self._position == setting.goal else self._w.failure
        sides = setting.layout.open(self._position)
        place = self._w.describe(setting.goal, self._position, sides)
        return place if self._moves else self._w.opening + place

    def available_actions(self) -> Sequence[str]:
        self._started()
        return () if self._over else tuple(self._w.actions)

    def expert(self) -> str | None:
        setting = self._started()
        if self._over:
            return None
        side = next_side(setting.layout, setting.goal, self._position)
        return next(text for text, bit in self._w.actions.items() if bit == side)

    def snapshot(self) -> bytes:
        s = self._started()
        return encode(
            MazeState(
                s.layout.columns,
                s.layout.passages,
                s.start,
                s.goal,
                self._position,
                self._moves,
                self._over,
            )
        )

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this maze session is closed; make a new one")
        try:
            s = decoder(MazeState).decode(state)
        except MessageError as error:
            raise EnvironmentFault(f"not a snapshot of a maze: {error}") from None
        layout = Layout(s.columns, s.passages)
        if s.moves < 0 or not all(layout.holds(p) for p in (s.start, s.goal, s.position)):
            raise EnvironmentFault("not a snapshot of a maze: a position lies outside its walls")
        self._setting = Setting(layout, s.start, s.goal)
        self._position, self._moves, self._over = s.position, s.moves, s.over

    def close(self) -> None:
        self._closed = True
        self._setting = None

    def _started(self) -> Setting:
        if self._setting is None:
            state = "closed; make a new one" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this maze session is {state}")
        return self._setting

"""One session: reach a goal in a grid of rooms, by actions that stand for several steps.

An action is carried out step by step and stops where a step leaves the view as it was (a
wall in the way). How an episode ends is the scoring's:

* "minigrid": as in the level itself. The first step that ends the level ends the action
  and the episode: solved, with the level's reward 1 - 0.9 x steps / limit; lost, with 0,
  where the level forbids a wrong move; or out of steps.
* "agentgym": as AgentGym's server. The action is carried out to its last step, and only
  what that step earns counts; an end with 0.5 or less is taken back, and so is the limit
  of steps; whatever was earned last is earned again by every later action. Here for
  comparison: it can be farmed, and rewards have no bounds.

Invariant: the state is a task and the primitive actions since, so a snapshot is these, and
restoring it generates the level again.

Not here: the world (`levels`), what can be done in it (`scene`), the expert's plan (`expert`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from ...engine.codec import Message, decoder, encode
from ...engine.errors import ConfigError, EnvironmentFault, MessageError
from ..base import Environment, StepResult, Task
from .expert import Guide
from .levels import TOGGLE, Level
from .scene import NOTHING, UNKNOWN, Scene, scene
from .tasks import level_and_seed


class Scoring(StrEnum):
    """How an episode ends and what it earns; see above."""

    MINIGRID = "minigrid"
    AGENTGYM = "agentgym"


class Wording(StrEnum):
    """Which texts."""

    PUBLISHED = "published"
    """As in the published trajectories."""
    SERVER = "server"
    """As live servers: every observation lists the available actions."""


COMPLETED: Final = "\n The task is completed."
FAILED: Final = "\n The task has failed."
OUT_OF_STEPS: Final = "\n There are no steps left."

_MAX_PRIMITIVES: Final = 1 << 16
"""Most primitive actions in a snapshot that is believed: a minute of replay at the worst."""


class BabyAIState(Message, frozen=True):
    """A snapshot."""

    index: int
    primitives: bytes
    """Every primitive action since the reset."""
    said: str
    """The latest observation."""
    sticky: float
    """What AgentGym's scoring pays again for every action."""
    over: bool


class BabyAI(Environment):
    """A session."""

    __slots__ = (
        "_closed",
        "_farmed",
        "_guide",
        "_index",
        "_level",
        "_over",
        "_said",
        "_scene",
        "_sticky",
        "_wording",
    )

    def __init__(
        self, scoring: Scoring = Scoring.MINIGRID, wording: Wording = Wording.PUBLISHED
    ) -> None:
        self._farmed = scoring is Scoring.AGENTGYM
        self._wording = wording
        self._level: Level | None = None
        self._guide: Guide
        self._index = 0
        self._scene: Scene
        self._said = ""
        self._sticky = 0.0
        self._over = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this BabyAI session is closed; make a new one")
        self._level = Level(*level_and_seed(task.index))
        self._index = task.index
        self._guide = Guide(past_the_end=self._farmed)
        self._sticky = 0.0
        self._over = False
        self._scene = scene(self._level.view, self._level.facing)
        goal = self._level.mission.replace("then", "and").replace("after you", "and")
        return self._say(f"Your goal: {goal}\n{self._scene.description}")

    def step(self, action: str) -> StepResult:
        level = self._started()
        if self._over:
            raise EnvironmentFault("the episode in this BabyAI session is over; reset it first")
        text = action.lower().strip()
        # As that server reads it: any text with this word in it asks for the list.
        if "check" in text:
            return self._answer(self._scene.listed())
        primitives = self._scene.actions.get(text)
        if primitives:
            return self._carry_out(level, primitives)
        if primitives is not None or not text:
            return self._answer(NOTHING)
        return self._answer(self._scene.reasons.get(text, UNKNOWN))

    def observation(self) -> str:
        self._started()
        return self._said

    def available_actions(self) -> Sequence[str]:
        self._started()
        return () if self._over else tuple(self._scene.actions)

    def expert(self) -> str | None:
        """The plan of the package's bot, in as few actions as it can be said in."""
        level = self._started()
        return None if self._over else self._guide.advise(level)

    def snapshot(self) -> bytes:
        level = self._started()
        return encode(
            BabyAIState(self._index, bytes(level.primitives), self._said, self._sticky, self._over)
        )

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this BabyAI session is closed; make a new one")
        try:
            saved = decoder(BabyAIState).decode(state)
            task = level_and_seed(saved.index)
        except (MessageError, ConfigError) as error:
            raise EnvironmentFault(f"not a snapshot of BabyAI: {error}") from None
        if len(saved.primitives) > _MAX_PRIMITIVES or max(saved.primitives, default=0) > TOGGLE:
            raise EnvironmentFault("not a snapshot of BabyAI: its actions are none of the level's")
        level = Level(*task, saved.primitives)
        self._level, self._index, self._guide = (
            level,
            saved.index,
            Guide(past_the_end=self._farmed),
        )
        self._said, self._sticky, self._over = saved.said, saved.sticky, saved.over
        self._scene = scene(level.view, level.facing)

    def close(self) -> None:
        self._closed = True
        self._level = None

    def _carry_out(self, level: Level, primitives: tuple[int, ...]) -> StepResult:
        reward, terminated, truncated = level.follow(primitives, past_the_end=self._farmed)
        self._scene = scene(level.view, level.facing)
        if not self._farmed:
            return self._end_as_level(reward, terminated, truncated)
        self._sticky = reward
        self._over = terminated and reward > 0.5
        text = self._say(self._scene.description + COMPLETED * terminated)
        return StepResult(text, reward, self._over, success=self._over)

    def _end_as_level(self, reward: float, terminated: bool, truncated: bool) -> StepResult:
        success = terminated and reward > 0
        self._over = terminated or truncated
        end = COMPLETED if success else FAILED if terminated else OUT_OF_STEPS * truncated
        text = self._say(self._scene.description + end)
        return StepResult(text, reward, terminated, truncated and not terminated, success)

    def _answer(self, text: str) -> StepResult:
        """Say something without a step."""
        return StepResult(self._say(text), self._sticky)

    def _say(self, text: str) -> str:
        if self._wording is Wording.SERVER:
            names = ", ".join(f'"{name}"' for name in self._scene.actions)
            text = f"{text}\nAvailable actions: [{names}]"
        self._said = text
        return text

    def _started(self) -> Level:
        if self._level is None:
            state = "closed; make a new one" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this BabyAI session is {state}")
        return self._level

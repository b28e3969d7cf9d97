"""The same games on alfworld's own engine: TextWorld over a planner's grounded domain.

    pip install 'rollwave[alfworld-reference]'

This engine is what ours is compared with (`make alfworld-conformance`). It is about a
thousand times slower, its planner is GPL software, and it is not thread-safe, so nothing
here needs it and no environment id leads to it.

Texts are treated as AgentGym's server treats them: the banner goes, and so does "You arrive
at loc 7." of alfworld 0.3.3. The command `help` of 0.4.2, which ours does not have, is left
out.

Not here: rules or texts of our own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...engine.errors import EnvironmentFault, MissingDependency
from ..base import Environment, StepResult, Task
from .environment import STEP_LIMIT
from .game import Game
from .problem import write
from .tasks import numbered
from .wording import AGENTGYM, LATER, Wording

_UNSAID: Final = "UNKNOWN GOAL"
"""Stands for the goal's sentence in the published grammar."""

LOGIC: Final = "ALFWORLD_LOGIC"
"""Environment variable: the folder of another version's `alfred.pddl` and `alfred.twl2`."""


class Reference(Environment):
    """A session on alfworld's engine. Resetting takes seconds, a step a tenth of one."""

    def __init__(self) -> None:
        """Find the engine.

        Raises:
            MissingDependency: alfworld is not installed.
        """
        try:
            self._textworld: Any = importlib.import_module("textworld")
            self._pddl: Any = importlib.import_module("textworld.envs.pddl")
            self._misc: Any = importlib.import_module("alfworld.agents.utils.misc")
            package: Any = importlib.import_module("alfworld")
        except ImportError as error:
            raise MissingDependency(
                f"the reference engine needs alfworld ({error}): "
                "pip install 'rollwave[alfworld-reference]'"
            ) from None
        default = Path(next(iter(package.__path__))) / "data"
        folder = Path(os.environ.get(LOGIC) or default)
        self._domain = (folder / "alfred.pddl").read_text(encoding="utf-8")
        self._grammar = (folder / "alfred.twl2").read_text(encoding="utf-8")
        self._engine: Any = None
        self._state: Any = None
        self._latest = ""
        self._steps = 0

    @property
    def wording(self) -> Wording:
        """Which of our wordings the installed grammar has."""
        return LATER if "move {o} to {r}" in self._grammar else AGENTGYM

    def reset(self, task: Task, seed: int) -> str:
        return self.play(numbered(task.index))

    def play(self, game: Game) -> str:
        """Start a game."""
        infos = self._textworld.EnvInfos(won=True, admissible_commands=True)
        engine = self._pddl.PddlEnv(infos)
        engine.load(
            {
                "pddl_domain": self._domain,
                "grammar": self._grammar.replace(_UNSAID, game.sentence),
                "pddl_problem": write(game),
            }
        )
        entities = engine._entity_infos
        names = self._misc.Demangler(game_infos=entities)
        for entity in entities.values():
            entity.name = names.demangle_alfred_name(entity.id)
        self._engine, self._steps = engine, 0
        self._state = engine.reset()
        self._latest = "\n".join(self._state.feedback.split("\n\n")[1:])
        return self._latest

    def step(self, action: str) -> StepResult:
        if self._engine is None or self._state.won or self._steps >= STEP_LIMIT:
            raise EnvironmentFault("reset the session first")
        self._state, _, _ = self._engine.step(action)
        self._steps += 1
        text = self._state.feedback
        if text.startswith("You arrive at loc"):
            text = text.partition(". ")[2]
        self._latest = text
        won = bool(self._state.won)
        lost = not won and self._steps >= STEP_LIMIT
        return StepResult(text, float(won), won, truncated=lost, success=won)

    def observation(self) -> str:
        if self._engine is None:
            raise EnvironmentFault("reset the session first")
        return self._latest

    def available_actions(self) -> Sequence[str]:
        if self._engine is None:
            raise EnvironmentFault("reset the session first")
        return tuple(c for c in self._state["admissible_commands"] if c != "help")

    def close(self) -> None:
        self._engine = self._state = None

"""Many logical sessions of ScienceWorld over one Java process with few live ones."""

from __future__ import annotations

from typing import Any

from ...engine.errors import EnvironmentFault, MissingDependency
from .simulator import Moved

_SHUT = "this simulator is closed"


class Simulators:
    """One Java process, started when it is first needed, and the sessions in it.

    Calls may come from any thread, one at a time.
    """

    def __init__(self, *, heap_mib: int = 1024, live: int = 64) -> None:
        """
        Args:
            heap_mib: of the Java process, at most.
            live: sessions held in it at most; others are rebuilt when they are called.
        """
        self.heap_mib = heap_mib
        self.live = live
        self._env: Any = None

    def open(self) -> Simulator:
        """A session in which nothing is loaded yet. Costs nothing."""
        return Simulator(self)

    def close(self) -> None:
        """End the Java process. Sessions are closed with it."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def server(self) -> Any:
        """Provisional."""
        if self._env is None:
            try:
                from scienceworld import ScienceWorldEnv
            except ImportError as error:
                raise MissingDependency("install rollwave[sciworld]") from error
            self._env = ScienceWorldEnv("", envStepLimit=10**9)
        return self._env._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()


class Simulator:
    """One logical session. Made by `Simulators.open`."""

    def __init__(self, owner: Simulators) -> None:
        self._owner = owner
        self._server: Any = None
        self._key = ("", 0, "")

    def load(self, task: str, variation: int, simplification: str = "easy") -> None:
        """Begin a task anew.

        Args:
            task: the package's own name, such as "boil".
            variation: of that task, from 0.
            simplification: comma-separated, as the package spells them; "" for none.

        Raises:
            ConfigError: there is no such task, variation or simplification.
            MissingDependency: no Java, or no `scienceworld`.
            EnvironmentLost: the Java process died.
        """
        self._server = self._owner.server()
        self._key = (task, variation, simplification)
        self._server.load(task, variation, simplification, False)

    def _live(self) -> Any:
        if self._server is None:
            raise EnvironmentFault(_SHUT)
        return self._server

    def task_description(self) -> str:
        """What is to be done."""
        return str(self._live().getTaskDescription())

    def step(self, action: str) -> Moved:
        """Take an action.

        Raises:
            EnvironmentLost: the Java process died.
        """
        server = self._live()
        observation = str(server.step(action))
        score = round(100 * server.getScore())
        return Moved(observation, score, bool(server.getCompleted()), int(server.getNumMoves()))

    def look(self) -> str:
        """The room. Costs no move."""
        return str(self._live().freeActionLook())

    def inventory(self) -> str:
        """What is carried. Costs no move."""
        return str(self._live().freeActionInventory())

    def gold_path(self) -> tuple[str, ...]:
        """Actions that solve the loaded task from its start."""
        scratch = self._owner.server()
        scratch.load(*self._key, True)
        return tuple(map(str, scratch.getGoldActionSequence()))

    def valid_actions(self) -> tuple[str, ...]:
        """Every action that does something now. Slow."""
        return tuple(map(str, self._live().getValidActionObjectCombinations()))

    def close(self) -> None:
        """Let go of it. Never raises; may be called again."""
        self._server = None

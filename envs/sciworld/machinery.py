"""How the simulator's own parts are put together in one Java process, for many sessions.

The package's `PythonInterface` is one session, and holds all that tasks are made of: 7,207
variations, 10.6 MB, made anew at each load (twice, with the reset that follows). A session
needs none of it but its own variation. So here the parts are called that `PythonInterface`
calls: the task's family is made, the house is built, the task is set up in it, and what is
kept is the package's `AgentInterface`, a few hundred kB.

Three things the package keeps once for the whole process, and sessions that take turns
would disturb each other: the random numbers, the counter that numbers objects, and the
simplifications. Each session has its own, put in place when another had the turn.

Invariants:

* a loaded session equals the one that `PythonInterface.load` makes, to the random number:
  families are made in one order, each draws and numbers a fixed amount (`_FAMILIES`), and
  what was not made is skipped. Where the package's release makes them otherwise, which is
  looked at once, all of them are made;
* what one session does is not seen by another.

Not here: a step of a session (`simulator`), which sessions are kept (`pool`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ...engine.errors import ConfigError
from .gateway import Call, Gateway, Item, Long, New, Ref, Static
from .jvm import Jvm

_TASKS: Final = "scienceworld.tasks.specifictasks"
_FAMILIES: Final = (
    ("TaskChangeOfState", 360, 32),
    ("TaskElectricCircuit", 60, 0),
    ("TaskElectricalConductivity", 156, 0),
    ("TaskElectricalConductivity2", 120, 24),
    ("TaskFindLivingNonLiving", 5160, 640),
    ("TaskGrowPlant", 1602, 0),
    ("TaskChemistryMix", 312, 0),
    ("TaskChemistryMixPaint", 222, 4),
    ("TaskLifeSpan", 135, 0),
    ("TaskIdentifyLifeStages1", 630, 0),
    ("TaskIdentifyLifeStages2", 2850, 80),
    ("TaskInclinedPlane1", 150, 0),
    ("TaskInclinedPlane2", 60, 0),
    ("TaskInclinedPlane3", 60, 0),
    ("TaskMendelianGenetics1", 360, 140),
    ("TaskMendelianGenetics2", 600, 1080),
    ("TaskUseInstrumentThermometer", 1173, 720),
    ("TaskUseInstrumentThermometer2", 303, 25),
    ("TaskUseInstrumentThermometer3", 2883, 775),
)
"""The order in which release 1.2.3 makes them; objects numbered and random numbers drawn,
measured, and the same for each seed."""

_IDS: Final = Static("util.UniqueIdentifier")
_PYTHON: Final = "scienceworld.runtime.pythonapi.PythonInterface"
_SIMPLIFIER: Final = Static("main.scala.scienceworld.runtime.SimplifierProcessor")

_BITS: Final = (1 << 48) - 1
_MULTIPLIER: Final = 0x5DEECE66D
"""Of java.util.Random, whose documentation specifies how it draws."""


def skipped(seed: int, draws: int) -> int:
    """The seed with which java.util.Random is where it would be after so many draws."""
    state = (seed ^ _MULTIPLIER) & _BITS
    factor, term = _MULTIPLIER, 0xB
    while draws:
        if draws & 1:
            state = (state * factor + term) & _BITS
        term = (factor * term + term) & _BITS
        factor = factor * factor & _BITS
        draws >>= 1
    return state ^ _MULTIPLIER


@dataclass(slots=True)
class Live:
    """A session in the Java process."""

    agent: Ref
    """The package's AgentInterface."""
    random: Ref
    """Its random numbers."""
    simplifications: str
    description: str
    ids: int
    """Objects numbered so far."""
    score: float = 0.0
    done: bool = False
    moves: int = 0


@dataclass(slots=True)
class _Family:
    name: str
    ids: int
    draws: int


@dataclass(slots=True)
class _Table:
    total: int
    families: dict[str, _Family] = field(default_factory=dict)


class Machinery:
    """What sessions of one Java process share."""

    def __init__(self, jvm: Jvm) -> None:
        """Take half a second, of which loading Java's classes is the most.

        Raises:
            EnvironmentFault: the package is not one that is known.
            EnvironmentLost: the process died.
        """
        self.jvm: Final = jvm
        self.gateway: Final[Gateway] = jvm.gateway
        self._silence()
        name = Static("java.lang.Class")
        module = self.gateway.call(name, "forName", "scala.util.Random$")
        field_ = self.gateway.call(module, "getField", "MODULE$")
        self._generator: Final[Ref] = self.gateway.call(field_, "get", None)
        kind = self.gateway.call(name, "forName", "scala.util.Random")
        self._self: Final[Ref] = self.gateway.call(kind, "getDeclaredField", "self")
        self.gateway.call(self._self, "setAccessible", True)
        self._scratch: Final[Ref] = self._random()
        self._turn: Live | None = None
        self._simplified: str | None = None
        self._classes: dict[str, str] = {}
        self._maker: Ref
        self.count: Final = Call(_IDS, "count")
        """Says how many objects were numbered in the session whose turn it is."""
        self._table: Final = self._look()
        self.variations: Final = self._variations()
        """Of each task."""

    # -- what is made once ----------------------------------------------------

    def _silence(self) -> None:
        """The simulator prints what it does."""
        nothing = self.gateway.call(Static("java.io.OutputStream"), "nullOutputStream")
        stream = self.gateway.calls(New("java.io.PrintStream", nothing))[0]
        self.gateway.call(Static("java.lang.System"), "setOut", stream)
        self.gateway.call(Static("java.lang.System"), "setErr", stream)

    def _random(self) -> Ref:
        made: Ref = self.gateway.calls(New("java.util.Random", Long(0)))[0]
        return made

    def _look(self) -> _Table | None:
        """Make all tasks once, and see whether that goes as it is known to."""
        probe = 1
        answers = self.gateway.calls(
            Call(self._self, "set", self._generator, self._scratch),
            Call(self._scratch, "setSeed", Long(probe)),
            Call(_IDS, "reset"),
            New("scienceworld.tasks.TaskMaker1"),
            self.count,
            Call(self._scratch, "nextInt"),
            Call(self._scratch, "setSeed", Long(skipped(probe, sum(f[2] for f in _FAMILIES)))),
            Call(self._scratch, "nextInt"),
        )
        self._maker = answers[3]
        table = _Table(answers[4])
        ids = draws = 0
        for name, numbered, drawn in _FAMILIES:
            table.families[f"{_TASKS}.{name}"] = _Family(name, ids, draws)
            ids += numbered
            draws += drawn
        return table if ids == table.total and answers[5] == answers[7] else None

    def _variations(self) -> dict[str, int]:
        names = self.texts(Call(self._maker, "getTaskList"))
        counts = self.gateway.calls(*[Call(self._maker, "getMaxVariations", n) for n in names])
        return dict(zip(names, counts, strict=True))

    # -- sessions -------------------------------------------------------------

    def load(self, task: str, variation: int, simplifications: str) -> Live:
        """Begin a session.

        Raises:
            ConfigError: there is no such task, variation or simplification.
        """
        self._check(task, variation)
        call, calls = self.gateway.call, self.gateway.calls
        random = self._random()
        self._turn = self._simplified = None
        table = self._table
        if table is not None:
            family = table.families[self._class(task)]
            maker = self._maker
            made = calls(
                Call(self._self, "set", self._generator, random),
                Call(random, "setSeed", Long(skipped(variation, family.draws))),
                Call(_IDS, "count_$eq", Long(family.ids)),
                Call(Static(f"{_TASKS}.{family.name}"), "registerTasks", maker),
                Call(_IDS, "count_$eq", Long(table.total)),
                _house(variation),
            )
        else:
            made = calls(
                Call(self._self, "set", self._generator, random),
                Call(random, "setSeed", Long(variation)),
                Call(_IDS, "reset"),
                New("scienceworld.tasks.TaskMaker1"),
                _house(variation),
            )
            maker = made[-2]
        house = made[-1]
        universe, agent = calls(Call(house, "_1"), Call(house, "_2"))
        setup = call(maker, "doTaskSetup", task, variation, universe, agent)
        option, trouble = calls(Call(setup, "_1"), Call(setup, "_2"))
        if not call(option, "isDefined"):
            raise ConfigError(f"ScienceWorld cannot set up {task} {variation}: {trouble}")
        goal = call(option, "get")
        session, ids = calls(
            New("scienceworld.runtime.AgentInterface", universe, agent, goal, simplifications),
            self.count,
        )
        self.gateway.drop(house, universe, agent, setup, option, goal)
        if table is None:
            self.gateway.drop(maker)
        wrong, why, used, description = calls(
            Call(session, "isInErrorState"),
            Call(session, "getErrorStateMessage"),
            Call(session, "simplificationStr"),
            Call(session, "getTaskDescription"),
        )
        live = Live(session, random, used, description, ids)
        if wrong:
            self.forget(live)
            raise ConfigError(f"ScienceWorld cannot load {task} with {simplifications!r}: {why}")
        self._turn, self._simplified = live, used
        return live

    def turn(self, live: Live) -> list[Call]:
        """The calls to make before those of a session's own, so that it has its turn."""
        if self._turn is live:
            return []
        calls = [
            Call(self._self, "set", self._generator, live.random),
            Call(_IDS, "count_$eq", Long(live.ids)),
        ]
        if self._simplified != live.simplifications:
            calls.append(Call(_SIMPLIFIER, "parseSimplificationStr", live.simplifications))
        self._turn, self._simplified = live, live.simplifications
        return calls

    def aside(self) -> list[Call]:
        """The calls to make first when what is drawn next is nobody's."""
        self._turn = None
        return [
            Call(self._self, "set", self._generator, self._scratch),
            Call(self._scratch, "setSeed", Long(0)),
        ]

    def forget(self, live: Live) -> None:
        """Let go of a session; the memory comes back in time."""
        if self._turn is live:
            self._turn = None
        self.gateway.drop(live.agent, live.random)

    def gold_path(self, task: str, variation: int, simplifications: str) -> tuple[str, ...]:
        """What the package's own agent does to solve a task. Takes seconds.

        Raises:
            ConfigError: there is no such task or variation.
        """
        self._check(task, variation)
        self._simplified = None
        interface = self.gateway.calls(*self.aside(), New(_PYTHON))[-1]
        self.gateway.call(interface, "load", task, variation, simplifications, True)
        path = self.texts(Call(interface, "goldActionsStr"))
        self.gateway.drop(interface)
        return path

    def texts(self, *calls: Call) -> tuple[str, ...]:
        """The texts of the array that the last call gives."""
        array = self.gateway.calls(*calls)[-1]
        length = self.gateway.calls(Item(array))[0]
        texts = self.gateway.calls(*[Item(array, index) for index in range(length)])
        self.gateway.drop(array)
        return tuple(texts)

    def free_mib(self, *, collect: bool = False) -> float:
        """Of the heap, at most; what is not used any more counts as used until collected."""
        gateway = self.gateway
        runtime = gateway.call(Static("java.lang.Runtime"), "getRuntime")
        if collect:
            gateway.call(Static("java.lang.System"), "gc")
        most, total, free = gateway.calls(
            Call(runtime, "maxMemory"), Call(runtime, "totalMemory"), Call(runtime, "freeMemory")
        )
        gateway.drop(runtime)
        return float(most - total + free) / 2**20

    def _check(self, task: str, variation: int) -> None:
        count = self.variations.get(task)
        if count is None:
            raise ConfigError(
                f"ScienceWorld has no task {task!r}; it has {', '.join(self.variations)}"
            )
        if not 0 <= variation < count:
            raise ConfigError(
                f"ScienceWorld's {task} has variations 0 to {count - 1}, not {variation}"
            )

    def _class(self, task: str) -> str:
        """Of what makes a task."""
        if task not in self._classes:
            call = self.gateway.call
            option = call(self._maker, "getTask", task)
            made = call(option, "get")
            kind = call(made, "getClass")
            self._classes[task] = str(call(kind, "getName"))
            self.gateway.drop(option, made, kind)
        return self._classes[task]


def _house(variation: int) -> Call:
    maker = Static("scienceworld.environments.EnvironmentMaker")
    return Call(maker, "mkKitchenEnvironment", Long(variation))

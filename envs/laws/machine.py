"""Several sessions at once, in any order: a stateful test of one environment.

    TestMine = machine(spec).TestCase

Invariant: whatever a failure needed, its log of steps is kept with it.

Not here: laws about one session or two (`single`).
"""

from __future__ import annotations

import sys
from typing import ClassVar, Final

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ...engine.errors import LawBroken
from ..base import SPLITS, EnvSpec, Task
from .probe import Answer, Move, Probe
from .scripts import moves

_SESSIONS: Final = 2
"""More would only thin out the meetings of their paths."""

_sessions: Final = st.integers(0, _SESSIONS - 1)


class SessionsMachine(RuleBasedStateMachine):
    """Whatever sessions go on beside it, a path of actions is always answered alike.

    Several sessions play at once, against a memory of what each path was answered.
    A path is a task, a seed and the actions since the reset. However a session came
    to a path (played, replayed, restored, beside others), the answers along it must
    be the same. Make one for a spec with `machine`.
    """

    spec: EnvSpec
    findings: ClassVar[list[tuple[int, LawBroken]]] = []
    """Failures so far with the number of steps to each; the plainest comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.memory: dict[tuple[int, int, tuple[str, ...]], Answer] = {}
        self.snapshots: list[tuple[bytes, Probe]] = []
        self.sessions = [Probe(self.spec) for _ in range(_SESSIONS)]
        for number, probe in enumerate(self.sessions):
            self._begin(probe, number)

    def teardown(self) -> None:
        """Note a failure with the steps of all sessions that led to it."""
        error = sys.exception()
        if isinstance(error, LawBroken):
            steps = "".join(f"\n    {step}" for step in self.log)
            told = LawBroken(f"{error}\n  sessions:{steps}", unsound=error.unsound)
            self.findings.append((len(self.log), told))

    def _begin(self, probe: Probe, number: int) -> None:
        """Reset to one of two tasks, the ends of a split: with few, paths meet."""
        split = next(split for split in SPLITS if len(self.spec.splits.get(split, ())))
        members = self.spec.splits[split]
        probe.reset(Task(self.spec.id, members[-(number % 2)], split), number % 2)
        self._remember(probe)

    def _remember(self, probe: Probe) -> None:
        """Compare with what this path was answered before; note it if it is new."""
        assert probe.task is not None
        path = (probe.task.index, probe.seed, tuple(probe.actions))
        probe.agree(self.memory.setdefault(path, probe.answers[-1]))

    def _log_said(self, session: int, start: int) -> None:
        for action in self.sessions[session].actions[start:]:
            self.log.append(f"session {session}: say {action[:80]!r}")

    def _go_on(self, probe: Probe, move: Move) -> None:
        if probe.try_move(move) is not None:
            self._remember(probe)

    @rule(session=_sessions, number=st.integers(0, 1), fresh=st.booleans())
    def begin(self, session: int, number: int, fresh: bool) -> None:
        """Start over, in the same session or in a new one after closing it."""
        how = "close; a new one, reset" if fresh else "reset"
        self.log.append(f"session {session}: {how} to task {number}")
        if fresh:
            self.sessions[session].close()
            self.sessions[session] = Probe(self.spec)
        self._begin(self.sessions[session], number)

    @rule(session=_sessions, move=st.one_of(st.builds(Move, number=st.integers(0, 3)), moves()))
    def step(self, session: int, move: Move) -> None:
        """Play a move, unless the episode is over."""
        said = len(self.sessions[session].actions)
        try:
            self._go_on(self.sessions[session], move)
        finally:
            self._log_said(session, said)

    @rule(session=_sessions, count=st.integers(1, 4))
    def advance(self, session: int, count: int) -> None:
        """Follow the expert for a while."""
        said = len(self.sessions[session].actions)
        try:
            for _ in range(count):
                self._go_on(self.sessions[session], Move(expert=True))
        finally:
            self._log_said(session, said)

    @rule(session=_sessions, model=_sessions)
    def retrace(self, session: int, model: int) -> None:
        """Start over and say all that another session said, or this one itself."""
        probe, other = self.sessions[session], self.sessions[model]
        actions = list(other.actions)
        self.log.append(f"session {session}: reset, and say what session {model} said")
        assert other.task is not None
        probe.reset(other.task, other.seed)
        for action in actions:
            probe.step(action)
            self._remember(probe)

    @rule(session=_sessions)
    def take(self, session: int) -> None:
        """Take a snapshot, where there are any, and go on."""
        probe = self.sessions[session]
        state = probe.snapshot()
        if state is not None:
            past = Probe(self.spec)
            past.task, past.seed = probe.task, probe.seed
            past.actions, past.answers = list(probe.actions), list(probe.answers)
            self.log.append(f"session {session}: snapshot {len(self.snapshots)}, first action")
            self.snapshots.append((state, past))
            self._go_on(probe, Move())

    @rule(session=_sessions, number=st.integers(0, 7))
    def restore(self, session: int, number: int) -> None:
        """Put any session back to any snapshot, and go on as after taking it."""
        if self.snapshots:
            number %= len(self.snapshots)
            state, past = self.snapshots[number]
            self.log.append(f"session {session}: restore {number}, first action")
            self.sessions[session].restore(state, past, len(past.actions))
            self._go_on(self.sessions[session], Move())

    @invariant()
    def observations_stand(self) -> None:
        """What one session does, leaves the latest observation of the others as it is."""
        for probe in self.sessions:
            probe.unchanged("between other calls")


def machine(spec: EnvSpec) -> type[SessionsMachine]:
    """The stateful test of one environment; `machine(spec).TestCase` runs under pytest."""
    return type("SessionsOfOneEnvironment", (SessionsMachine,), {"spec": spec, "findings": []})

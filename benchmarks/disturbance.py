"""One workload under faults, the same for whoever plays it: tasks, agent, latencies, faults.

    Workload ─ tasks, agent, latencies, faults by (episode, turn) ─┬─▶ Rollwave (`recovery`)
                                                                   └─▶ the lock-step loop

The world is a generated maze; the agent takes the best move or, in some turns, wanders, so
that an episode's reward depends on how long it takes: it succeeds early or is cut by its turn
limit. Longer episodes meet more faults, as in any world.

Faults, each drawn for one (episode, turn, round):

* `raise`: the environment raises;
* `hang`: the environment answers nothing until the turn's deadline;
* `garbage`: the environment's reward is not a number;
* `refuse`: the backend refuses the request;
* `crash`: the process that the environment runs in dies.

Beside them the backend dies a few times a run, in the middle of a chosen request, and takes
some time to start again.

Invariant: every draw depends on the workload's seed, the episode, the turn and the round
alone: two ways to play meet the same faults in the same places, whatever their schedules.

Not here: who plays, and what is measured (`recovery`, `lockstep`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ..actors.backends.base import Done
from ..actors.backends.latency import Latency, LogNormalLatency
from ..actors.backends.scripted import ScriptedBackend
from ..actors.dispatcher import episodes
from ..actors.protocol import Generate, RunEpisode, RunRollout, Sampling
from ..engine.errors import BackendError, EnvironmentLost
from ..engine.seeds import derive, generator
from ..envs.base import EnvSpec, StepResult, Task
from ..envs.hosting import Host, Hosted, InlineHost
from ..envs.maze.expert import next_side
from ..envs.maze.tasks import grid
from ..envs.maze.wording import TERSE
from ..envs.rebuilding import Rebuilding
from ..envs.registry import resolve

KINDS: Final = ("raise", "hang", "garbage", "refuse", "crash")
"""Turn faults, all equally likely."""

GENERATE: Final = LogNormalLatency(4.0, 0.7, longest=40.0)
"""Seconds of a completion: a heavy tail, as of completions of very different length."""
RESET: Final = LogNormalLatency(1.0, 0.5, longest=10.0)
STEP: Final = LogNormalLatency(0.5, 1.0, longest=20.0)

RESTART_SECONDS: Final = 60.0
"""A backend that died serves again after so long."""

_SIZE: Final = 6
_WORLD: Final = f"maze-grid-v1?size={_SIZE}&style=terse"
_SETTING: Final = grid(_SIZE, 0.5, _SIZE * _SIZE // 2)
_SIDES: Final = {side: word for word, side in TERSE.actions.items()}
_WANDER: Final = tuple(_SIDES)


@dataclass
class Workload:
    """What is played in one run, and what goes wrong in it."""

    seed: int
    count: int
    """Episodes, one for each task."""
    rate: float
    """Share of turns that a fault strikes."""
    deaths: int = 0
    """Times that the backend dies."""
    skill: float = 0.6
    """Share of turns in which the agent takes a best move; in the others it wanders."""
    turn_seconds: float = 120.0
    """Deadline of a turn: completion and step together."""
    round: int = 0
    """How often the faulted episodes have been played again so far."""
    died: list[float] = field(default_factory=list)
    """When the backend died."""
    sessions: list[list[float]] = field(default_factory=list)
    """Of each session when it began, when each of its steps was answered or failed, and when
    it was closed."""
    _struck: set[tuple[str, int]] = field(default_factory=set)
    """What happens once and is over: requests that killed, worlds that crashed."""

    def __post_init__(self) -> None:
        self.spec: EnvSpec = resolve(_WORLD)
        drawn = generator(self.seed, "recovery", "tasks").sample(range(4000), self.count)
        self.tasks: list[Task] = self.spec.numbered(drawn)
        self._fault_seeds = derive(self.seed, "recovery", "fault")
        self._latency_seeds = derive(self.seed, "recovery", "latency")
        # Spread over the run; in the first turns, so that there are as many in any order.
        shares = [(k + 1) / (self.deaths + 1) for k in range(self.deaths)]
        lethal = [self.tasks[int(share * self.count)].id for share in shares]
        self._lethal = {id_: derive(self.seed, "lethal turn", id_) % 3 for id_ in lethal}

    def episodes(self) -> list[RunEpisode]:
        """The episodes with their seeds, as Rollwave's dispatcher names them."""
        order = RunRollout(0, tuple(self.tasks), 1, 0, self.seed, Sampling())
        return list(episodes(order))

    def fault(self, task: str, turn: int) -> str:
        """What strikes this turn (its request or its step); empty for nothing."""
        if task in self._lethal:
            return ""  # so that its lethal turn is reached
        point = derive(self._fault_seeds, task, turn, self.round) / 2**63
        return KINDS[int(point / self.rate * len(KINDS))] if point < self.rate else ""

    def kills(self, task: str, turn: int) -> bool:
        """Whether this request kills the backend. Only the first time that it is asked."""
        if self._lethal.get(task) != turn or (task, turn) in self._struck:
            return False
        self._struck.add((task, turn))
        return True

    def crashes(self, task: str, turn: int) -> bool:
        """Whether this step's process dies. Only once: replayed in another, it does not."""
        key = (f"{self.round} {task}", turn)
        if self.fault(task, turn) != "crash" or key in self._struck:
            return False
        self._struck.add(key)
        return True

    def seconds(self, what: Latency, task: str, turn: int) -> float:
        """How long the environment takes for this reset (turn -1) or step."""
        return what.draw(derive(self._latency_seeds, task, turn))

    def choose(self, index: int, observation: str, seed: int) -> str:
        """The agent's move in the maze of that task, from what it sees and its seed alone."""
        point = derive(seed, "agent") / 2**63
        if point >= self.skill:
            rest = (point - self.skill) / (1 - self.skill)
            side = _WANDER[int(rest * len(_WANDER))]
        else:
            words = observation.split()  # goal 2 1 pos 0 3 walls up down
            setting = _SETTING(index)
            side = next_side(setting.layout, setting.goal, (int(words[4]), int(words[5])))
        return _SIDES[side]

    def open(self) -> int:
        """Note that a session begins; gives its number."""
        self.sessions.append([trio.current_time()])
        return len(self.sessions) - 1

    def moved(self, session: int) -> None:
        """Note that it got on: a step was answered or failed, or it was closed."""
        self.sessions[session].append(trio.current_time())

    def recoveries(self, share: float = 0.9) -> list[float]:
        """For each death of the backend the seconds until this share of the sessions that were
        live at that moment had got on; those it found already at their end are not counted."""
        found = []
        for death in self.died:
            live = [times for times in self.sessions if times[0] <= death < times[-1]]
            waits = sorted(times[bisect_right(times, death)] - death for times in live)
            if waits:
                found.append(waits[math.ceil(share * len(waits)) - 1])
        return found


class MortalBackend(ScriptedBackend):
    """Serves the workload's agent; some requests it refuses, some kill it."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(GENERATE, answer=self._write, takes_tokens=False)
        self._workload = workload
        self._dies = trio.Event()
        self._end = math.inf

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Load for `RESTART_SECONDS`, then serve until a request kills it.

        Raises:
            BackendDied: one did.
        """
        await trio.sleep(RESTART_SECONDS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_for_death)
            await super().run(task_status=task_status)

    async def _wait_for_death(self) -> None:
        await self._dies.wait()
        await trio.sleep_until(self._end)
        self._workload.died.append(trio.current_time())
        self.die()

    def submit(self, request: Generate, done: Done) -> None:
        """Accept a request, of whatever kind."""
        task, turn = _position(request)
        if self._workload.kills(task, turn):
            self._end = trio.current_time() + GENERATE.draw(request.seed) / 2
            self._dies.set()
        super().submit(request, done)

    def _write(self, request: Generate) -> str:
        task, turn = _position(request)
        if self._workload.fault(task, turn) == "refuse":
            raise BackendError("injected: the request is refused")
        index = int(task.rpartition("_")[2])
        return self._workload.choose(index, request.messages[-1].text, request.seed)


class DisturbedHost(Host):
    """The workload's world: it takes its time, and some of its steps go wrong."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._inner = InlineHost(workload.spec.make)

    async def open(self) -> Hosted:
        session = Rebuilding(self._session, replay=True)  # as for worlds in worker processes
        await session.open()
        return session

    async def _session(self) -> Hosted:
        return _Disturbed(self._workload, await self._inner.open())


class _Disturbed(Hosted):
    def __init__(self, workload: Workload, inner: Hosted) -> None:
        self._workload = workload
        self._inner = inner
        self._session = workload.open()
        self._task = ""
        self._turn = 0

    async def reset(self, task: Task, seed: int) -> str:
        self._task = task.id
        await trio.sleep(self._workload.seconds(RESET, self._task, -1))
        return await self._inner.reset(task, seed)

    async def step(self, action: str) -> StepResult:
        workload, turn = self._workload, self._turn
        self._turn += 1
        try:
            return await self._step(action, turn, workload.fault(self._task, turn))
        finally:
            workload.moved(self._session)

    async def _step(self, action: str, turn: int, fault: str) -> StepResult:
        if fault == "hang":
            await trio.sleep_forever()
        await trio.sleep(self._workload.seconds(STEP, self._task, turn))
        if fault == "raise":
            raise RuntimeError("injected: the environment raises")
        if fault == "garbage":
            return StepResult("injected: no number", math.nan)
        if self._workload.crashes(self._task, turn):
            raise EnvironmentLost("injected: the process of the environment died")
        return await self._inner.step(action)

    async def expert(self) -> str | None:
        return await self._inner.expert()

    async def available_actions(self) -> Sequence[str]:
        return await self._inner.available_actions()

    async def close(self) -> None:
        await self._inner.close()
        self._workload.moved(self._session)

    def abandon(self) -> None:
        self._inner.abandon()
        self._workload.moved(self._session)


def _position(request: Generate) -> tuple[str, int]:
    """Task id and turn of a request, from its id."""
    _, task, _, turn = request.request_id.split("/")
    return task, int(turn)

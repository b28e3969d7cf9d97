"""An inference backend with no model: replicas that batch continuously, on trio's clock.

It stands in for vLLM servers behind a router: a request joins the batch of the replica
with the fewest requests as soon as that has a slot, runs for its own latency, and leaves.

Invariants: an answer and its latency depend on the request alone, apart from what
`per_request` adds; one task serves every request; the servers do not wait for our loop.

Not here: batches that start and end together (`backends.scripted`), the slots (`slots`).
"""

from __future__ import annotations

from typing import Final

import trio

from ...engine.errors import BackendDied
from ...engine.trajectory import FinishReason
from ...engine.virtual_clock import Alarm, VirtualClock
from ..backends.base import Backend, Done
from ..protocol import Completion, Generate
from .bounds import Demand
from .draws import Draws
from .events import Events
from .slots import Request, Slots
from .timeline import Timeline

ANSWER: Final = "go"


class _Asked:
    """A request and who wants to know."""

    __slots__ = ("demand", "done", "episode", "id", "turn")

    def __init__(self, id_: str, episode: int, turn: int, demand: float, done: Done) -> None:
        self.id = id_
        self.episode = episode
        self.turn = turn
        self.demand = demand
        self.done = done


class ReplicaBackend(Backend):
    """Serves the requests of a simulated world by their drawn latencies.

    Args:
        draws: the latencies, by episode and turn.
        replicas: servers.
        batch: slots of each; 0 = without bound.
        per_request: seconds that each request on a replica adds to a new one.
        demand: told each completion that came to its end.
        timeline: told how many wait and run.
        events: told when a request joins a batch.
        version: the policy it serves.
    """

    takes_tokens = False
    gives_tokens = False

    def __init__(
        self,
        draws: Draws,
        replicas: int,
        batch: int,
        per_request: float,
        demand: Demand,
        timeline: Timeline,
        events: Events,
        version: int = 0,
    ) -> None:
        super().__init__()
        self.policy_version = version
        self.statistics.batch_capacity = batch
        self._draws = draws
        self._per_request = per_request
        self._demand = demand
        self._timeline = timeline
        self._events = events
        self._slots: Slots[_Asked] = Slots(replicas, batch, per_request)
        self._requests: dict[str, Request[_Asked]] = {}
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, VirtualClock)  # nothing else simulates replicas
        self._alarm = Alarm(clock)
        self._asleep_until = float("-inf")
        self._drained = trio.Event()
        self._death = ""

    def submit(self, request: Generate, done: Done) -> None:
        """Accept a request; an earlier one of the same id is forgotten."""
        id_ = request.request_id
        if id_ in self._requests:
            self.cancel(id_)
        _, task, _, turn = id_.split("/")
        episode = int(task.rpartition("_")[2])
        number = int(turn)
        seconds = self._draws.generate[self._draws.first(episode) + number]
        asked = _Asked(id_, episode, number, seconds + self._per_request, done)
        now = trio.current_time()
        self._timeline.advance(now)
        placed = self._requests[id_] = self._slots.place(asked, seconds, now)
        self.statistics.requests += 1
        if placed.started >= 0.0:
            self._joined(placed)
            if self._slots.due() < self._asleep_until:
                self._alarm.ring()
        self._timeline.change(self._slots.waiting, self._slots.running)

    def cancel(self, request_id: str) -> None:
        """Forget a request: its slot is free at once."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        now = trio.current_time()
        self._timeline.advance(now)
        follower = self._slots.drop(request, now)
        if follower is not None:
            self._joined(follower)
        self._timeline.change(self._slots.waiting, self._slots.running)
        self._alarm.ring()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled.

        Raises:
            BackendDied: `die` was called.
        """
        task_status.started()
        try:
            while not self._death:
                self._asleep_until = self._slots.due()
                await self._alarm.until(self._asleep_until)
                self._asleep_until = float("-inf")
                self._answer(trio.current_time())
            raise BackendDied(f"simulated replicas: {self._death}")
        finally:
            self._timeline.advance(trio.current_time())
            self._timeline.change(0, 0)  # whoever follows begins with nothing

    async def swap_weights(self, version: int, path: str) -> None:
        """Let what runs finish, then serve `version`; the path is not looked at."""
        self._slots.held = True
        try:
            while self._slots.running:
                self._drained = trio.Event()
                await self._drained.wait()
            await trio.lowlevel.checkpoint()
            self.policy_version = version
        finally:
            now = trio.current_time()
            self._timeline.advance(now)
            for request in self._slots.resume(now):
                self._joined(request)
            self._timeline.change(self._slots.waiting, self._slots.running)
            self._alarm.ring()

    def die(self, reason: str = "died, as it was told to") -> None:
        """Make `run` raise `BackendDied`, as lost servers would."""
        self._death = reason
        self._alarm.ring()

    def _joined(self, request: Request[_Asked]) -> None:
        asked, statistics = request.item, self.statistics
        statistics.batches += 1
        statistics.batch_requests += request.size
        self._events("batch", asked.episode, asked.turn, request.replica, request.size)

    def _answer(self, now: float) -> None:
        """Answer what is due; who waited got the slot when it came free."""
        slots, timeline = self._slots, self._timeline
        answered: list[_Asked] = []
        while (due := slots.due()) <= now:
            timeline.advance(due)
            _, request, follower = slots.pop()
            timeline.change(slots.waiting, slots.running)
            answered.append(request.item)
            if follower is not None:
                self._joined(follower)
        for asked in answered:
            del self._requests[asked.id]
            self._demand.episodes[asked.episode] += asked.demand
            self._demand.slots += asked.demand
            self.statistics.completions += 1
            asked.done(
                Completion(asked.id, ANSWER, b"", b"", FinishReason.STOP, self.policy_version)
            )
        if not slots.running:
            self._drained.set()

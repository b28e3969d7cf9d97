"""Who is served when: replicas with slots, as a continuously batching server has them.

    place ─▶ the replica with the fewest requests ─ slot free ─▶ runs `seconds` + what the
                                                  └ none ─▶ waits there, first come first served

A request that joins n others on a replica takes its own seconds and `per_request` for
each of the n + 1. It keeps what it was given: later ones slow themselves alone.

Invariants: a replica runs at most `batch` requests (0 = without bound) and lets none wait
while it has a slot; a request that follows another begins when that one ended, however
late anybody looks.

Pure: no clock and no task of its own. Not here: the backend around it (`replicas`).
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class Request(Generic[T]):
    """One request: where it is, and until when."""

    __slots__ = ("item", "live", "number", "replica", "seconds", "size", "started")

    def __init__(self, item: T, seconds: float, number: int, replica: int) -> None:
        self.item = item
        self.seconds = seconds
        self.number = number
        self.replica = replica
        self.started = -1.0
        """Below 0: it waits."""
        self.size = 0
        """Requests on the replica when it began, itself included."""
        self.live = True


class Slots(Generic[T]):
    """The slots of all replicas."""

    def __init__(self, replicas: int, batch: int, per_request: float = 0.0) -> None:
        self.replicas: Final = replicas
        self.batch: Final = batch
        self.running = 0
        self.waiting = 0
        self.held = False
        """Nothing begins while it is set."""
        self._per_request = per_request
        self._running = [0] * replicas
        self._load = [0] * replicas
        self._queues: list[deque[Request[T]]] = [deque() for _ in range(replicas)]
        self._heap: list[tuple[float, int, Request[T]]] = []
        self._number = 0

    def place(self, item: T, seconds: float, now: float) -> Request[T]:
        """Take a request in; `started` says whether it runs."""
        load = self._load
        replica = load.index(min(load)) if self.replicas > 1 else 0
        self._number += 1
        request = Request(item, seconds, self._number, replica)
        load[replica] += 1
        if self.held or (self.batch and self._running[replica] >= self.batch):
            self._queues[replica].append(request)
            self.waiting += 1
        else:
            self._start(request, now)
        return request

    def due(self) -> float:
        """When the next request ends; infinity if none runs."""
        while self._heap and not self._heap[0][2].live:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else float("inf")

    def pop(self) -> tuple[float, Request[T], Request[T] | None]:
        """Take out the request that `due` has just found: when it ends, and who gets its slot."""
        end, _, request = heappop(self._heap)
        request.live = False
        return end, request, self._free(request.replica, end)

    def drop(self, request: Request[T], now: float) -> Request[T] | None:
        """Forget a request, wherever it is; who got its slot, if it had one."""
        if not request.live:
            return None
        request.live = False
        if request.started >= 0.0:
            return self._free(request.replica, now)
        self._load[request.replica] -= 1
        self.waiting -= 1  # it stays in its queue until its turn
        return None

    def resume(self, now: float) -> list[Request[T]]:
        """Let begin what waits and has a slot, after `held`."""
        self.held = False
        begun: list[Request[T]] = []
        for replica in range(self.replicas):
            while not self.batch or self._running[replica] < self.batch:
                if (request := self._next(replica, now)) is None:
                    break
                begun.append(request)
        return begun

    def _free(self, replica: int, now: float) -> Request[T] | None:
        self._running[replica] -= 1
        self._load[replica] -= 1
        self.running -= 1
        return None if self.held else self._next(replica, now)

    def _next(self, replica: int, now: float) -> Request[T] | None:
        queue = self._queues[replica]
        while queue:
            request = queue.popleft()
            if request.live:
                self.waiting -= 1
                self._start(request, now)
                return request
        return None

    def _start(self, request: Request[T], now: float) -> None:
        running = self._running[request.replica] + 1
        self._running[request.replica] = running
        self.running += 1
        request.started = now
        request.size = running
        end = now + request.seconds + self._per_request * running
        heappush(self._heap, (end, request.number, request))

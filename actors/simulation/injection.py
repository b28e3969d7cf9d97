"""Brings a fault plan into a running engine: one injector for one simulated process.

    injector = Injector(plan, process=0)
    engine.use(spec, injector.host(host))
    PolicySource(make_backend=injector.backend(make), ...)
    Store.open(path, disk=injector.disk(disk))
    nursery.start_soon(injector.disturb, engine)

Invariants: what strikes is settled by the plan and the run's seed alone; each strike is
counted once, when it really happens; without faults nothing is wrapped.

Not here: the faults themselves (`faulty_*`, `disturbance`), the plan (`fault_plan`), and
what a crash does to a directory (`drill`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from ...engine.disk import Disk
from ...engine.ref import ActorRef
from ...engine.seeds import generator
from ...envs.hosting import Host
from ..embedding import Engine
from ..inference import MakeBackend
from .disturbance import DISTURBANCES, Disturbance
from .fault_plan import FaultPlan
from .faulty_backend import BACKEND_STRIKES, BackendCounts, FaultyBackend
from .faulty_disk import DISK_STRIKES, FaultyDisk
from .faulty_environment import FaultyHost


class Injector:
    """The faults of one plan in one run of the command."""

    def __init__(self, plan: FaultPlan, *, process: int = 0) -> None:
        """`process` is 0 before the first crash, 1 in the run after it, and so on."""
        self.plan: Final = plan
        self.process: Final = process
        self.struck: Final[Counter[str]] = Counter()
        """Strikes so far, by boundary and kind."""
        self.cast: Final[dict[str, ActorRef]] = {}
        """Actors beside the engine's own that may be struck: the learner."""
        self.campaign: trio.CancelScope | None = None
        """Around whoever runs the campaign, if that may be cancelled."""
        self.crash: Callable[[str], None] | None = None
        """Ends the simulated process, if that may die; told how."""
        self.surprises: Final[list[str]] = []
        """Answers to disturbances that should not have been given."""
        self._training_steps = 0
        self._requests = BackendCounts()

    def strike(self, kind: str) -> None:
        """Count a strike."""
        self.struck[kind] += 1

    def host(self, host: Host) -> Host:
        """An environment that raises, hangs, answers garbage, and whose process dies."""
        if not any(self.plan.environment.shares().values()):
            return host
        return FaultyHost(host, self.plan, self.process, self.strike)

    def backend(self, make: MakeBackend) -> MakeBackend:
        """Backends that refuse, stall, answer too late or falsely, die, and fail to swap."""
        strikes = self.plan.strikes(self.process, BACKEND_STRIKES)
        if not strikes and not any(self.plan.backend.shares().values()):
            return make
        # Counted over all incarnations: else the first strike would hit each of them.
        return lambda version, path: FaultyBackend(
            make(version, path), self.plan, strikes, self._requests, self.strike
        )

    def disk(self, disk: Disk) -> Disk:
        """A disk that is full, tears writes, fails at fsync, and loses its power."""
        strikes = self.plan.strikes(self.process, DISK_STRIKES)
        return (
            disk
            if not strikes
            else FaultyDisk(disk, strikes, self.strike, self._cut_power, self.plan.seed)
        )

    def training_step(self) -> None:
        """To be called by a learner at each step; raises where the plan lets it fail.

        Raises:
            RuntimeError: as a defect in a training library would.
        """
        number, self._training_steps = self._training_steps, self._training_steps + 1
        for strike in self.plan.strikes(self.process, ("learner.fails",)):
            if strike.at == number:
                self.strike("learner.fails")
                raise RuntimeError(f"injected: training step {number} failed")

    def pause(self, record: str) -> float:
        """Seconds that a consumer pauses at the record of that id; mostly 0."""
        consumer = self.plan.consumer
        if not consumer.draw(generator(self.plan.seed, "consumer", record).random()):
            return 0.0
        self.strike("consumer.slow")
        return consumer.seconds

    async def disturb(self, engine: Engine) -> None:
        """Strike actors, mailboxes and the clock when their moment comes. Until cancelled."""
        strikes = self.plan.strikes(self.process, DISTURBANCES)
        if strikes:
            await Disturbance(self, engine, strikes).run()

    def kill(self) -> bool:
        """End the simulated process as `kill -9` does; False where it cannot die."""
        if self.crash is None:
            return False
        self.crash("process.killed")
        return True

    def _cut_power(self, how: str) -> bool:
        if self.crash is None:
            return False
        self.strike(how)
        self.crash(how)
        return True

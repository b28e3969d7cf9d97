"""What a step costs where it runs: on the loop, in a thread, in a worker process.

    python -m rollwave.benchmarks.workers

Sessions of one environment step at the same time, each waiting for its answer before the
next, as an episode does. "Cheap" steps do almost nothing, so that what is measured is the
way there and back; "busy" ones compute for some milliseconds in Python, which threads
cannot do side by side and processes can. The elapsed time is divided by the steps of all
sessions; the CPU is that of the engine's process alone.

Not here: whole episodes with a model (`throughput`, `engine`).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import trio

from ..cli.output import Output
from ..engine.child import ChildSpec
from ..engine.system import ActorSystem
from ..envs.base import Environment, EnvSpec, StepResult, Task
from ..envs.hosting import Host, Hosted, InlineHost, ThreadHost
from ..envs.worker.host import Owner, WorkerHost
from ..envs.worker.limits import WorkerLimits
from .report import Spread, write

SESSIONS: Final = (1, 256)
BUSY_ROUNDS: Final = 50_000
"""Additions of one busy step."""


class Steps(Environment):
    """Adds up some numbers in each step, and never ends."""

    def __init__(self, rounds: int = 0) -> None:
        self._rounds = rounds
        self._said = ""

    def reset(self, task: Task, seed: int) -> str:
        self._said = "Go."
        return self._said

    def step(self, action: str) -> StepResult:
        total = 0
        for number in range(self._rounds):
            total += number
        self._said = f"{action}: {total}"
        return StepResult(self._said)

    def observation(self) -> str:
        return self._said

    def available_actions(self) -> Sequence[str]:
        return ("go",)


class BusySteps(Steps):
    """Computes in each step."""

    def __init__(self) -> None:
        super().__init__(BUSY_ROUNDS)


@dataclass(frozen=True, slots=True)
class StepCost:
    """One host with so many sessions."""

    step: str
    host: str
    sessions: int
    elapsed_us: Spread
    """Microseconds of the wall clock for each step."""
    engine_cpu_us: Spread
    """Microseconds of CPU that the engine's process spent on it."""


async def _play(session: Hosted, steps: int) -> None:
    for _ in range(steps):
        await session.step("go")
        await trio.lowlevel.checkpoint()  # inline steps do not wait: others would not run


async def _measure(host: Host, sessions: int, steps: int) -> tuple[float, float]:
    """Microseconds a step, of wall and of our CPU."""
    opened = [await host.open() for _ in range(sessions)]
    for session in opened:
        await session.reset(Task("steps-v1", 0), 0)
    began, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for session in opened:
            nursery.start_soon(_play, session, steps)
    seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    for session in opened:
        await session.close()
    return seconds / (sessions * steps) * 1e6, spent / (sessions * steps) * 1e6


async def _measure_all(workers: int, cheap: int, busy: int, repeats: int) -> list[StepCost]:
    """Every host, for cheap and busy steps; `cheap` and `busy` are steps in all."""
    costs = []
    async with ActorSystem() as system:
        owner = Owner()
        await system.start(ChildSpec("workers", owner.actor))
        for name, make, total in (("cheap", Steps, cheap), ("busy", BusySteps, busy)):
            spec = EnvSpec(id=f"{name}-v1", make=make, splits={"test": range(1)})
            hosts: dict[str, Host] = {
                "inline": InlineHost(make),
                "thread": ThreadHost(make, trio.CapacityLimiter(math.inf)),
            }
            for count in dict.fromkeys((1, workers)):
                limits = WorkerLimits(workers=count)
                label = f"{count} worker{'s' if count > 1 else ''}"
                hosts[label] = WorkerHost(owner, spec, limits)
            for label, host in hosts.items():
                for sessions in SESSIONS:
                    steps = max(1, total // sessions)
                    await _measure(host, sessions, 1)  # starts what has to be started
                    runs = [await _measure(host, sessions, steps) for _ in range(repeats)]
                    elapsed, spent = zip(*runs, strict=True)
                    costs.append(
                        StepCost(name, label, sessions, Spread.of(elapsed), Spread.of(spent))
                    )
    return costs


def main() -> int:
    """Measure, print the table, write one JSON."""
    parser = argparse.ArgumentParser(description="What a step costs where it runs.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cheap", type=int, default=10_240, help="cheap steps a measurement")
    parser.add_argument("--busy", type=int, default=256, help="busy steps a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/workers.json"))
    options = parser.parse_args()
    costs = trio.run(_measure_all, options.workers, options.cheap, options.busy, options.repeats)
    output = Output()
    output.table(
        ["steps", "where", "sessions", "µs a step", "of it engine CPU"],
        [
            [cost.step, cost.host, cost.sessions, str(cost.elapsed_us), str(cost.engine_cpu_us)]
            for cost in costs
        ],
    )
    write(options.out, {"costs": [asdict(cost) for cost in costs]})
    output.text(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    # The module once more, under the name that worker processes import it by.
    from . import workers

    sys.exit(workers.main())

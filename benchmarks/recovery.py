"""What faults cost: goodput, recovery and reward bias, beside a lock-step loop.

    python -m rollwave.benchmarks.recovery --seeds 5

The same workload (`disturbance`: tasks, seeds, latencies, faults by episode and turn) is
played by Rollwave's engine and by a lock-step loop that counts a fault as reward 0
(`lockstep` says exactly what it does), each on the virtual clock: the figures are those of
the schedule alone, and the same on any machine.

* **Goodput**: episodes that ended with the world's own reward, per simulated second from the
  first reset to the last record, restarts and waiting included.
* **Recovery**: simulated seconds from a death of the backend until nine in ten of the
  sessions that were live then have got on (their next step is answered, or they ended).
  The restart itself takes 60 s of it.
* **Reward bias**: mean reward of what a learner is given, minus the mean over the same
  episodes undisturbed. Rollwave gives the scored episodes, the lock-step loop gives all.
  Leaving faulted episodes out has a bias too: long episodes meet more faults and succeed
  less. It is in the figures, and so is what playing the faulted ones again does to it (same
  seeds, new faults, at most `--again` times).

Not here: real time (`throughput`), an hour of churn (`soak`).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import trio

from ..actors.embedding import Engine, EngineSettings, open_engine
from ..actors.policy_source import PolicySource
from ..cli.output import Output
from ..engine.testing import run_simulated
from ..engine.trajectory import Trajectory
from . import lockstep
from .disturbance import DisturbedHost, MortalBackend, Workload
from .lockstep import Score
from .quiet import quiet
from .report import Spread, write

RATES: Final = (0.0, 0.001, 0.01, 0.05, 0.2)
LOOPS: Final = ("Rollwave", "Rollwave, faults again", "lock-step")
STOP_SHARE: Final = 0.05
"""Faulted episodes above which a campaign stops by default (`run.max_fault_share`)."""

_COLUMNS: Final = (
    *("turns struck", "loop", "episodes faulted", "goodput, 1/s", "of its own calm"),
    *("recovery, s: median, worst", "reward bias"),
)


@dataclass(frozen=True, slots=True)
class Played:
    """One run of one loop."""

    loop: str
    rate: float
    seed: int
    seconds: float
    """Simulated."""
    scored: int
    """Episodes with the world's own reward."""
    faulted: int
    reward: float
    """Mean of what a learner is given."""
    recoveries: tuple[float, ...]

    @property
    def goodput(self) -> float:
        """Scored episodes a simulated second."""
        return self.scored / self.seconds


def play_rollwave(
    workload: Workload, together: int, again: int
) -> tuple[Played, Played, dict[str, Trajectory]]:
    """Play the workload with the engine; then its faulted episodes again, at most so often.

    Returns:
        Figures without and with playing again, and every scored trajectory by its id.
    """
    source = PolicySource(
        kind="model", name="scripted", make_backend=lambda _version, _path: MortalBackend(workload)
    )
    settings = EngineSettings(
        concurrency=together, seed=workload.seed, turn_seconds=workload.turn_seconds
    )
    scored: dict[str, Trajectory] = {}

    async def once(engine: Engine) -> None:
        rollout = engine.rollout(workload.tasks, skip=tuple(scored))
        async with rollout:
            async for trajectory in rollout:
                if trajectory.outcome.scored:
                    scored[trajectory.id] = trajectory

    async def run() -> tuple[Played, Played]:
        async with open_engine(source, settings=settings) as engine:
            engine.use(workload.spec, DisturbedHost(workload))
            began = trio.current_time()

            def figures(loop: str) -> Played:
                seconds = trio.current_time() - began
                rewards = [t.reward for t in scored.values() if t.reward is not None]
                return _played(workload, loop, seconds, rewards, len(scored))

            await once(engine)
            first = figures(LOOPS[0])
            while len(scored) < workload.count and workload.round < again:
                workload.round += 1
                await once(engine)
            return first, figures(LOOPS[1])

    first, last = run_simulated(run, seed=workload.seed)
    return first, last, scored


def play_lockstep(workload: Workload, together: int) -> tuple[Played, dict[str, Score]]:
    """Play the workload in lock-step; figures, and how each episode ended by its id."""

    async def run() -> tuple[Played, dict[str, Score]]:
        scores = await lockstep.play(workload, together)
        rewards = [score.reward for score in scores.values()]
        scored = sum(not score.faulted for score in scores.values())
        return _played(workload, LOOPS[2], trio.current_time(), rewards, scored), scores

    return run_simulated(run, seed=workload.seed)


def _played(
    workload: Workload, loop: str, seconds: float, rewards: Sequence[float], scored: int
) -> Played:
    return Played(
        loop,
        workload.rate,
        workload.seed,
        seconds,
        scored,
        workload.count - scored,
        fmean(rewards) if rewards else 0.0,
        tuple(workload.recoveries()),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One loop under one fault rate, over all seeds."""

    loop: str
    rate: float
    goodput: Spread
    kept: Spread
    """Goodput as a share of the same loop's, undisturbed."""
    faulted: Spread
    """Share of the episodes."""
    bias: Spread
    recovery: tuple[float, float] | None
    """Median and worst, in simulated seconds; None where nothing died."""
    deaths: int

    @property
    def stops(self) -> bool:
        """Whether a campaign would give this wave up."""
        return self.faulted.median > STOP_SHARE


def summarise(runs: Iterable[Played]) -> list[Row]:
    """Compare each run with its own seed's undisturbed one."""
    runs = list(runs)
    calm = {(run.loop, run.seed): run for run in runs if run.rate == 0}
    rows = []
    for loop, rate in dict.fromkeys((run.loop, run.rate) for run in runs):
        same = [run for run in runs if (run.loop, run.rate) == (loop, rate)]
        recoveries = [seconds for run in same for seconds in run.recoveries]
        rows.append(
            Row(
                loop,
                rate,
                Spread.of([run.goodput for run in same]),
                Spread.of([run.goodput / calm[loop, run.seed].goodput for run in same]),
                Spread.of([run.faulted / (run.faulted + run.scored) for run in same]),
                Spread.of([run.reward - calm[loop, run.seed].reward for run in same]),
                (median(recoveries), max(recoveries)) if recoveries else None,
                len(recoveries),
            )
        )
    return rows


def measure(
    rates: Sequence[float], seeds: int, episodes: int, together: int, deaths: int, again: int
) -> list[Played]:
    """Play every rate under every seed with both loops."""
    runs: list[Played] = []
    for seed in range(seeds):
        for rate in rates:

            def workload(seed: int = seed, rate: float = rate) -> Workload:
                return Workload(seed, episodes, rate, deaths if rate else 0)

            first, last, _ = play_rollwave(workload(), together, again)
            steps, _ = play_lockstep(workload(), together)
            runs += [first, last, steps]
    return runs


def show(rows: Sequence[Row], output: Output) -> None:
    """Print the table."""
    output.table(
        _COLUMNS,
        [
            [
                f"{100 * row.rate:g} %",
                row.loop,
                f"{100 * row.faulted.median:.1f} %",
                str(row.goodput),
                f"{100 * row.kept.median:.0f} %",
                f"{row.recovery[0]:.0f}, {row.recovery[1]:.0f}" if row.recovery else None,
                f"{row.bias.median:+.3f} ({row.bias.least:+.3f} to {row.bias.most:+.3f})",
            ]
            for row in sorted(rows, key=lambda row: (row.rate, LOOPS.index(row.loop)))
        ],
        title="Faults, and what they cost: median (least to most) over the seeds",
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain data, with whether a campaign would have gone on."""
    return [asdict(row) | {"campaign_stops": row.stops} for row in rows]


def main() -> int:
    """Play all, print the table, draw the figure, write one JSON."""
    parser = argparse.ArgumentParser(description="Goodput, recovery and reward bias under faults.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=2048)
    parser.add_argument("--together", type=int, default=128, help="live sessions")
    parser.add_argument("--deaths", type=int, default=3, help="of the backend, in a disturbed run")
    parser.add_argument("--again", type=int, default=3, help="times to play faults again, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/recovery.json"))
    parser.add_argument("--figure", type=Path, default=Path("runs/bench/recovery.png"))
    options = parser.parse_args()
    for name in ("seeds", "episodes", "together"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    output = Output()
    with quiet(logging.ERROR):  # deaths are what is measured
        runs = measure(
            RATES, options.seeds, options.episodes, options.together, options.deaths, options.again
        )
    rows = summarise(runs)
    show(rows, output)
    settings = {key: value for key, value in vars(options).items() if isinstance(value, int)}
    figures = {"settings": settings, "rows": as_json(rows), "runs": [asdict(r) for r in runs]}
    write(options.out, figures)
    try:
        from .recovery_figure import draw_recovery  # matplotlib comes with an extra
    except ImportError:
        output.warn("no figure: matplotlib is not installed (pip install 'rollwave[figures]')")
    else:
        output.text(f"drawn as {draw_recovery(rows, options.figure)}")
    output.text(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

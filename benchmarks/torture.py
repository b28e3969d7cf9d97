"""Thousands of generated fault plans against the real engine: every invariant, every plan.

    python -m rollwave.benchmarks.torture --plans 10000 --seed 0 --jobs 2
    python -m rollwave.benchmarks.torture --plan runs/torture/plan-4711.toml

Plan n of a run has the seed `--seed` + n. Each is played twice on the virtual clock, killed
and begun again where it says so, and held to the invariants (`actors/simulation/invariants`).
A plan that breaks one is shrunk, printed and written as TOML. A run of 2,000 plans or more
fails also if some kind of fault never struck: then it has shown nothing about it.

Not here: the same as a property under Hypothesis (`tests/properties/test_torture.py`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ..actors.simulation.fault_plan import KINDS, FaultPlan, find_plan
from ..actors.simulation.random_plan import random_plan
from ..actors.simulation.trial import examine, shrink
from ..cli.output import Output
from ..engine.errors import ConfigError
from .quiet import quiet
from .report import write

ENOUGH: Final = 2000
"""Plans after which every kind of fault must have struck."""
_CHUNK: Final = 25
_PLAN_SECONDS: Final = 120.0
"""Of CPU, for one plan; a healthy one takes a tenth of one."""
_SHRUNK: Final = 3
"""Broken plans that are shrunk; more of them are only counted and listed."""

Draw = Callable[[int], FaultPlan]


class Hung(BaseException):
    """A plan that computes without end: virtual time stands still in it."""


@dataclass
class Tally:
    """What so many plans came to."""

    plans: int = 0
    runs: int = 0
    """Of the command, the repetitions for the digest not counted."""
    seconds: float = 0.0
    """Virtual."""
    struck: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[int, list[str]] = field(default_factory=dict)
    """Problems by the seed of the plan."""

    def add(self, other: Tally) -> None:
        """Take another tally in."""
        self.plans += other.plans
        self.runs += other.runs
        self.seconds += other.seconds
        for mine, theirs in (
            (self.struck, other.struck),
            (self.ended, other.ended),
            (self.errors, other.errors),
            (self.outcomes, other.outcomes),
        ):
            mine.update(theirs)
        self.broken |= other.broken

    def enter(self, plan: FaultPlan) -> None:
        """Play a plan and count what it came to."""
        self.plans += 1
        problems, story = verdict(plan)
        if problems:
            self.broken[plan.seed] = problems
        if story is None:
            return
        self.runs += len(story.processes)
        self.struck.update(story.struck)
        for process in story.processes:
            self.seconds += process.seconds
            self.ended[process.ended] += 1
            if process.error is not None:
                self.errors[type(process.error).__name__] += 1
        for wave in story.waves.values():
            self.outcomes.update(record.outcome.value for record in wave.trajectories)

    def silent(self) -> list[str]:
        """Kinds of faults that never struck."""
        return [kind for kind in KINDS if not self.struck[kind]]


def verdict(plan: FaultPlan) -> tuple[list[str], Any]:
    """The problems of a plan, and its story if it came to one."""
    try:
        with _alarm(_PLAN_SECONDS):
            trial = examine(plan)
    except Hung:
        return [f"it ends: no end within {_PLAN_SECONDS:g} seconds of CPU"], None
    except Exception as error:  # noqa: BLE001 (a defect that the drill itself could not stand)
        return [f"it ends: {type(error).__name__}: {error}"], None
    return trial.problems, trial.story


def some(first: int, plans: int, draw: Draw = random_plan) -> Tally:
    """Play the plans of these seeds, one after the other."""
    tally = Tally()
    with _quiet():
        for seed in range(first, first + plans):
            tally.enter(draw(seed))
    return tally


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `Hung` after so many seconds of CPU: a busy machine, or one that was suspended, takes
    more by the clock, and an alarm in the middle of a run leaves trio in no state for the next."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Restarts and refused messages are what is asked for here: no warnings of them."""
    import pyarrow

    threads = pyarrow.cpu_count()
    pyarrow.set_cpu_count(1)  # tiny files: handing them to threads takes longer than reading
    try:
        with quiet():
            yield
    finally:
        pyarrow.set_cpu_count(threads)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops, and with it the workers


def torture(plans: int, seed: int, jobs: int, told: Callable[[Tally], None]) -> Tally:
    """Play that many plans in that many processes; `told` of the tally as it grows.

    Ctrl-C ends it with what was done so far.
    """
    tally = Tally()
    chunks = iter(range(seed, seed + plans, _CHUNK))

    def size(first: int) -> int:
        return min(_CHUNK, seed + plans - first)

    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_ignore_interrupt)
    try:
        running: set[Future[Tally]] = set()
        for first in chunks:
            running.add(pool.submit(some, first, size(first)))
            if len(running) >= 2 * jobs:
                running = _collect(running, tally, told)
        while running:
            running = _collect(running, tally, told)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in list((pool._processes or {}).values()):
            worker.terminate()
    else:
        pool.shutdown()
    return tally


def _collect(
    running: set[Future[Tally]], tally: Tally, told: Callable[[Tally], None]
) -> set[Future[Tally]]:
    done, left = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        tally.add(future.result())
    told(tally)
    return left


def small(plan: FaultPlan, problems: list[str]) -> FaultPlan:
    """Shrink a plan to one that breaks the same invariant."""
    name = problems[0].partition(":")[0]
    return shrink(plan, lambda p: any(text.startswith(name) for text in verdict(p)[0]))


def main() -> int:
    """Play the plans, print the counts, write one JSON; 1 if an invariant broke."""
    parser = argparse.ArgumentParser(description="Generated fault plans against the engine.")
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first plan")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--plan", help="play this one: a TOML file, or a plan's name")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"))
    options = parser.parse_args()
    output = Output()
    with _quiet():
        return _run(options, output) if options.plan is None else _one(options.plan, output)


def _run(options: argparse.Namespace, output: Output) -> int:
    """Play many plans, print the tables, shrink what broke, write one JSON."""
    began = time.perf_counter()

    def told(tally: Tally) -> None:
        if sys.stderr.isatty():
            text = f"{tally.plans:,} of {options.plans:,} plans, {len(tally.broken)} broken"
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    tally = torture(options.plans, options.seed, options.jobs, told)
    seconds = time.perf_counter() - began
    _show(tally, seconds, output)
    for broken, problems in sorted(tally.broken.items())[:_SHRUNK]:
        _confess(random_plan(broken), problems, options.out, output)
    silent = tally.silent() if tally.plans >= ENOUGH else []
    if silent:
        output.text(f"NEVER STRUCK, so nothing was shown about: {', '.join(silent)}")
    figures = {
        "plans": tally.plans,
        "first_seed": options.seed,
        "jobs": options.jobs,
        "seconds": round(seconds, 1),
        "virtual_seconds": round(tally.seconds),
        "runs": dict(tally.ended.most_common()),
        "struck": {kind: tally.struck[kind] for kind in KINDS},
        "outcomes": dict(tally.outcomes.most_common()),
        "errors": dict(tally.errors.most_common()),
        "broken": {str(number): texts[:3] for number, texts in sorted(tally.broken.items())},
    }
    write(options.out / "torture.json", figures)
    output.text(f"written to {options.out / 'torture.json'}")
    return 1 if tally.broken or silent or tally.plans < options.plans else 0


def _one(name: str, output: Output) -> int:
    try:
        plan = find_plan(name)
    except ConfigError as error:
        output.text(str(error))
        return 2
    problems, story = verdict(plan)
    for process in story.processes if story is not None else ():
        struck = ", ".join(f"{kind} {count}" for kind, count in sorted(process.struck.items()))
        told = f": {process.error}" if process.error is not None else ""
        output.text(
            f"process {process.number} {process.ended} after {process.steps} steps{told}; "
            f"struck: {struck or 'nothing'}"
        )
    output.text("\n".join(problems) if problems else "every invariant holds")
    return 1 if problems else 0


def _confess(plan: FaultPlan, problems: list[str], out: Path, output: Output) -> None:
    """Print a broken plan, as small as it gets, and how to play it again."""
    output.text(f"plan {plan.seed} breaks an invariant: {problems[0]}")
    least = small(plan, problems)
    path = out / f"plan-{plan.seed}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(least.toml(), "utf-8")
    output.text(f"shrunk, and written to {path}:\n\n{least.toml()}")
    output.text(f"python -m rollwave.benchmarks.torture --plan {path}\n")


def _show(tally: Tally, seconds: float, output: Output) -> None:
    output.table(
        [f"{tally.plans:,} plans in {seconds:,.0f} s", "struck"],
        [[kind, f"{tally.struck[kind]:,}"] for kind in KINDS],
    )
    output.table(
        ["runs of the command", "times"],
        [[how, f"{count:,}"] for how, count in tally.ended.most_common()],
    )
    output.table(
        ["errors told to the user", "times"],
        [[name, f"{count:,}"] for name, count in tally.errors.most_common()],
    )
    output.table(
        ["sealed episodes", ""],
        [[name, f"{count:,}"] for name, count in tally.outcomes.most_common()],
    )
    output.text(
        f"{len(tally.broken)} of {tally.plans:,} plans broke an invariant; "
        f"{tally.runs:,} runs of the command, {tally.seconds / 3600:,.0f} virtual hours"
    )


if __name__ == "__main__":
    sys.exit(main())

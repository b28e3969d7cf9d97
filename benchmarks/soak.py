"""An hour of churn, and whether anything grows that should not.

    python -m rollwave.benchmarks.soak --minutes 60        # or: make soak

Sessions start and end, environments raise, hang and answer garbage, backends die, weights are
swapped, rollouts are abandoned, engines and runs are opened and closed (`churn`). Every few
seconds the process is looked at (`vitals`): memory, file descriptors, threads, children,
tasks, mailboxes, objects by class. At the end each level's first and last tenth and its
slope are shown, after a warm-up, and judged (`trend`, which states what is allowed). It ends
with 1 if anything grew, and names it.

Real time, real threads, real disk. Not here: figures on the virtual clock (`recovery`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import trio

from ..cli.output import Cell, Output
from . import vitals
from .churn import Churn
from .quiet import quiet
from .report import write
from .trend import TOLERANCES, WARM_UP, Trend, judge
from .vitals import History, Sample

_SAMPLES: Final = 720
"""Looks in a run: each 5 s of an hour, not more often than ten times a second."""
_CLASSES: Final = 8
"""Classes of objects in the table; all are in the JSON."""


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak gave."""

    seconds: float
    counts: Counter[str]
    history: History
    half: Mapping[str, int]
    """Peaks of the main engine's mailboxes by actor, at half of the time."""
    peaks: Mapping[str, int]
    """At the end."""


async def soak(churn: Churn, seconds: float, output: Output) -> Soaked:
    """Let it churn for so long, and look at it meanwhile."""
    began = time.monotonic()
    history = History()
    half: Mapping[str, int] = {}
    peaks: Mapping[str, int] = {}
    interval = max(0.1, seconds / _SAMPLES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(churn.run)
        while (now := time.monotonic() - began) < seconds:
            sample = vitals.take(now, churn.mailboxes())
            history.add(sample)
            peaks = sample.peaks
            if now < seconds / 2:
                half = peaks
            if output.live:
                print(f"\r\x1b[K{_line(sample, seconds, churn)}", end="", file=sys.stderr)
            await trio.sleep(interval)
        nursery.cancel_scope.cancel()
    if output.live:
        print(file=sys.stderr)
    return Soaked(time.monotonic() - began, churn.counts, history, half, peaks)


def _line(sample: Sample, seconds: float, churn: Churn) -> str:
    values = sample.values
    minutes, rest = divmod(int(sample.time), 60)
    return (
        f"{minutes}:{rest:02d} of {seconds / 60:g} min  {values[vitals.RSS]:.0f} MiB  "
        f"{values[vitals.FDS]:.0f} fds  {values[vitals.THREADS]:.0f} threads  "
        f"{values[vitals.CHILDREN]:.0f} children  {values[vitals.TASKS]:.0f} tasks  "
        f"{values[vitals.OBJECTS]:,.0f} objects  {churn.counts['turns']:,} turns"
    )


def show(soaked: Soaked, trends: Sequence[Trend], output: Output) -> None:
    """Print what was done, how each level went, and the verdict."""
    output.table(
        ["begun, or ended as", "times"],
        [[name, count] for name, count in sorted(soaked.counts.items())],
        title=f"{soaked.seconds / 60:.1f} minutes of churn",
    )
    named = len(TOLERANCES)
    shown = [*trends[: named + _CLASSES], *(t for t in trends[named + _CLASSES :] if t.grows)]
    output.table(
        ["", "first tenth", "last tenth", "peak", "an hour", "rise", "allowed", ""],
        [_row(t) for t in shown],
        title=f"Levels after a warm-up of {WARM_UP:.0%}",
        styles={"GROWS": "red"},
    )
    output.table(
        ["mailbox", "peak at half-time", "peak at the end"],
        [[name, soaked.half.get(name, 0), peak] for name, peak in soaked.peaks.items()],
        title="Mailboxes of the engine that was open throughout",
    )
    growing = [t.name for t in trends if t.grows]
    output.heading(f"GROWS: {', '.join(growing)}" if growing else "flat: nothing grows")


def _row(t: Trend) -> list[Cell]:
    verdict = "GROWS" if t.grows else "flat"
    fitted = [f"{value:+.3g}" for value in (t.slope, t.rise)]
    return [t.name, t.first, t.last, t.peak, *fitted, f"{t.allowed:.3g}", verdict]


def main() -> int:
    """Churn, judge, print, write one JSON; 1 if anything grew."""
    parser = argparse.ArgumentParser(description="An hour of churn, and whether anything grows.")
    parser.add_argument("--minutes", type=float, default=60.0, help="a fraction will do")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/soak.json"))
    parser.add_argument("--figure", type=Path, default=Path("runs/bench/soak.png"))
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error("--minutes must be above 0")
    output, seconds = Output(), 60 * options.minutes
    # What breaks, breaks on purpose, some thousand times.
    with tempfile.TemporaryDirectory(prefix="rollwave-soak-") as directory, quiet():
        churn = Churn(Path(directory), seconds, options.seed)
        soaked = trio.run(soak, churn, seconds, output)
    try:
        trends = judge(soaked.history)
    except ValueError as error:
        parser.error(f"--minutes {options.minutes:g}: {error}")
    show(soaked, trends, output)
    growing = [t.name for t in trends if t.grows]
    figures = {
        "minutes": options.minutes,
        "seed": options.seed,
        "seconds": soaked.seconds,
        "counts": dict(soaked.counts),
        "trends": [asdict(t) | {"grows": t.grows} for t in trends],
        "grows": growing,
        "mailbox_peaks": dict(soaked.peaks),
        "times": list(soaked.history.times),
        "levels": {name: list(level) for name, level in soaked.history.levels.items()},
    }
    write(options.out, figures)
    try:
        from .soak_figure import draw_soak  # matplotlib comes with an extra
    except ImportError:
        output.warn("no figure: matplotlib is not installed (pip install 'rollwave[figures]')")
    else:
        output.text(f"drawn as {draw_soak(soaked.history, options.figure)}")
    output.text(f"written to {options.out}")
    return 1 if growing else 0


if __name__ == "__main__":
    sys.exit(main())

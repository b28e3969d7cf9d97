"""What experiments found, for people: a table, a figure for each, and the Markdown of both.

Invariants: every seed is shown, not the mean alone; the page is made of the results file and
nothing else, so that anybody can make it again.

Not here: what is significant (`verdict`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .experiment import Arm, Experiment
from .runs import Outcome
from .verdict import Find, Verdict, finished

HEADER = ("experiment", "contrast", "mean [95 %]", "seeds > 0", "p, Holm", "says", "needs")


def rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """One row a test, under `HEADER`."""
    return [
        [
            verdict.experiment.id,
            verdict.test.name,
            f"{verdict.contrast} {verdict.test.unit}",
            f"{verdict.contrast.positive} of {verdict.contrast.seeds}",
            f"{verdict.corrected:.3f}",
            verdict.word,
            _needed(verdict) if verdict.word == "open" else "",
        ]
        for verdict in verdicts
    ]


def _needed(verdict: Verdict) -> str:
    """Seeds that a mean of this size needs by itself; none where the correction alone is dear."""
    needed = verdict.contrast.needed
    return str(needed) if needed is not None and needed > verdict.contrast.seeds else "-"


def markdown(experiment: Experiment, verdicts: Sequence[Verdict], find: Find, figure: str) -> str:
    """The section of one experiment."""
    seeds = finished(experiment, find)
    lines = [f"## {experiment.id}: {experiment.claim}", "", f"Source: {experiment.source}.", ""]
    lines += [f"Budget: {experiment.budget}"]
    lines += [experiment.notes.strip()] if experiment.notes else []
    lines += ["", f"![Test success of every arm, wave by wave]({figure})", ""]
    own = [verdict for verdict in verdicts if verdict.experiment.id == experiment.id]
    lines += _table(HEADER[1:], [row[1:] for row in rows(own)])
    lines += ["", "Test success of every seed after the last wave, %:", ""]
    table = []
    for name in experiment.arms:
        found = [find(Arm.of(experiment, name), seed) for seed in seeds]
        last = [outcome.at(-1) for outcome in found if outcome is not None]
        table.append([name, *(f"{value:.1f}" for value in last), f"{fmean(last):.1f}"])
    lines += _table(("arm", *map(str, seeds), "mean"), table)
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in body]


def draw(experiment: Experiment, find: Find, path: Path) -> Path:
    """Draw test success by wave: a thin line a seed, a thick one for the mean of each arm.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    seeds = finished(experiment, find)
    for number, name in enumerate(experiment.arms):
        runs = [find(Arm.of(experiment, name), seed) for seed in seeds]
        found = [run for run in runs if run is not None]
        waves, mean = _mean(found)
        colour = f"C{number}"
        for outcome in found:
            points = outcome.points
            axes.plot(
                [p.wave for p in points], [p.test for p in points], colour, alpha=0.2, linewidth=0.8
            )
        axes.plot(waves, mean, colour, linewidth=2.2, marker="o", markersize=4, label=name)
    axes.set_xlabel("wave (0: cloned from experts)")
    axes.set_ylabel("success on held-out test tasks, %")
    axes.set_title(f"{experiment.id}: {len(seeds)} seeds; thin lines are seeds", fontsize=10)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _mean(found: Sequence[Outcome]) -> tuple[list[int], list[float]]:
    """Mean over seeds at each wave that any of them reached."""
    waves = sorted({point.wave for outcome in found for point in outcome.points})
    return waves, [fmean(outcome.at(wave) for outcome in found) for wave in waves]

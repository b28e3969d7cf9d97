"""The figures of a run, drawn with matplotlib, which is imported with this module.

Invariant: drawing needs no display and changes no global state of matplotlib; a campaign of
a hundred waves is as readable as one of three.

Not here: the numbers (`actors.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..actors.evaluator import Evaluation
from ..actors.report import CampaignResult, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ARMS: Final = {
    "evolution": ("evolution", "#0072b2", "o", "-"),
    "control": ("control: experts only, same optimiser steps", "#d55e00", "s", "--"),
}
"""Label, colour (told apart by colour-blind readers and in grey), marker, line."""

_FEW: Final = 12
"""Up to so many policies each has its own error bar; more are a line in a band."""


def draw_campaign(result: CampaignResult, path: Path) -> Path:
    """Draw success on held-out tasks for each wave, with 95 % intervals, as a PNG.

    Beside it, thin, the success of each wave's own exploration.
    """
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    _explored(axes, result.rows)
    start = [row for row in result.rows if row.wave == 0]
    for arm in _ARMS:
        rows = result.arm(arm)
        if arm == "control" and rows:
            rows = start + rows  # both arms start from the same cloned policy
        points = [(row.wave, shown) for row in rows if (shown := row.test or row.dev)]
        if points:
            _arm(axes, arm, points)
    tested = any(row.test for row in result.rows)
    axes.set_xlabel("wave (0: before the first)")
    axes.set_ylabel(f"success on {'held-out test' if tested else 'dev'} tasks, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_ylim(0, 100)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", frameon=False, fontsize=9)
    axes.set_title(_title(result.rows), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _arm(axes: Axes, arm: str, points: Sequence[tuple[int, Evaluation]]) -> None:
    label, colour, marker, line = _ARMS[arm]
    few = len(points) <= _FEW
    shift = (0.03 if arm == "control" else -0.03) if few else 0.0  # bars must not hide each other
    waves = [wave + shift for wave, _ in points]
    rates = [100 * shown.success_rate for _, shown in points]
    lows = [100 * shown.interval[0] for _, shown in points]
    highs = [100 * shown.interval[1] for _, shown in points]
    if few:
        below = [max(0.0, rate - low) for rate, low in zip(rates, lows, strict=True)]
        above = [max(0.0, high - rate) for rate, high in zip(rates, highs, strict=True)]
        axes.errorbar(
            waves,
            rates,
            yerr=(below, above),
            label=label,
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=3,
        )
        return
    axes.plot(waves, rates, label=label, color=colour, linestyle=line, linewidth=1.5)
    axes.fill_between(waves, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _explored(axes: Axes, rows: Sequence[Row]) -> None:
    """Success while exploring: on training tasks, and sampled, hence thin."""
    found = [
        (row.wave, 100 * sum(row.figures.success.values()) / len(row.figures.success))
        for row in rows
        if row.figures is not None and row.figures.success
    ]
    if not found:
        return
    axes.plot(
        [wave for wave, _ in found],
        [rate for _, rate in found],
        label="while exploring training tasks, sampled",
        color="#777777",
        linewidth=0.9,
        marker="." if len(found) <= _FEW else "",
    )


def _title(rows: tuple[Row, ...]) -> str:
    shown = [part for row in rows if (part := row.test or row.dev)]
    tasks = shown[0].tasks if shown else 0
    return f"{tasks} tasks that no arm was trained on, greedy, 95 % intervals"

"""The figures of a run, drawn with matplotlib, which is imported with this module.

Invariant: drawing needs no display and changes no global state of matplotlib.

Not here: the numbers (`actors.report`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from ..actors.report import CampaignResult, Row

_ARMS: Final = {
    "evolution": ("evolution", "#0072b2", "o", "-"),
    "control": ("control: experts only, same optimiser steps", "#d55e00", "s", "--"),
}
"""Label, colour (told apart by colour-blind readers and in grey), marker, line."""


def draw_campaign(result: CampaignResult, path: Path) -> Path:
    """Draw success on held-out tasks for each wave, with 95 % intervals, as a PNG."""
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    start = [row for row in result.rows if row.wave == 0]
    for arm, (label, colour, marker, line) in _ARMS.items():
        rows = result.arm(arm)
        if arm == "control" and rows:
            rows = start + rows  # both arms start from the same cloned policy
        if not rows:
            continue
        shift = 0.03 if arm == "control" else -0.03  # intervals must not hide each other
        figures = [row.test or row.dev for row in rows]
        rates = [100 * e.success_rate for e in figures]
        axes.errorbar(
            [row.wave + shift for row in rows],
            rates,
            yerr=(
                [max(0.0, 100 * (e.success_rate - e.interval[0])) for e in figures],
                [max(0.0, 100 * (e.interval[1] - e.success_rate)) for e in figures],
            ),
            label=label,
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=3,
        )
    split = "held-out test" if result.rows and result.rows[0].test else "dev"
    axes.set_xlabel("wave (0: cloned from the experts)")
    axes.set_ylabel(f"success on {split} tasks, %")
    axes.set_xticks(sorted({row.wave for row in result.rows}))
    axes.set_ylim(0, 100)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    axes.set_title(_title(result.rows), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _title(rows: tuple[Row, ...]) -> str:
    tested = [row.test or row.dev for row in rows]
    tasks = tested[0].tasks if tested else 0
    return f"{tasks} tasks that no arm was trained on, greedy, 95 % intervals"

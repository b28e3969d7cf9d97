"""The figure of a soak, drawn with matplotlib, imported with this module.

Not here: the numbers (`soak`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from . import vitals
from .trend import WARM_UP
from .vitals import History

_PANELS: Final = (
    (vitals.RSS, vitals.CHILD_RSS),
    (vitals.FDS, vitals.THREADS, vitals.CHILDREN),
    (vitals.TASKS, vitals.QUEUED),
    (vitals.OBJECTS,),
)


def draw_soak(history: History, path: Path) -> Path:
    """Draw the named levels over time, the warm-up shaded, as a PNG."""
    figure = Figure(figsize=(10.0, 5.2), dpi=150, layout="constrained")
    minutes = [time / 60 for time in history.times]
    for axes, names in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS, strict=True):
        for name in names:
            level = history.levels[name]
            if any(level):
                axes.plot(minutes, level, linewidth=0.9, label=name)
        axes.axvspan(0, WARM_UP * minutes[-1], color="0.93", zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, minutes[-1])
        axes.grid(visible=True, alpha=0.3)
        if axes.lines:  # above the panel: levels cross all of it
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    for axes in figure.axes[2:]:
        axes.set_xlabel("minutes of churn (shaded: warm-up)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path

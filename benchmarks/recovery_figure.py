"""The figure of the recovery benchmark, drawn with matplotlib, imported with this module.

Not here: the numbers (`recovery`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .disturbance import RESTART_SECONDS
from .recovery import LOOPS, Row
from .report import Spread

_STYLES: Final = {
    LOOPS[0]: ("Rollwave", "#0072b2", "o", "-"),
    LOOPS[1]: ("Rollwave, faulted episodes played again", "#56b4e9", "^", ":"),
    LOOPS[2]: ("lock-step loop, a fault is reward 0", "#d55e00", "s", "--"),
}
"""Label, colour (told apart by colour-blind readers and in grey), marker, line."""


def draw_recovery(rows: Sequence[Row], path: Path) -> Path:
    """Draw goodput, recovery and reward bias against the fault rate, as a PNG."""
    figure = Figure(figsize=(10.0, 3.6), dpi=150, layout="constrained")
    goodput, recovery, bias = figure.subplots(1, 3)
    rates = sorted({row.rate for row in rows})
    for loop, style in _STYLES.items():
        own = sorted((row for row in rows if row.loop == loop), key=lambda row: row.rate)
        _lines(goodput, own, style, lambda row: row.goodput)
        _lines(bias, own, style, lambda row: row.bias)
        if loop != LOOPS[1]:  # a second look at the same deaths
            _recoveries(recovery, [row for row in own if row.recovery], rates, style)
    goodput.set_title("goodput", fontsize=10)
    goodput.set_ylabel("scored episodes a second")
    goodput.set_yscale("log")
    goodput.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
    goodput.yaxis.set_major_formatter("{x:g}")
    goodput.minorticks_off()
    recovery.set_title("recovery from a death of the backend", fontsize=10)
    recovery.set_ylabel("seconds until 9 in 10 sessions go on")
    recovery.set_ylim(bottom=0)
    recovery.axhline(RESTART_SECONDS, color="0.6", linewidth=0.8)
    recovery.annotate(
        "the restart itself",
        (0, RESTART_SECONDS),
        (-4, -10),
        textcoords="offset points",
        fontsize=8,
    )
    bias.set_title("reward bias", fontsize=10)
    bias.set_ylabel("mean reward given to the learner,\nminus that of the undisturbed run")
    bias.axhline(0, color="0.6", linewidth=0.8)
    _stops(bias, [row for row in rows if row.loop == LOOPS[0]], rates)
    for axes in (goodput, recovery, bias):
        axes.set_xlim(-0.25, len(rates) - 0.75)
        axes.set_xlabel("turns struck by a fault, %")
        axes.set_xticks(range(len(rates)), [f"{100 * rate:g}" for rate in rates])
        axes.grid(visible=True, alpha=0.3)
    handles, labels = goodput.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


_Style = tuple[str, str, str, str]


def _lines(axes: Axes, rows: Sequence[Row], style: _Style, of: Callable[[Row], Spread]) -> None:
    spreads = [of(row) for row in rows]
    medians = [spread.median for spread in spreads]
    label, colour, marker, line = style
    axes.errorbar(
        range(len(rows)),
        medians,
        yerr=(
            [spread.median - spread.least for spread in spreads],
            [spread.most - spread.median for spread in spreads],
        ),
        label=label,
        color=colour,
        marker=marker,
        markersize=4.5,
        linestyle=line,
        capsize=2.5,
    )


def _stops(axes: Axes, rows: Sequence[Row], rates: Sequence[float]) -> None:
    """Shade where a campaign would not learn at all, but stop."""
    stopped = [rates.index(row.rate) for row in rows if row.stops]
    if stopped:
        axes.axvspan(min(stopped) - 0.5, len(rates), color="0.93", zorder=0)
        axes.annotate(
            "our campaigns\nstop here,\nby default",
            (min(stopped) - 0.4, 0.03),
            xycoords=("data", "axes fraction"),
            fontsize=8,
        )


def _recoveries(axes: Axes, rows: Sequence[Row], rates: Sequence[float], style: _Style) -> None:
    """The median as a marker, and a whisker up to the worst."""
    _, colour, marker, line = style
    found = [row.recovery for row in rows if row.recovery is not None]
    axes.errorbar(
        [rates.index(row.rate) for row in rows],
        [middle for middle, _ in found],
        yerr=([0.0] * len(found), [worst - middle for middle, worst in found]),
        color=colour,
        marker=marker,
        markersize=4.5,
        linestyle=line,
        capsize=2.5,
    )

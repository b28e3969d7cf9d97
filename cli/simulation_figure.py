"""The figure of a simulation, drawn with matplotlib, which is imported with this module.

Invariant: drawing needs no display and changes no global state of matplotlib.

Not here: the numbers (`actors.simulation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..actors.simulation.simulation import Simulated

_BLUE: Final = "#0072b2"
_RED: Final = "#d55e00"
_GREEN: Final = "#009e73"


def draw_simulation(results: Sequence[Simulated], path: Path) -> Path:
    """Draw levels over simulated time of the first result, and the sweep if there are more."""
    first, wide = results[0], len(results) > 1
    figure = Figure(figsize=(10.4 if wide else 6.4, 6.0), dpi=150, layout="constrained")
    grid = figure.add_gridspec(3, 2 if wide else 1, width_ratios=(3, 2) if wide else None)
    axes: list[Any] = []
    for row in range(3):
        axes.append(figure.add_subplot(grid[row, 0], sharex=axes[0] if axes else None))
    _levels(axes, first)
    if wide:
        _sweep(figure.add_subplot(grid[:, 1]), results)
    figure.suptitle(_title(first), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _levels(axes: Sequence[Any], result: Simulated) -> None:
    times = [point.seconds for point in result.timeline]
    slots = result.replicas * result.batch
    running = [100 * p.running / slots if slots else p.running for p in result.timeline]
    levels: tuple[tuple[str, Sequence[float], str], ...] = (
        ("sessions live", [point.live for point in result.timeline], _BLUE),
        ("requests waiting", [point.waiting for point in result.timeline], _RED),
        ("batch fill, %" if slots else "requests running", running, _GREEN),
    )
    for ax, (label, values, colour) in zip(axes, levels, strict=True):
        ax.plot(times, values, color=colour, linewidth=0.8)
        ax.fill_between(times, values, color=colour, alpha=0.15)
        ax.set_ylabel(label)
        ax.set_ylim(0, max([*values, 1]) * 1.08)
        ax.grid(visible=True, alpha=0.3)
        ax.label_outer()
    axes[-1].set_xlabel("simulated seconds")
    axes[-1].set_xlim(0, max(result.wall_seconds, 1e-9))


def _sweep(ax: Any, results: Sequence[Simulated]) -> None:
    replicas = [result.replicas for result in results]
    ax.plot(
        replicas,
        [result.wall_seconds for result in results],
        color=_BLUE,
        marker="o",
        label="continuous",
    )
    ax.plot(
        replicas,
        [result.lower_bound_seconds for result in results],
        color="black",
        linestyle=":",
        label="lower bound",
    )
    lock = [result for result in results if result.lock_step_seconds is not None]
    if lock:
        ax.plot(
            [result.replicas for result in lock],
            [result.lock_step_seconds for result in lock],
            color=_RED,
            marker="s",
            linestyle="--",
            label="lock-step",
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    ax.xaxis.set_major_formatter(plain)
    ax.yaxis.set_major_formatter(plain)
    ax.yaxis.set_minor_formatter(plain)
    ax.set_xticks(replicas)
    ax.set_xlabel("replicas")
    ax.set_ylabel("seconds for the whole")
    ax.grid(visible=True, which="both", alpha=0.3)
    ax.legend(frameon=False)


def _title(result: Simulated) -> str:
    slots = f"of {result.batch} slots" if result.batch else "without bound"
    replicas = "1 replica" if result.replicas == 1 else f"{result.replicas} replicas"
    return (
        f"{result.sessions:,} episodes, {result.turns:,} turns, {result.concurrency:,} at once, "
        f"{replicas} {slots}: {result.wall_seconds:,.0f} s, "
        f"efficiency {result.efficiency:.0%}"
    )

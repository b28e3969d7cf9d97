"""The figures of a run, drawn with matplotlib, which is imported with this module.

Invariant: drawing needs no display and changes no global state of matplotlib; a campaign of
a hundred waves is as readable as one of three, and as one of none.

Not here: the numbers (`actors.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..actors.evaluator import Evaluation
from ..actors.report import CampaignResult, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ARMS: Final = {
    "evolution": ("each wave's policy, greedy", "#0072b2", "o", "-"),
    "control": ("control: experts only, same optimiser steps", "#d55e00", "s", "--"),
}
"""Label, colour (told apart by colour-blind readers and in grey), marker, line."""

_FEW: Final = 12
"""Up to so many policies each has its own error bar; more are a line in a band."""


def draw_campaign(result: CampaignResult, path: Path, name: str = "") -> Path:
    """Draw success on held-out tasks for each wave, with 95 % intervals, as a PNG.

    Beside it, thin, the success of the same policies while they explored. A campaign without
    waves shows how its policy was cloned: the loss of every optimiser step.

    Args:
        name: what was run, for the title.
    """
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    waves = any(row.wave for row in result.rows)
    losses = [] if waves else _losses(Path(result.out) / "metrics.jsonl")
    if losses:
        beside, axes = figure.subplots(1, 2, width_ratios=(3, 2))
        _cloning(beside, losses)
    else:
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
    cloned = any(row.steps for row in start)
    _chosen(axes, result)
    axes.set_xlabel(f"wave (0: {'cloned from experts' if cloned else 'before training'})")
    axes.set_ylabel(f"success on {'held-out test' if tested else 'dev'} tasks, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    if not waves:
        axes.set_xlim(-0.5, 0.5)  # one policy: ticks between whole waves would be nonsense
    axes.set_ylim(0, 100)
    axes.grid(visible=True, alpha=0.3)
    if waves:
        axes.legend(loc="best", frameon=False, fontsize=9)
    figure.suptitle("\n".join(filter(None, (name, _title(result.rows)))), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


class _Step(msgspec.Struct):
    """What is drawn of a line of metrics.jsonl."""

    kind: str = ""
    stage: str = ""
    step: int = 0
    metrics: dict[str, float | None] = {}


def _losses(path: Path) -> list[tuple[int, float]]:
    """Optimiser step and loss of the cloning, as far as they were kept."""
    try:
        lines = path.read_bytes().splitlines()
        steps = [msgspec.json.decode(line, type=_Step) for line in lines]
    except (OSError, msgspec.MsgspecError):
        return []  # an adornment: the campaign is whole without it
    losses = [(s.step, s.metrics.get("loss")) for s in steps if s.kind == "step"]
    return [(step, loss) for step, loss in losses if loss is not None]


def _cloning(axes: Axes, losses: Sequence[tuple[int, float]]) -> None:
    axes.plot([step for step, _ in losses], [loss for _, loss in losses], color="#777777")
    axes.set_xlabel("optimiser step of cloning")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)


def _chosen(axes: Axes, result: CampaignResult) -> None:
    """Ring the policy that dev tasks chose, where there were several."""
    row = next((r for r in result.arm("evolution") if r.wave == result.best), None)
    shown = (row.test or row.dev) if row is not None else None
    if row is None or shown is None or len(result.rows) < 2:
        return
    axes.plot(
        [row.wave],
        [100 * shown.success_rate],
        linestyle="",
        marker="o",
        markersize=13,
        fillstyle="none",
        color=_ARMS["evolution"][1],
        label="chosen by dev tasks",
    )


def _arm(axes: Axes, arm: str, points: Sequence[tuple[int, Evaluation]]) -> None:
    label, colour, marker, line = _ARMS[arm]
    few = len(points) <= _FEW
    shift = 0.06 if arm == "control" and few else 0.0  # bars must not hide each other
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
    """Success while exploring: on training tasks, and mostly sampled, hence thin.

    What a wave explored was played by the policy of the wave before (where it explored ahead,
    by an older one in part), and stands there.
    """
    found = [
        (row.wave - 1, 100 * sum(row.figures.success.values()) / len(row.figures.success))
        for row in rows
        if row.figures is not None and row.figures.success
    ]
    if not found:
        return
    axes.plot(
        [wave for wave, _ in found],
        [rate for _, rate in found],
        label="the same policy, exploring training tasks",
        color="#777777",
        linewidth=0.9,
        marker="." if len(found) <= _FEW else "",
    )


def _title(rows: tuple[Row, ...]) -> str:
    shown = [part for row in rows if (part := row.test or row.dev)]
    tasks = shown[0].tasks if shown else 0
    return f"{tasks} tasks that nothing was trained on; 95 % intervals"

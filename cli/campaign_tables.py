"""The tables of a campaign (how good each policy is, how each wave went), and its sum in short.

Invariant: a long campaign is shown by rows evenly taken, with the first, the last and the
chosen one among them, and says how many are in report.json alone.

Not here: the numbers (`actors.report`), the command (`evolve`), the figure (`figures`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..actors.evaluator import Evaluation
from ..actors.report import CampaignResult, Row
from ..actors.wave_figures import WaveFigures
from .output import Cell, Output

_SHOWN: Final = 24
"""Rows of a table: about a screen."""


def print_policies(result: CampaignResult, output: Output) -> None:
    """Show the success of each policy that was evaluated."""
    rows = _some([row for row in result.rows if row.dev is not None], result, output)
    output.table(
        [
            "arm",
            "wave",
            "optimiser steps",
            "explored",
            "trained on",
            "dev",
            "held-out test",
            "95 % interval",
            "turns",
        ],
        [
            [
                row.arm + (" *" if row.arm == "evolution" and row.wave == result.best else ""),
                row.wave,
                row.steps,
                row.explored,
                row.kept,
                f"{row.dev.success_rate:.1%}" if row.dev else None,
                f"{row.test.success_rate:.1%}" if row.test else None,
                _interval(row.test or row.dev),
                _turns(row.test or row.dev),
            ]
            for row in rows
        ],
        title="Success of each policy, greedy (* chosen by dev)",
    )


def print_waves(result: CampaignResult, output: Output) -> None:
    """Show what each wave explored and what was made of it; nothing where there was none."""
    explored = [row for row in result.rows if row.figures is not None]
    if not explored:
        return
    columns: dict[str, Callable[[Row, WaveFigures], Cell]] = {
        "wave": lambda row, _: row.wave,
        "episodes": lambda _, f: f.episodes,
        "rounds": lambda _, f: f.rounds if f.rounds > 1 else None,
        "success": lambda _, f: _by_environment(f),
        "reward": lambda _, f: f.average_reward,
        "solved": lambda _, f: f"{f.tasks_solved} of {f.tasks}",
        "new": lambda _, f: f.tasks_newly_solved,
        "turns": lambda _, f: f.turns_mean,
        "entropy": lambda _, f: f.entropy,
        "stale by": lambda _, f: f.staleness_mean or None,
        "trained on": lambda row, _: row.kept,
        "left out": lambda row, _: _counts(row),
        "win/tie/lose": lambda row, _: _verdicts(row),
        "mismatch": lambda row, _: row.metrics.get("logprob_mismatch"),
        "loss": lambda row, _: row.metrics.get("loss"),
    }
    rows = [
        [cell(row, row.figures) for cell in columns.values()]
        for row in _some(explored, result, output)
        if row.figures is not None
    ]
    used = [i for i in range(len(columns)) if any(row[i] not in (None, "") for row in rows)]
    names = list(columns)
    output.table(
        [names[i] for i in used],
        [[row[i] for i in used] for row in rows],
        title="What each wave explored, and what was learned from it",
    )


def in_short(result: CampaignResult) -> str:
    """Say in a sentence what the evolution came to: before, and at the wave that dev chose."""
    rows = result.arm("evolution")
    first, best = rows[0], next(row for row in rows if row.wave == result.best)
    tested = first.test is not None and best.test is not None
    before, after = (first.test, best.test) if tested else (first.dev, best.dev)
    if before is None or after is None:
        return ""
    start = "cloned from experts" if first.steps else "before training"
    text = f"success on {before.tasks} {'held-out test' if tested else 'dev'} tasks: "
    text += f"{before.success_rate:.1%} {start}"
    if len(rows) == 1:
        return text
    if best is first:
        return f"{text}; no later policy did better on dev tasks"
    return f"{text}, {after.success_rate:.1%} after wave {best.wave}, which dev tasks chose"


def _some(rows: Sequence[Row], result: CampaignResult, output: Output) -> list[Row]:
    """Not more rows than a screen shows; says so where some are left out."""
    rows = list(rows)
    if len(rows) <= _SHOWN:
        return rows
    step = (len(rows) - 1) / (_SHOWN - 1)
    places = {round(i * step) for i in range(_SHOWN)}
    places |= {i for i, r in enumerate(rows) if r.wave == result.best and r.arm == "evolution"}
    output.text(f"{len(places)} of {len(rows)} rows; all of them are in report.json")
    return [rows[i] for i in sorted(places)]


def _interval(evaluation: Evaluation | None) -> str | None:
    if evaluation is None:
        return None
    low, high = evaluation.interval
    return f"{low:.1%} to {high:.1%}"


def _turns(evaluation: Evaluation | None) -> float | None:
    return evaluation.turns_mean if evaluation else None


def _by_environment(figures: WaveFigures) -> str:
    rates = figures.success
    if len(rates) == 1:
        return f"{next(iter(rates.values())):.1%}"
    return ", ".join(f"{env.partition('-v')[0]} {rate:.1%}" for env, rate in rates.items())


def _counts(row: Row) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in row.dropped.items() if n)


def _verdicts(row: Row) -> str | None:
    found = [row.metrics.get(name) for name in ("win", "tie", "lose")]
    if all(n is None for n in found):
        return None
    return "/".join(f"{n or 0:.0f}" for n in found)

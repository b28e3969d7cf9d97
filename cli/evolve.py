"""`rollwave evolve`: run the campaign that a TOML file describes.

Not here: the campaign (`actors.campaign`) and the figure (`figures`).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..actors.campaign import run_campaign
from ..actors.config import load_config
from ..actors.evaluator import Evaluation
from ..actors.report import CampaignResult
from . import options
from .interrupt import keeping, run
from .output import Output
from .progress import progress_view


def evolve(
    config: Annotated[Path, typer.Argument(help="TOML file; see examples/.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Run directory, in place of run.out; an unfinished run there goes on."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one key: `section.key=value`. May be repeated."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Evolve a policy, wave by wave: clone experts, explore, learn from what succeeded.

    Every stage is kept in the run directory. After Ctrl-C or a crash the same command
    goes on where it was.
    """
    settings = load_config(config, overrides or [])
    directory = out or Path(settings.run.out)
    output = Output(json=json)
    started = time.perf_counter()
    with (
        keeping(lambda: f"finished stages are kept in {directory}; the same command goes on"),
        progress_view(f"evolve {config.name}", output.live) as view,
    ):
        result = run(run_campaign, settings, directory, view.update)
    seconds = time.perf_counter() - started
    figure = draw(result, output)
    _print(result, output, seconds, figure)


def draw(result: CampaignResult, output: Output) -> Path | None:
    """Draw the figure, if matplotlib is installed; its absence is said, not hidden."""
    try:
        from .figures import draw_campaign
    except ImportError:
        output.warn("no figure: matplotlib is not installed (pip install 'rollwave[figures]')")
        return None
    return draw_campaign(result, Path(result.out) / "figures" / "success.png")


def _print(result: CampaignResult, output: Output, seconds: float, figure: Path | None) -> None:
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
                f"{row.dev.success_rate:.1%}",
                f"{row.test.success_rate:.1%}" if row.test else None,
                _interval(row.test or row.dev),
                (row.test or row.dev).turns_mean,
            ]
            for row in result.rows
        ],
        title="Success of each policy, greedy (* chosen by dev)",
    )
    output.text(f"{result.turns:,} turns in {seconds:.0f} s; {result.stopped}")
    written = {
        "table": str(Path(result.out) / "report.json"),
        "figure": str(figure) if figure else None,
        "best policy": next(
            row.model for row in result.rows if row.arm == "evolution" and row.wave == result.best
        ),
        "trajectories": str(Path(result.out) / "waves"),
    }
    for name, path in written.items():
        if path:
            output.text(f"  {name:<13} {path}")
    output.result({**asdict(result), "seconds": seconds, "figure": str(figure) if figure else None})


def _interval(evaluation: Evaluation) -> str:
    low, high = evaluation.interval
    return f"{low:.1%} to {high:.1%}"

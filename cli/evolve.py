"""`rollwave evolve`: run the campaign that a TOML file describes.

Not here: the campaign (`actors.campaign`), its tables (`campaign_tables`) and figure (`figures`).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..actors.campaign import run_campaign
from ..actors.config import load_config
from ..actors.expert_files import read_record
from ..actors.report import CampaignResult
from . import options
from .campaign_tables import in_short, print_policies, print_waves
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
    """Evolve a policy, wave by wave: clone experts, explore, learn, by the algorithm of the file.

    Every stage is kept in the run directory. After Ctrl-C or a crash the same command goes on
    where it was; once finished, it prints the same tables again.

    `[learner] algorithm` is one of agent_evol, rft, dpo, eto, grpo and ppo. All keys with their
    defaults: docs/cli.md. Try: rollwave evolve examples/demo.toml --set stop.waves=1
    """
    settings = load_config(config, overrides or [])
    directory = out or Path(settings.run.out)
    output = Output(json=json)
    started = time.perf_counter()
    with (
        keeping(lambda: _kept(directory)),
        progress_view(f"evolve {config.name}", output.live) as view,
    ):
        result = run(run_campaign, settings, directory, view.update)
    seconds = time.perf_counter() - started
    name = f"{config.stem}: {settings.environment.id}, seed {settings.run.seed}"
    figure = draw(result, output, name)
    _print(result, output, seconds, figure)


def _kept(directory: Path) -> str:
    if not directory.exists():
        return "nothing was kept yet: the same command begins anew"
    return f"finished stages are kept in {directory}; the same command goes on"


def draw(result: CampaignResult, output: Output, name: str = "") -> Path | None:
    """Draw the figure, if matplotlib is installed; its absence is said, not hidden."""
    try:
        from .figures import draw_campaign
    except ImportError:
        output.warn("no figure: matplotlib is not installed (pip install 'rollwave[figures]')")
        return None
    return draw_campaign(result, Path(result.out) / "figures" / "success.png", name)


def _print(result: CampaignResult, output: Output, seconds: float, figure: Path | None) -> None:
    print_waves(result, output)
    print_policies(result, output)
    if (imported := read_record(Path(result.out))) is not None:
        counts = ", ".join(f"{n:,} {reason}" for reason, n in imported.left_out.items())
        said = f"; left out: {counts}" if counts else ""
        output.text(f"{imported.kept:,} of {imported.read:,} trajectories became experts{said}")
    output.text(in_short(result))
    output.text(f"{result.turns:,} turns in {seconds:.0f} s; {result.stopped}")
    if result.unused:
        output.text(f"{result.unused:,} episodes were explored that no policy was trained on")
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

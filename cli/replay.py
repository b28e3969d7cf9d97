"""`rollwave replay FILE`: play recorded actions again and compare every observation.

Not here: how it is compared (`envs.replay`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ..envs.replay import DifferenceKind, ReplayReport, replay_file
from .output import Output

_WIDTH: Final = 120
"""Characters of a differing answer that the table shows, around the first that differs."""


def replay(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Trajectories in AgentTraj's format (`.json`, `.jsonl`, also `.gz`), a sealed "
            "wave (`.parquet`), or a run directory.",
        ),
    ],
    env: Annotated[
        str | None,
        typer.Option("--env", help="World to replay in; by default each record names its own."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Show at most this many differences.")
    ] = 20,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Play recorded actions through the world again; compare every observation and the reward."""
    output = Output(json=json_)
    report = replay_file(file, env)
    _show(report, limit, output)
    output.result(
        {
            "source": report.source,
            "trajectories": report.trajectories,
            "trajectories_equal": report.trajectories_equal,
            "observations": report.observations,
            "observations_equal": report.observations_equal,
            "observations_reworded": report.observations_reworded,
            "rewards": report.rewards,
            "rewards_equal": report.rewards_equal,
            "skipped": report.skipped,
            "kinds": report.kinds(),
            "differences": report.differences,
        }
    )


def _show(report: ReplayReport, limit: int, output: Output) -> None:
    output.table(
        ("", "compared", "equal", "share"),
        [
            _row("trajectories", report.trajectories, report.trajectories_equal),
            _row("observations", report.observations, report.observations_equal),
            _row("rewards", report.rewards, report.rewards_equal),
        ],
        title=report.source,
    )
    if report.observations_reworded:
        output.note(
            f"{report.observations_reworded} of the equal observations are so but for differences "
            "of wording that docs/fidelity.md names"
        )
    if report.skipped:
        output.note(f"{report.skipped} trajectories without an action were left out")
    if not report.differences:
        return
    shown = report.differences[:limit]
    output.table(
        ("difference", "item", "turn", "recorded", "now"),
        [(d.kind.value, d.item, d.turn, *_around(d.expected, d.got, d.kind)) for d in shown],
    )
    hidden = len(report.differences) - len(shown)
    if hidden:
        output.note(f"{hidden} more; show them with --limit, or all with --json")


def _row(name: str, compared: int, equal: int) -> tuple[str, int, int, str]:
    return name, compared, equal, f"{100 * equal / compared:.2f} %" if compared else "-"


def _around(recorded: str, now: str, kind: DifferenceKind) -> tuple[str, str]:
    """The two texts, each cut to where they begin to differ."""
    if kind not in (DifferenceKind.OBSERVATION, DifferenceKind.FIRST_OBSERVATION):
        return recorded[:_WIDTH], now[:_WIDTH]
    pairs = enumerate(zip(recorded, now, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(recorded), len(now)))
    start = max(0, same - _WIDTH // 4)
    return recorded[start : start + _WIDTH], now[start : start + _WIDTH]

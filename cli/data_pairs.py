"""`rollwave data pairs`: preference pairs of a run or of files, for other trainers.

Not here: the rules (`learners.preferences.pairs`) and the rows (`learners.exchange.preferences`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..engine.errors import ConfigError
from ..engine.trajectory import Trajectory
from ..learners.exchange import Reading, Tally, read
from ..learners.exchange.preferences import write_preferences
from ..learners.preferences.pairs import (
    Pairs,
    against_experts,
    at_turns,
    best_and_worst,
    two_samples,
)
from . import options
from .data_actions import with_actions
from .output import Output

Rule = Literal["experts", "turns", "best-worst", "two-samples"]


def make_pairs(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A run directory or file: what the agent explored."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    experts: Annotated[
        Path | None,
        typer.Option(
            "--experts",
            help="The experts' trajectories; by default those of the source by `expert`.",
        ),
    ] = None,
    rule: Annotated[
        Rule,
        typer.Option(
            "--rule",
            help="experts: each exploration against the expert (ETO). turns: turn by turn. "
            "best-worst: of a task's attempts. two-samples: AgentGym's.",
        ),
    ] = "experts",
    to: Annotated[str, typer.Option("--to", help="Format to write: trl or sharegpt.")] = "trl",
    env: Annotated[
        str, typer.Option("--env", help="Environment id that all records get, on both sides.")
    ] = "",
    gap: Annotated[
        float, typer.Option("--gap", min=0.0, help="Least difference in reward of a pair.")
    ] = 0.0,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Least reward of the chosen side.")
    ] = float("-inf"),
    per_task: Annotated[
        int, typer.Option("--per-task", min=0, help="Most pairs of a task; 0 = all.")
    ] = 0,
    max_extra_turns: Annotated[
        int | None,
        typer.Option(
            "--max-extra-turns",
            min=0,
            help="With `experts`: cut a rejected exploration to the expert's turns and so many.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a file that is there.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make preference pairs, and count wins, ties, losses and what makes none."""
    output = Output(json=json)
    if out.exists() and not (overwrite and out.is_file()):
        raise ConfigError(f"{out} exists: choose another name, or say --overwrite")
    explored, shown = _sides(source, experts, env)
    if rule in {"experts", "turns"} and not shown:
        raise ConfigError(
            f"{source} has no trajectory by `expert` to compare with: give --experts FILE, or "
            "--rule best-worst"
        )
    match rule:
        case "experts":
            found = against_experts(
                shown,
                explored,
                max_extra_turns=max_extra_turns,
                gap=gap,
                threshold=threshold,
                per_task=per_task,
            )
        case "turns":
            found = at_turns(shown, explored)
        case "best-worst":
            found = best_and_worst(explored, gap=gap, threshold=threshold, per_task=per_task)
        case "two-samples":
            found = two_samples(explored, gap=gap, threshold=threshold)
    tally = Tally()
    write_preferences(out, found.kept, to, tally)
    _print(output, out, to, found, tally)
    output.result(
        {
            "source": str(source),
            "out": str(out),
            "format": to,
            "rule": rule,
            "experts": len(shown),
            "explored": len(explored),
            "pairs": len(found.kept),
            "written": tally.written,
            "verdicts": found.verdicts,
            "dropped": found.dropped,
            "left_out": tally.left_out,
            "metrics": found.metrics(),
        }
    )


def _sides(
    source: Path, experts: Path | None, env: str
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Read what was explored, and what experts showed."""
    if env:
        from ..envs.registry import resolve

        env = resolve(env).id
    reading = Reading(env=env)
    found = list(with_actions(read(source, reading=reading)))
    if experts is not None:
        return found, list(with_actions(read(experts, reading=reading)))
    shown = [t for t in found if t.policy == "expert"]
    return [t for t in found if t.policy != "expert"], shown


def _print(output: Output, out: Path, to: str, found: Pairs, tally: Tally) -> None:
    rows: list[tuple[Any, ...]] = [("pairs", name, count) for name, count in found.verdicts.items()]
    rows += [("no pair", reason, count) for reason, count in found.dropped.items()]
    rows += [(f"not carried by {to}", reason, count) for reason, count in tally.left_out.items()]
    output.table(("", "", "trajectories"), rows, title="explorations against experts, and drops")
    output.text(f"{tally.written:,} pairs written to {out} ({to})")
    if tally.left_out.get("more_than_one_turn"):
        output.warn(
            "LLaMA-Factory's pairs have one message a side: use --rule turns, or --to trl for "
            "whole episodes"
        )

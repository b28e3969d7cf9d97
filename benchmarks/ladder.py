"""Every algorithm's example from its file to its figure, one after the other, on this machine.

    python -m rollwave.benchmarks.ladder
    python -m rollwave.benchmarks.ladder examples/grpo.toml examples/ppo.toml

Runs `rollwave evolve FILE` for each, in a process of its own, and prints one table: what it
took, and how much of held-out test tasks the policy solved before and after. After is the
wave that dev tasks chose. One seed of each file, whose settings differ (worlds, experts,
episodes): it shows that each of them runs and learns, and says nothing about which is better.

A campaign that ended is not run again, one that was interrupted goes on; its time is then
not known, and not shown. Prints one table, writes one JSON.

Not here: comparisons, which need seeds and equal budgets (`benchmarks.experiments`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ..actors.config import load_config
from ..cli.output import Output
from ..engine.errors import ConfigError
from .report import commit, write

EXAMPLES: Final = Path(__file__).resolve().parent.parent / "examples"
NAMES: Final = (
    "bc",
    "rft",
    "agentevol",
    "eto",
    "eto_selfplay",
    "dpo",
    "ppo",
    "grpo",
    "scaling_inter",
)
COLUMNS: Final = (
    "example",
    "algorithm",
    "minutes",
    "optimiser steps",
    "episodes explored",
    "wave",
    "before",
    "after",
    "95 % interval",
)


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """What one example came to."""

    name: str
    algorithm: str
    seconds: float | None
    """Of the whole command, imports and engine included; None where it was interrupted."""
    load: float
    """Processes that wanted a core, on average over the last minute before it ended."""
    steps: int
    explored: int
    best: int
    """Wave that dev tasks chose."""
    waves: int
    before: float
    """Success on test tasks, in percent: of the policy that the first wave explored with."""
    after: float
    """Of the chosen one."""
    interval: tuple[float, float]
    """95 %, of `after`, over its test tasks."""
    tested: int
    stopped: str
    figure: str
    seed: int
    file: str
    """Hash of the file's text."""
    commit: str


def climb(file: Path, out: Path) -> Rung:
    """Run an example, or go on with it, or read what it came to.

    Raises:
        subprocess.CalledProcessError: it failed; its own error line says why.
        ConfigError: the file is none of a campaign, has no test tasks, or has changed since it
            was run.
    """
    config = load_config(file)
    if not config.evaluate.test_tasks:
        raise ConfigError(f"{file}: evaluate.test_tasks = 0, and the table is of test tasks")
    text = hashlib.sha256(file.read_bytes()).hexdigest()
    place, kept = out / file.stem, out / f"{file.stem}.json"
    if kept.is_file():
        ended = msgspec.json.decode(kept.read_bytes(), type=Rung)
        if ended.file != text:
            raise ConfigError(f"{file} has changed since it was run: remove {place} and {kept}")
        return ended
    whole = not place.exists()
    command = [sys.executable, "-m", "rollwave", "evolve", str(file), "--out", str(place), "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    algorithm = str(config.learner.__struct_config__.tag) if config.stop.waves else "cloning"
    rung = read(
        json.loads(done.stdout.splitlines()[-1]),
        name=file.stem,
        algorithm=algorithm,
        seconds=round(seconds, 1) if whole else None,
        seed=config.run.seed,
        file=text,
    )
    kept.write_bytes(msgspec.json.encode(rung))
    return rung


def read(
    report: Mapping[str, Any],
    *,
    name: str,
    algorithm: str,
    seconds: float | None,
    seed: int,
    file: str,
) -> Rung:
    """Take what is shown out of the JSON of `rollwave evolve`."""
    rows = [row for row in report["rows"] if row["arm"] == "evolution"]
    first, chosen = rows[0], next(row for row in rows if row["wave"] == report["best"])
    low, high = chosen["test"]["interval"]
    return Rung(
        name=name,
        algorithm=algorithm,
        seconds=seconds,
        load=round(os.getloadavg()[0], 1),
        steps=rows[-1]["steps"],
        explored=rows[-1]["explored"],
        best=report["best"],
        waves=rows[-1]["wave"],
        before=100 * first["test"]["success_rate"],
        after=100 * chosen["test"]["success_rate"],
        interval=(100 * low, 100 * high),
        tested=chosen["test"]["tasks"],
        stopped=report["stopped"],
        figure=report["figure"] or "",
        seed=seed,
        file=file,
        commit=commit(),
    )


def cells(rung: Rung) -> list[str]:
    """A row of the table."""
    low, high = rung.interval
    return [
        rung.name,
        rung.algorithm,
        f"{rung.seconds / 60:.1f}" if rung.seconds is not None else "interrupted",
        f"{rung.steps:,}",
        f"{rung.explored:,}",
        f"{rung.best} of {rung.waves}",
        f"{rung.before:.1f} %" if rung.waves else "",
        f"{rung.after:.1f} %",
        f"{low:.0f} to {high:.0f} %",
    ]


def markdown(rungs: Iterable[Rung]) -> str:
    """The table as a page takes it."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *map(cells, rungs)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the examples, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Every example from its file to its figure.")
    parser.add_argument("files", nargs="*", type=Path, help="campaigns; by default the nine")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ladder"))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    output = Output()
    options.out.mkdir(parents=True, exist_ok=True)
    rungs = []
    for file in options.files or [EXAMPLES / f"{name}.toml" for name in NAMES]:
        try:
            rungs.append(climb(file, options.out))
        except ConfigError as error:
            parser.error(str(error))
        output.note(f"{file.stem}: {rungs[-1].stopped}; {rungs[-1].figure}")
    if options.markdown:
        output.text(markdown(rungs))
    else:
        title = "Success on held-out test tasks, one seed; it does not say which is better"
        output.table(list(COLUMNS), [list(cells(rung)) for rung in rungs], title=title)
    path = options.out / "ladder.json"
    write(path, {"examples": [msgspec.to_builtins(rung) for rung in rungs]})
    output.text(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

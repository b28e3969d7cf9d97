"""Run experiments, judge their claims, write the page.

    python -m rollwave.benchmarks.experiments e01 e03 --seeds 10 --jobs 2 --minutes 120
    python -m rollwave.benchmarks.experiments --report docs/experiments.md

Every finished run is a line of the results file and is not run again; what was interrupted
goes on with the same command. Runs are started seed by seed, so that a budget of minutes
leaves whole seeds behind, not whole arms.

Not here: the experiments themselves (the TOML files beside this package's code).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ...cli.output import Output
from ...engine.errors import RollwaveError
from .experiment import FILES, HERE, Arm, Experiment, load_experiment
from .page import HEADER, draw, markdown, rows
from .runs import Outcome, Results, run
from .verdict import finished, judge

RESULTS: Final = HERE / "results.jsonl"
"""The published runs, all seeds."""


def named(names: Sequence[str]) -> list[Experiment]:
    """The experiments of those names; all of them without any."""
    files = sorted(FILES.glob("e[0-9]*.toml"))
    return [load_experiment(path) for path in files if not names or path.stem in names]


def missing(
    experiments: Sequence[Experiment], results: Results, seeds: int = 0
) -> Iterator[tuple[Arm, int]]:
    """Runs that are not there yet, seed by seed, each once; of the first `seeds`, 0 = of all."""
    seen: set[str] = set()
    for seed in range(seeds or max((e.seeds for e in experiments), default=0)):
        for experiment in experiments:
            for name in experiment.arms if seed < experiment.seeds else ():
                arm = Arm.of(experiment, name)
                if results.get(arm, seed) is None and arm.key(seed) not in seen:
                    seen.add(arm.key(seed))
                    yield arm, seed


def play(
    left: Sequence[tuple[Arm, int]], results: Results, out: Path, jobs: int, minutes: float
) -> None:
    """Run what is left, `jobs` campaigns at a time, beginning none after `minutes`."""
    output = Output()
    until = time.monotonic() + 60 * minutes
    total = len(left)

    def one(work: tuple[Arm, int]) -> Outcome | None:
        return run(*work, out) if time.monotonic() < until else None

    with ThreadPoolExecutor(jobs) as pool:
        for number, outcome in enumerate(pool.map(one, left), start=1):
            if outcome is not None:
                results.add(outcome)
                last = outcome.points[-1]
                output.note(
                    f"{number} of {total}: seed {outcome.seed}, {outcome.settings}: "
                    f"{last.test:.1f} % after wave {last.wave}, {outcome.seconds:.0f} s"
                )


def report(experiments: Sequence[Experiment], results: Results, page: Path) -> None:
    """Write the page's sections and figures; what stands above the first section is kept."""
    verdicts = judge(experiments, results.get)
    before = page.read_text("utf-8") if page.exists() else "# Experiments\n\n"
    parts = [before.partition("\n## ")[0].rstrip() + "\n"]
    for experiment in experiments:
        if len(finished(experiment, results.get)) > 1:
            figure = page.parent / "images" / f"{experiment.id.lower()}.png"
            draw(experiment, results.get, figure)
            parts.append(markdown(experiment, verdicts, results.get, f"images/{figure.name}"))
    page.write_text("\n".join(parts), "utf-8")


def main() -> int:
    """Run, judge, print."""
    parser = argparse.ArgumentParser(
        prog="python -m rollwave.benchmarks.experiments",
        description="The papers' claims in small, paired over seeds.",
    )
    parser.add_argument("names", nargs="*", help="e01, e02, …; all without any")
    parser.add_argument("--jobs", type=int, default=1, help="campaigns at a time")
    parser.add_argument("--seeds", type=int, default=0, help="run the first ones only; 0: all")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no run after so many")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, help="write this Markdown page, with figures")
    options = parser.parse_args()
    output = Output()
    try:
        experiments = named(options.names)
        results = Results(options.results)
    except RollwaveError as error:
        parser.error(str(error))
    unknown = set(options.names) - {path.stem for path in FILES.glob("e*.toml")}
    if unknown:
        there = ", ".join(sorted(path.stem for path in FILES.glob("e*.toml")))
        parser.error(f"no experiment {min(unknown)}; there are: {there}")
    if options.minutes > 0:
        left = list(missing(experiments, results, options.seeds))
        play(left, results, options.out, options.jobs, options.minutes)
    verdicts = judge(experiments, results.get)
    output.table(list(HEADER), rows(verdicts), title="Paired over seeds")
    lacking = len(list(missing(experiments, results)))
    if lacking:
        output.text(f"{lacking} runs are missing; --minutes N runs them")
    if options.report:
        report(experiments, results, options.report)
        output.text(f"written to {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

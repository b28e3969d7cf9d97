"""The learning rates of the preference experiments, chosen on dev tasks of seed 0.

    python -m rollwave.benchmarks.experiments.rates --jobs 2

Prints dev success of every rate after each wave. One test task is played and not looked at,
because a campaign needs one. The rate with the best dev success at the wave that the
experiment's first contrast looks at (ETO: 2, DPO: 1) is the one in the experiment's file.

Not here: the experiments (`__main__`), which take the rate as it is written there.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ...cli.output import Output
from .experiment import FILES, Arm, load_experiment
from .runs import Outcome, run

RATES: Final = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
ARMS: Final = (("e06", "eto"), ("e10", "dpo"))
"""Experiment and arm whose rate is chosen."""


def arms() -> list[tuple[str, float, Arm]]:
    """Name, rate and campaign of every run."""
    found = []
    for file, name in ARMS:
        arm = Arm.of(load_experiment(FILES / f"{file}.toml"), name)
        for rate in RATES:
            settings = dict(arm.settings)
            settings |= {"learner.training.lr": rate, "evaluate.test_tasks": 1}
            found.append((name, rate, Arm(arm.base, tuple(sorted(settings.items())))))
    return found


def main() -> None:
    """Run the grid and print it."""
    parser = argparse.ArgumentParser(prog="python -m rollwave.benchmarks.experiments.rates")
    parser.add_argument("--jobs", type=int, default=1, help="campaigns at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/rates"))
    parser.add_argument("--json", type=Path, help="also write what was printed there")
    options = parser.parse_args()
    work = arms()
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(lambda one: run(one[2], 0, options.out), work))
    rows = [
        [name, f"{rate:g}", *_by_wave(outcome)]
        for (name, rate, _), outcome in zip(work, outcomes, strict=True)
    ]
    waves = max(len(row) - 2 for row in rows)
    header = ["arm", "lr", *(f"wave {wave}" for wave in range(waves))]
    full = [row + [""] * (waves + 2 - len(row)) for row in rows]
    Output().table(header, full, title="Dev success of seed 0, %")
    if options.json:
        options.json.write_text(json.dumps([header, *full], indent=1) + "\n", "utf-8")


def _by_wave(outcome: Outcome) -> list[str]:
    return [f"{point.dev:.0f}" for point in outcome.points]


if __name__ == "__main__":
    main()

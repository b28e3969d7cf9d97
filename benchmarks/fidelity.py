"""Published trajectories played through our worlds again: how many are word for word the same.

    python -m rollwave.benchmarks.fidelity textcraft.json.gz maze.json.gz

Takes files in AgentTraj's format; they are research-only and not part of this project.
A trajectory is equal if each of its observations and its final reward is. The bar is on these;
for ScienceWorld, whose data come from an older release with other temperatures, it is on
rewards and observations.

Not here: how they are compared (`envs.replay`) and each difference (`rollwave replay`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from ..cli.output import Output
from ..envs.replay import ReplayReport, replay_file
from .report import write

BAR: Final = 0.99
"""Of trajectories, or of observations alone."""
REWARD_BAR: Final = 0.95
OLDER: Final = ("sciworld",)
"""Files, by the beginning of their names, that were made with another release of the world."""


def meets(file: str, report: ReplayReport) -> bool:
    """Whether a file is as faithful as it has to be."""
    if not report.trajectories:
        return False
    if not file.startswith(OLDER):
        return report.trajectories_equal >= BAR * report.trajectories
    rewards = report.rewards_equal >= REWARD_BAR * report.rewards
    return rewards and report.observations_equal >= BAR * report.observations


def main() -> int:
    """Replay the files, print the table, write one JSON; 1 if a file misses the bar."""
    parser = argparse.ArgumentParser(description="Fidelity to published trajectories.")
    parser.add_argument("files", type=Path, nargs="+", help="AgentTraj files, .json or .json.gz")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/fidelity.json"))
    options = parser.parse_args()
    reports = {str(path): replay_file(path) for path in options.files}
    shares = {
        name: report.trajectories_equal / report.trajectories if report.trajectories else 0.0
        for name, report in reports.items()
    }
    met = all(meets(Path(name).name, report) for name, report in reports.items())
    output = Output()
    output.table(
        [
            *("file", "trajectories equal", "share"),
            *("observations equal", "but for wording", "rewards equal"),
        ],
        [
            [
                Path(name).name,
                f"{report.trajectories_equal} of {report.trajectories}",
                f"{shares[name]:.2%}",
                f"{report.observations_equal} of {report.observations}",
                str(report.observations_reworded),
                f"{report.rewards_equal} of {report.rewards}",
            ]
            for name, report in reports.items()
        ],
    )
    output.text(
        f"bar: at least {BAR:.0%} of each file's trajectories (ScienceWorld: {REWARD_BAR:.0%} of "
        f"rewards and {BAR:.0%} of observations): {'met' if met else 'MISSED'}"
    )
    figures = {
        Path(name).name: {
            "trajectories": report.trajectories,
            "trajectories_equal": report.trajectories_equal,
            "observations": report.observations,
            "observations_equal": report.observations_equal,
            "observations_reworded": report.observations_reworded,
            "rewards": report.rewards,
            "rewards_equal": report.rewards_equal,
        }
        for name, report in reports.items()
    }
    write(options.out, {"files": figures, "bar": BAR, "met": met})
    output.text(f"written to {options.out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

"""Does evolution learn more than cloning longer? The demo over several seeds, paired.

    python -m rollwave.benchmarks.learning --seeds 5

One seed is one campaign: its own tasks for experts, exploration, dev and test, its own
initial weights, its own sampling. The unit of the statistics is the seed, not the
episode; arms are compared within a seed, on the same test tasks. The wave of the
evolution arm is the one its dev tasks chose; the control arm is taken at its last wave
and, to its advantage, at the wave that its dev tasks chose.

`--again A:B` scores the policies of finished campaigns on other tasks, by number: those
that nobody had looked at when the config was chosen.

Every campaign is resumable, so this is: the same command goes on. Prints one table,
draws one figure, writes one JSON; all seeds are published.

Not here: the campaign itself (`examples/demo.toml`).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from ..actors.config import load_config
from ..cli.output import Output
from ..envs.registry import resolve
from .report import write

_T975: Final = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)
"""Student's t, 97.5 %, by degrees of freedom from 1; beyond the table 2.0 is close enough."""

Percent = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True, slots=True)
class SeedResult:
    """Success on held-out test tasks, in percent, of one seed's policies."""

    seed: int
    cloned: float
    evolved: float
    """At the wave that dev chose."""
    control_last: float
    """After as many optimiser steps as evolution took in all."""
    control_best: float
    """At the wave that dev chose among the control's."""
    turns: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference over seeds, in points, with its 95 % t interval."""

    mean: float
    low: float
    high: float
    positive: int
    """Seeds in which it is above 0."""
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """Summarise one difference for each seed; two at least."""
        n = len(values)
        t = _T975[n - 2] if n - 2 < len(_T975) else 2.0
        half = t * stdev(values) / math.sqrt(n)
        mean = fmean(values)
        return cls(mean, mean - half, mean + half, sum(v > 0 for v in values), n)

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def run_seed(config: Path, seed: int, out: Path, extra: Sequence[str]) -> SeedResult:
    """Run, or go on with, the campaign of one seed in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; its own error line says why.
    """
    settings = {
        "run.seed": seed,
        "cloning.seed": seed,
        "learner.seed": seed,
        "learner.training.seed": seed,
        "experts.first": 300 * seed,
        "rollout.first": 300 * seed,
        "evaluate.dev_first": 50 * seed,
        "evaluate.test_first": 100 * seed,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()] + list(extra)
    command = [sys.executable, "-m", "rollwave", "evolve", str(config), "--out", str(out), "--json"]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return read_result(seed, json.loads(done.stdout.splitlines()[-1]))


def read_result(seed: int, report: Mapping[str, Any], percent: Percent | None = None) -> SeedResult:
    """Take what is compared out of the JSON of `rollwave evolve`.

    Args:
        percent: gives a row's success; by default that on the campaign's own test tasks.
    """
    percent = percent or _percent
    evolution = [row for row in report["rows"] if row["arm"] == "evolution"]
    control = [row for row in report["rows"] if row["arm"] == "control"]
    chosen = next(row for row in evolution if row["wave"] == report["best"])
    # The cloned policy is the control's wave 0 too: dev may choose it.
    best = max([evolution[0], *control], key=lambda row: float(row["dev"]["success_rate"]))
    return SeedResult(
        seed,
        percent(evolution[0]),
        percent(chosen),
        percent(control[-1]),
        percent(best),
        report["turns"],
        report.get("seconds", 0.0),
    )


def _percent(row: Mapping[str, Any]) -> float:
    return 100.0 * float(row["test"]["success_rate"])


def score_again(
    report: Mapping[str, Any], seed: int, env: str, tasks: str, out: Path
) -> SeedResult:
    """Score a finished campaign's policies on other tasks, greedily, with `rollwave evaluate`.

    For tasks that nobody had looked at when the config was chosen. Which waves are
    compared is what dev chose before.

    Raises:
        subprocess.CalledProcessError: an evaluation failed.
    """

    @lru_cache
    def success(model: str) -> float:
        command = [sys.executable, "-m", "rollwave", "evaluate", "--env", env, "--tasks", tasks]
        command += ["--policy", model, "--max-tokens", "2", "--concurrency", "256"]
        command += ["--backend", "vllm", "--json", "--out", str(out / Path(model).name)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return 100.0 * float(json.loads(done.stdout.splitlines()[-1])["success_rate"])

    return read_result(seed, report, lambda row: success(str(row["model"])))


def differences(results: Sequence[SeedResult]) -> dict[str, Difference]:
    """The paired differences that are claimed or denied."""
    return {
        "AgentEvol - BC": Difference.of([r.evolved - r.cloned for r in results]),
        "AgentEvol - control": Difference.of([r.evolved - r.control_last for r in results]),
        "AgentEvol - control at its best": Difference.of(
            [r.evolved - r.control_best for r in results]
        ),
    }


def main() -> int:
    """Run the seeds, print the table, write figure and JSON."""
    parser = argparse.ArgumentParser(description="AgentEvol against cloning, paired over seeds.")
    parser.add_argument("--config", type=Path, default=Path("examples/demo.toml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/learning"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--again", default="", help="score on these tasks instead: A:B")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: the unit of the statistics is the seed")
    output = Output()
    results: list[SeedResult] = []
    for seed in range(options.seeds):
        output.note(f"seed {seed} of {options.seeds}")
        out = options.out / f"seed-{seed}"
        if options.again:
            report = json.loads((out / "report.json").read_text("utf-8"))
            env = resolve(load_config(options.config, options.overrides).environment.id).id
            results.append(score_again(report, seed, env, options.again, out / "again"))
        else:
            results.append(run_seed(options.config, seed, out, options.overrides))
    found = differences(results)
    output.table(
        ["seed", "BC", "AgentEvol", "control, last", "control, best", "turns", "seconds"],
        [
            [r.seed, r.cloned, r.evolved, r.control_last, r.control_best, r.turns, r.seconds]
            for r in results
        ],
        title="Success on held-out test tasks, %",
    )
    output.table(
        ["difference", "points, 95 % interval", "seeds in favour"],
        [[name, str(d), f"{d.positive} of {d.seeds}"] for name, d in found.items()],
        title="Paired over seeds",
    )
    path = options.out / ("learning-again.json" if options.again else "learning.json")
    write(
        path,
        {
            "config": str(options.config),
            "overrides": options.overrides,
            "again": options.again,
            "seeds": [asdict(r) for r in results],
            "differences": {name: asdict(d) for name, d in found.items()},
        },
    )
    output.text(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

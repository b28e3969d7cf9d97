"""The runs of experiments: one campaign for an arm and a seed, in a process of its own.

    OUT/<key>/          the campaign's run directory; removed once its result is kept
    RESULTS.jsonl       one line a finished run: arm, seed, and success after each wave

Invariants: a run whose line is there is not run again; one that was interrupted goes on;
a line holds figures alone, so that all seeds can be published with the code.

Not here: which runs there are (`experiment`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ...engine.errors import StoreError
from ..report import commit
from .experiment import Arm

KEPT: Final = ("entropy", "chosen_reward", "rejected_reward")
"""The learner's figures that are kept, where it gives them: each is what a claim is about."""


class Point(msgspec.Struct, frozen=True):
    """One policy of a run, as it was tested."""

    wave: int
    test: float
    """Success on held-out test tasks, in percent."""
    dev: float
    steps: int
    explored: int
    kept: int
    metrics: dict[str, float] = {}
    """Of `KEPT`, over the last optimiser step of the wave."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a run."""

    key: str
    base: str
    settings: dict[str, Any]
    seed: int
    points: tuple[Point, ...]
    best: int
    """Wave that dev chose."""
    stopped: str
    turns: int
    seconds: float
    commit: str

    def at(self, wave: int, *, chosen: bool = False, metric: str = "") -> float:
        """Test success after a wave, in percent, or a metric; where it ended before, the last.

        A campaign that could learn nothing more stands still: its later waves are its last.

        Raises:
            LookupError: that wave has no such metric.
        """
        if chosen:
            wave = self.best
        upto = [point for point in self.points if wave < 0 or point.wave <= wave]
        if not metric:
            return upto[-1].test
        if metric not in upto[-1].metrics:
            raise LookupError(f"wave {upto[-1].wave} of run {self.key} has no {metric}")
        return upto[-1].metrics[metric]


def run(arm: Arm, seed: int, out: Path) -> Outcome:
    """Run a campaign, or go on with it, and take what is compared out of its report.

    Raises:
        subprocess.CalledProcessError: it failed; its own error line says why.
    """
    place = out / arm.key(seed)
    place.mkdir(parents=True, exist_ok=True)
    config = place / "config.json"
    config.write_text(json.dumps(arm.document(seed)), "utf-8")
    command = [sys.executable, "-m", "rollwave.benchmarks.experiments.campaign", str(config)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    outcome = read(arm, seed, json.loads(done.stdout.splitlines()[-1]))
    shutil.rmtree(place)
    return outcome


def read(arm: Arm, seed: int, report: Mapping[str, Any]) -> Outcome:
    """Take the figures out of a campaign's result."""
    rows = [row for row in report["rows"] if row["arm"] == "evolution"]
    return Outcome(
        key=arm.key(seed),
        base=arm.base,
        settings=dict(arm.settings),
        seed=seed,
        points=tuple(
            Point(
                row["wave"],
                100 * row["test"]["success_rate"],
                100 * row["dev"]["success_rate"],
                row["steps"],
                row["explored"],
                row["kept"],
                {name: row["metrics"][name] for name in KEPT if _finite(row["metrics"], name)},
            )
            for row in rows
            if row["test"] is not None  # not every wave is evaluated: `evaluate.every`
        ),
        best=report["best"],
        stopped=report["stopped"],
        turns=report["turns"],
        seconds=round(report["seconds"], 1),
        commit=commit(),
    )


def _finite(metrics: Mapping[str, float | None], name: str) -> bool:
    return metrics.get(name) is not None


class Results:
    """The file of finished runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Outcome] = {}
        if path.exists():
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                try:
                    outcome = msgspec.json.decode(line, type=Outcome)
                except msgspec.MsgspecError as error:
                    raise StoreError(f"{path}, line {number}: {error}; remove the line") from error
                self._found[outcome.key] = outcome

    def get(self, arm: Arm, seed: int) -> Outcome | None:
        """A finished run, or nothing."""
        return self._found.get(arm.key(seed))

    def add(self, outcome: Outcome) -> None:
        """Keep a finished run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(outcome) + b"\n")
        self._found[outcome.key] = outcome

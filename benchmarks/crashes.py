"""Is anything lost? `kill -9` at random moments of a real campaign, and the same command again.

    python -m rollwave.benchmarks.crashes --kills 50

One campaign runs without interruption: the reference, and how long it takes. Then the
same campaign runs in other directories, each run killed with its whole process group at
a moment drawn uniformly over that time, and begun again by the same command, until it
ends; then the next one, until enough kills were delivered. After every kill the journals
and sealed waves are read and compared with all that was there before (`audit`); every
campaign that ends is compared with the reference: its waves token by token, its weights
bit by bit, its table.

Requests are served one at a time, so that the arithmetic of a completion does not depend
on what else is in the batch; up to 32 sessions are live nevertheless.

Exit code 1 if anything was lost, doubled or changed, or ended otherwise.

Not here: power cuts (`tests/engine/test_journal.py`), and other faults than a kill.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..cli.output import Output
from .audit import Audit, differing, look, outcome
from .report import write

CAMPAIGN: Final = """\
[run]
seed = {seed}
concurrency = 32

[environment]
id = "maze-grid-v1?size=4&style=terse"
turn_limit = 12

[model.tiny]
width = 64
layers = 2
heads = 2
context = 256

[inference]
backend = "{backend}"
batch = 1

[experts]
tasks = 40

[cloning]
max_steps = {steps}
batch = 16
lr = 3e-3
checkpoint_every = 4

[rollout]
tasks = {tasks}
attempts = 2
max_tokens = 2

[learner]
choose = "shortest"

[learner.training]
max_steps = {steps}
batch = 16
lr = 3e-3
checkpoint_every = 4

[evaluate]
dev_tasks = {dev}
test_tasks = {dev}

[stop]
waves = 2
patience = 5
rollback_errors = 1000.0

[control]
enabled = true
"""
_LATEST: Final = 900.0
"""Seconds after which a run that nobody killed is taken for hung."""


@dataclass(slots=True)
class Result:
    """What all the kills came to."""

    kills: Counter[str] = field(default_factory=Counter)
    """By stage."""
    campaigns: int = 0
    """Ended, after kills."""
    equal: int = 0
    """Of them: as the reference in every wave, weight and figure."""
    differing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Last line of standard error of runs that ended with an error."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    records: int = 0
    in_flight: int = 0
    resumed: int = 0
    restarted: int = 0
    trainings_resumed: int = 0
    """Trainings that went on from a checkpoint."""

    def take(self, audit: Audit) -> None:
        """Add what was seen of one campaign."""
        for name in ("lost", "doubled", "changed"):
            getattr(self, name).extend(getattr(audit, name))
        for name in ("records", "in_flight", "resumed", "restarted"):
            setattr(self, name, getattr(self, name) + getattr(audit, name))

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, and every campaign ended as the reference did."""
        bad = (self.lost, self.doubled, self.changed, self.differing, self.failed)
        return not any(bad) and self.equal == self.campaigns


def stage_of(run: Path, waves: int = 2) -> str:
    """Name what a campaign was doing, from what is not finished yet on its disk."""

    def evaluated(version: int) -> list[tuple[str, str]]:
        name = f"waves/wave-{version:04d}.parquet"
        return [("evaluate", f"evaluations/{part}/{name}") for part in ("dev", "test")]

    order = [
        ("start", "run.json"),
        ("base model", "models/base/config.json"),
        ("experts", "waves/wave-0000.parquet"),
        ("clone", "models/policy-0000/training.json"),
        *evaluated(0),
    ]
    for wave in range(1, waves + 1):
        order.append(("explore", f"waves/wave-{wave:04d}.parquet"))
        order.append(("evolution step", f"models/policy-{wave:04d}/training.json"))
        order += evaluated(wave)
    for wave in range(1, waves + 1):
        order.append(("control step", f"models/control-{wave:04d}/training.json"))
        order += evaluated(waves + wave)
    order += [("report", "report.json"), ("figure", "figures/success.png")]
    return next((stage for stage, path in order if not (run / path).exists()), "end")


def trainings_resumed(run: Path) -> int:
    """Trainings of a finished campaign that went on from a checkpoint."""
    return sum('"resumed"' in p.read_text("utf-8") for p in run.glob("models/*/training.json"))


class Campaign:
    """The command under test, in one run directory."""

    def __init__(self, config: Path, run: Path) -> None:
        self.run = run
        self._command = [sys.executable, "-m", "rollwave", "evolve", str(config)]
        self._command += ["--out", str(run), "--json"]

    def go(self, seconds: float) -> str | None:
        """Run the command; kill it with everything it started after so many seconds.

        Returns:
            None if it was killed, "" if it ended well, or the last line of its complaint.
        """
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )
        try:
            _, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None
        if process.returncode == 0:
            return ""
        return (complaint.strip().splitlines() or ["(nothing on standard error)"])[-1]


def crash_once(
    campaign: Campaign,
    moment: float | None,
    audit: Audit,
    result: Result,
    expected: Mapping[str, Any],
) -> bool:
    """Run the command once, killed at that moment if it has not ended; True if it has ended."""
    complaint = campaign.go(_LATEST if moment is None else moment)
    if complaint is None and moment is None:
        complaint = f"it hung for {_LATEST:.0f} s in: {stage_of(campaign.run)}"
    if complaint is None:
        result.kills[stage_of(campaign.run)] += 1
        audit.add(look(campaign.run))
        return False
    audit.add(look(campaign.run))
    if complaint:
        result.failed.append(complaint)
        return True
    if audit.looks == 1:
        return True  # never killed: it says nothing
    result.campaigns += 1
    result.trainings_resumed += trainings_resumed(campaign.run)
    found = differing(expected, outcome(campaign.run))
    result.differing += found
    result.equal += not found
    return True


def show(result: Result, seconds: float, output: Output) -> None:
    """Print the tables."""
    kills = result.kills.total()
    output.table(
        ["killed in", "times"],
        [*sorted(result.kills.items(), key=lambda item: -item[1]), ("in all", kills)],
        title=f"kill -9 of a campaign that takes {seconds:.0f} s",
    )
    output.table(
        ["what", "how many"],
        [
            ["records looked for again after a kill", result.records],
            ["lost", len(result.lost)],
            ["doubled", len(result.doubled)],
            ["changed", len(result.changed)],
            ["episodes caught in mid-flight", result.in_flight],
            ["of them: went on at the same turn", result.resumed],
            ["of them: began anew", result.restarted],
            ["trainings that went on from a checkpoint", result.trainings_resumed],
            ["campaigns that ended after kills", result.campaigns],
            ["of them: equal to the uninterrupted one", result.equal],
            ["runs that ended with an error", len(result.failed)],
        ],
        title="What it cost",
    )
    for name in ("lost", "doubled", "changed", "differing", "failed"):
        for what in getattr(result, name)[:10]:
            output.text(f"{name}: {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the reference, kill until enough, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description="Random kill -9 of a real campaign.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/crashes"))
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--tasks", type=int, default=40, help="explored in a wave")
    parser.add_argument("--dev", type=int, default=10, help="dev tasks, and test tasks")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps of a training")
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error("--kills must be at least 1")
    output = Output()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    config = options.out / "campaign.toml"
    config.write_text(CAMPAIGN.format(**vars(options)), "utf-8")
    reference = Campaign(config, options.out / "reference")
    began = time.perf_counter()
    complaint = reference.go(_LATEST)
    if complaint != "":
        output.warn(f"the campaign fails without any kill: {complaint or 'it hangs'}")
        return 1
    seconds = time.perf_counter() - began
    expected = outcome(reference.run)
    output.note(f"uninterrupted: {seconds:.0f} s")
    chance = random.Random(options.seed)
    result = Result()
    while result.kills.total() < options.kills:
        campaign = Campaign(config, options.out / "killed")
        shutil.rmtree(campaign.run, ignore_errors=True)
        audit = Audit()
        ended = False
        while not ended:
            enough = result.kills.total() >= options.kills
            moment = None if enough else chance.uniform(0.0, seconds)
            ended = crash_once(campaign, moment, audit, result, expected)
            output.note(f"{result.kills.total()} of {options.kills} kills: {dict(result.kills)}")
        result.take(audit)
    show(result, seconds, output)
    path = options.out / "crashes.json"
    figures = {name: getattr(result, name) for name in Result.__slots__}
    write(
        path,
        {
            "backend": options.backend,
            "seed": options.seed,
            "seconds": seconds,
            **figures,
            "kills": dict(result.kills),
            "clean": result.clean,
        },
    )
    output.text(f"written to {path}")
    return 0 if result.clean else 1


if __name__ == "__main__":
    sys.exit(main())

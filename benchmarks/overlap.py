"""What exploring ahead of the learner gains in wall-clock, and costs in staleness.

    python -m rollwave.benchmarks.overlap --seeds 3

The same campaign (GRPO on a tiny model in mazes, learner and all on this machine's CPU) with
`run.max_staleness` 0, 1 and 2, interleaved within each seed, with two samplers:

* remote: words are drawn after a latency, as from a server elsewhere. Sampling takes none of
  our CPU, so exploring and learning can truly overlap. Its rewards say nothing, and are not
  shown;
* local: the policy itself, by transformers or vLLM, on the CPU that the learner needs too.
  What is gained here is only what either of them leaves idle.

The window begins with the first wave's exploration and ends when the last policy serves;
cloning and evaluation lie outside of it. The learner is busy from the begin of a step to its
published policy; the sampler while any episode runs. Prints one table, writes one JSON.

Not here: the invariants (`tests/actors/test_ahead.py`, on the virtual clock).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import trio

from ..actors.backends.latency import UniformLatency
from ..actors.campaign import CAST, Cast, run_campaign
from ..actors.config import CampaignConfig, parse_config
from ..actors.monitor import Snapshot
from ..actors.policy_source import PolicySource
from ..actors.report import CampaignResult
from ..actors.simulation.rehearsal import drawn
from ..cli.output import Output
from ..engine.store import Store
from .report import Spread, write

_STALENESS: Final = (0, 1, 2)
_LATENCY: Final = UniformLatency(0.02, 0.35)
"""Of a completion of the remote sampler: a wave then takes about as long as a step."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One campaign."""

    sampler: str
    seed: int
    max_staleness: int
    seconds: float
    """Of the window."""
    learner_idle: float
    """Share of the window."""
    sampler_idle: float
    staleness: dict[int, int]
    """Episodes by how many policies they were behind."""
    mixed: int
    """Episodes that more than one policy wrote."""
    dropped: dict[str, int]
    dev_first: float
    dev_last: float
    """Average reward on dev tasks, before the first wave and after the last."""


class Timeline:
    """When each stage began, noted as it is told; also from the learner's thread."""

    def __init__(self) -> None:
        self.stages: list[tuple[float, str]] = []

    def note(self, snapshot: Snapshot) -> None:
        """Take the time of a new stage."""
        stage = snapshot.stage.partition(":")[0]
        if stage.startswith("wave "):
            stage = "explore"
        self.stages.append((time.perf_counter(), stage))

    def window(self) -> tuple[float, float]:
        """From the first exploration to the last published policy."""
        begins = [at for at, stage in self.stages if stage == "explore"]
        ends = [at for at, stage in self.stages if stage.startswith("publish")]
        return begins[0], ends[-1]

    def learning(self) -> list[tuple[float, float]]:
        """When the learner was at work, from a step's begin to its policy's publishing."""
        spans: list[tuple[float, float]] = []
        began: dict[str, float] = {}
        for at, stage in self.stages:
            what, _, policy = stage.partition(" ")
            if what == "train":
                began.setdefault(policy, at)
            elif what == "publish" and policy in began:
                spans.append((began.pop(policy), at))
        return spans


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of these intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def settings(seed: int, max_staleness: int, waves: int, backend: str) -> CampaignConfig:
    """The campaign that is measured."""
    return parse_config(
        {
            "run": {"seed": seed, "concurrency": 96, "max_staleness": max_staleness},
            "environment": {"id": "maze-grid-v1?size=4&loops=0.5&style=terse", "turn_limit": 10},
            "model": {"tiny": {"width": 64, "layers": 2, "heads": 2, "context": 256}},
            "inference": {"backend": backend, "batch": 96},
            "experts": {"tasks": 30, "first": 300 * seed},
            "cloning": {"max_steps": 40, "batch": 16, "lr": 2e-3, "seed": seed},
            "rollout": {
                "tasks": 200,
                "first": 300 * seed,
                "batch": 16,
                "attempts": 6,
                "max_tokens": 2,
            },
            "learner": {
                "algorithm": "grpo",
                "training": {"lr": 5e-4, "batch": 24, "epochs": 2, "seed": seed},
                "importance": {"correction": "token"},
                "zero_variance": "keep",
            },
            "evaluate": {
                "dev_tasks": 100,
                "dev_first": 50 * seed,
                "test_tasks": 0,
                "every": 10_000,
            },
            "stop": {"waves": waves, "patience": 10_000, "rollback_errors": 1e9},
        }
    )


def remote() -> Cast:
    """The real learner, and a sampler that is elsewhere."""

    def source(_config: CampaignConfig, model: str) -> PolicySource:
        from ..learners.model.chat import load_renderer

        return drawn(model, _LATENCY, load_renderer(model))

    return Cast(learner=CAST.learner, source=source)


def measure(sampler: str, config: CampaignConfig, out: Path) -> Figures:
    """Run one campaign, in an empty directory."""
    timeline = Timeline()
    cast = remote() if sampler == "remote" else CAST
    result = trio.run(partial(run_campaign, config, out, timeline.note, cast=cast))
    return figures(sampler, config, out, timeline, result)


def figures(
    sampler: str, config: CampaignConfig, out: Path, timeline: Timeline, result: CampaignResult
) -> Figures:
    """What a campaign came to."""
    with Store.open(out, exclusive=False) as store:
        waves = [store.read(info.number) for info in store.waves() if info.number > 0]
    episodes = [t for wave in waves for t in wave.trajectories]
    begin, end = timeline.window()
    ages: Counter[int] = Counter()
    dropped: Counter[str] = Counter()
    for row in result.rows:
        dropped.update(row.dropped if row.wave else {})
        ages.update(row.figures.staleness if row.figures is not None else {})
    first, last = result.rows[0].dev, result.rows[-1].dev
    assert first is not None  # the first and the last are always evaluated
    assert last is not None
    return Figures(
        sampler,
        config.run.seed,
        config.run.max_staleness,
        end - begin,
        1 - covered(timeline.learning()) / (end - begin),
        1 - covered((t.started, t.started + t.seconds) for t in episodes) / (end - begin),
        dict(sorted(ages.items())),
        sum(t.versions[0] < t.versions[1] for t in episodes),
        dict(dropped),
        first.average_reward,
        last.average_reward,
    )


def summary(found: Sequence[Figures]) -> list[dict[str, Any]]:
    """One line for each sampler and staleness, over the seeds; times are compared within one."""
    lines = []
    for sampler in dict.fromkeys(f.sampler for f in found):
        taking_turns = {
            f.seed: f.seconds for f in found if (f.sampler, f.max_staleness) == (sampler, 0)
        }
        for staleness in sorted({f.max_staleness for f in found}):
            of = [f for f in found if (f.sampler, f.max_staleness) == (sampler, staleness)]
            ages: Counter[int] = Counter()
            for f in of:
                ages.update(f.staleness)
            lines.append(
                {
                    "sampler": sampler,
                    "max_staleness": staleness,
                    "seconds": Spread.of([f.seconds for f in of]),
                    "faster": Spread.of([taking_turns[f.seed] / f.seconds for f in of]),
                    "learner_idle": median(f.learner_idle for f in of),
                    "sampler_idle": median(f.sampler_idle for f in of),
                    "staleness": dict(sorted(ages.items())),
                    "mixed": sum(f.mixed for f in of),
                    "stale_dropped": sum(f.dropped.get("stale", 0) for f in of),
                    "dev_gain": fmean(f.dev_last - f.dev_first for f in of),
                    "dev_last": Spread.of([f.dev_last for f in of]),
                }
            )
    return lines


def show(lines: Sequence[dict[str, Any]], output: Output) -> None:
    """Print the table."""
    output.table(
        [
            "sampler",
            "max_staleness",
            "seconds",
            "times as fast",
            "learner idle",
            "sampler idle",
            "episodes by staleness",
            "by two policies",
            "stale, dropped",
            "dev reward at the end",
        ],
        [
            [
                line["sampler"],
                line["max_staleness"],
                str(line["seconds"]),
                str(line["faster"]),
                f"{line['learner_idle']:.0%}",
                f"{line['sampler_idle']:.0%}",
                ", ".join(f"{age}: {n}" for age, n in line["staleness"].items()),
                line["mixed"],
                line["stale_dropped"],
                str(line["dev_last"]) if line["sampler"] == "local" else None,
            ]
            for line in lines
        ],
        title="Medians over seeds (least to most); times as fast: than 0, within a seed",
    )


def main() -> int:
    """Run all campaigns, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Exploring ahead of the learner, measured.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--waves", type=int, default=10)
    parser.add_argument("--samplers", nargs="+", default=["remote", "local"])
    parser.add_argument("--backend", default="transformers", help="of the local sampler")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/overlap"))
    options = parser.parse_args()
    output = Output()
    found: list[Figures] = []
    run = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    for seed in range(options.seeds):
        for shift in range(len(_STALENESS)):
            staleness = _STALENESS[(seed + shift) % len(_STALENESS)]  # nobody is always first
            for sampler in options.samplers:
                config = settings(seed, staleness, options.waves, options.backend)
                out = options.out / run / f"{sampler}-{seed}-{staleness}"
                found.append(measure(sampler, config, out))
                output.note(f"{sampler}, seed {seed}, {staleness}: {found[-1].seconds:.1f} s")
    lines = summary(found)
    show(lines, output)
    path = options.out / "overlap.json"
    write(
        path,
        {
            "waves": options.waves,
            "backend": options.backend,
            "latency": asdict(_LATENCY),
            "campaigns": [asdict(f) for f in found],
            "summary": [
                {k: asdict(v) if isinstance(v, Spread) else v for k, v in line.items()}
                for line in lines
            ],
        },
    )
    output.text(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

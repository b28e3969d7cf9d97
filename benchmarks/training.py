"""Training speed and memory, and TRL 1.16 beside it, in one run on one machine.

    python -m rollwave.benchmarks.training

Both sides train the same model (fp32, one thread) on the same ragged samples and pairs with
the same optimiser, batch and schedule. What counts is *real* tokens per CPU-second: padding
earns nothing, and other work on the machine costs little. Each measurement is a fresh
process, and the sides take turns, so that a busy moment hits all alike. TRL is installed into
a virtual environment of its own, `.bench/trl`.

The modes of TRL: as it is by default; with samples grouped by length; packing (its own
best-fit packing, and the wrapped one, which cuts samples and lets them see each other); the
reference of DPO computed beforehand. Gradient checkpointing, TRL's default, is off: it computes
every layer twice. Items stand in one order on both sides, so the default's batches are
ours, and so must be its losses.

Memory is the high-water mark of the process in one optimiser step of DPO with as many pairs
in a forward pass on both sides.

Not here: the sides (`training_side`, `trl_side`) and their data (`training_job`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..cli.machine import this_machine
from ..cli.output import Output
from .report import Spread, commit, processor, write
from .throughput import Bar
from .training_job import Job, Size, in_order, make_model, make_pairs, make_samples

TRL: Final = ("trl==1.16.0", "torch==2.13.0", "transformers==5.19.0", "peft")
SIDE: Final = Path(__file__).with_name("trl_side.py")
SECONDS: Final = 1_800.0
"""Deadline of one measurement."""

OURS: Final = "rollwave"
SFT: Final[Mapping[str, Mapping[str, Any]]] = {
    "TRL": {},
    "TRL by length": {"train_sampling_strategy": "group_by_length"},
    "TRL packed": {"packing": True},
    "TRL packed, wrapped": {"packing": True, "packing_strategy": "wrapped"},
}
DPO: Final[Mapping[str, Mapping[str, Any]]] = {
    "TRL": {},
    "TRL by length": {"train_sampling_strategy": "group_by_length"},
    "TRL reference first": {"precompute_ref_log_probs": True},
    "TRL reference first, by length": {
        "precompute_ref_log_probs": True,
        "train_sampling_strategy": "group_by_length",
    },
}
MODES: Final = {"sft": SFT, "dpo": DPO}

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Course:
    """One kind of training: its items, what each costs, and the job of every arm."""

    tokens: int
    jobs: Mapping[str, Job]


def install_trl(folder: Path) -> Path:
    """Make the virtual environment of the other side, once. Gives its interpreter."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {TRL[0]} into {folder} …", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *TRL], check=True)
        done.touch()
    return python


def course(kind: str, model: Path, size: Size, lr: float) -> Course:
    """The same items for every arm, in the order of our loop for the other side."""
    cost: Callable[[Job], int]
    if kind == "sft":
        items, cost = make_samples(size), _sample_tokens
    else:
        items, cost = make_pairs(size, end_of(model)), _pair_tokens
    common: Job = {
        "kind": kind,
        "model": str(model),
        "batch": size.batch,
        "per_device": size.per_device,
        "epochs": size.epochs,
        "seed": size.seed,
        "context": size.longest,
        "lr": lr,
        "beta": 0.1,
    }
    theirs = common | {"items": in_order(items, size, cost)}
    jobs = {OURS: common | {"items": items}}
    jobs |= {name: theirs | {"options": dict(mode)} for name, mode in MODES[kind].items()}
    return Course(size.epochs * sum(map(cost, items)), jobs)


def measure(name: str, job: Job, python: Path | None) -> Figures:
    """Run one measurement in a process of its own."""
    ours = [sys.executable, "-m", "rollwave.benchmarks.training_side"]
    return answer(ours if name == OURS else [str(python), str(SIDE)], job)


def answer(command: Sequence[str], job: Mapping[str, Any]) -> Figures:
    """Give a side its job as a file; the last line that it prints is its answer, as JSON.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), "utf-8")
        done = subprocess.run(
            [*command, str(file)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(
    kind: str, speeds: Mapping[str, Sequence[float]], results: Mapping[str, Sequence[Figures]]
) -> list[Bar]:
    """Ratios of tokens per CPU-second, repeat by repeat, and the largest gap between losses."""

    def ratio(other: str) -> Spread:
        pairs = zip(speeds[OURS], speeds[other], strict=True)
        return Spread.of([a / b for a, b in pairs])

    modes = [name for name in speeds if name != OURS]
    if not modes:
        return []
    best = max(modes, key=lambda name: Spread.of(speeds[name]).median)
    gaps = [
        max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True))
        for one, two in zip(results[OURS], results["TRL"], strict=True)
    ]
    return [
        Bar(name=f"{kind}: × TRL's default", value=ratio("TRL"), at_least=1.5),
        Bar(name=f"{kind}: × TRL's best mode ({best})", value=ratio(best), at_least=1.0),
        Bar(name=f"{kind}: largest gap in loss of a step", value=Spread.of(gaps), at_most=5e-5),
    ]


def memory(results: Mapping[str, Sequence[Figures]]) -> list[Bar]:
    """Our high-water mark of a DPO step as a share of each mode's of the other side."""
    ours = [figures["peak_mib"] for figures in results[OURS]]
    shares = {
        name: Spread.of([a / f["peak_mib"] for a, f in zip(ours, figures, strict=True)])
        for name, figures in results.items()
        if name != OURS
    }
    return [
        Bar(name=f"dpo step, peak memory / that of {name}", value=share, at_most=1.0)
        for name, share in shares.items()
    ]


def _sample_tokens(item: Job) -> int:
    return len(item["ids"])


def _pair_tokens(item: Job) -> int:
    return len(item["chosen"]) + len(item["rejected"])


def end_of(model: Path) -> int:
    """Id of the token that ends a text: the other side appends it to whatever lacks it."""
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    return int(loader.from_pretrained(model, local_files_only=True).eos_token_id)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training speed and memory beside TRL.")
    parser.add_argument("--items", type=int, default=192, help="samples, and half as many pairs")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--no-trl", dest="trl", action="store_false")
    parser.add_argument("--bench", type=Path, default=Path(".bench/trl"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/training.json"))
    return parser.parse_args()


def _memory_jobs(model: Path, size: Size, lr: float) -> Mapping[str, Job]:
    """One optimiser step of full-length pairs, all of them in one forward pass."""
    n = size.per_device
    step = replace(size, items=n, batch=n, typical=2 * size.longest, epochs=1)
    found = course("dpo", model, step, lr)
    packed = {"options": {"micro_tokens": 2 * n * size.longest}}
    names = (OURS, "TRL", "TRL reference first")
    return {name: found.jobs[name] | (packed if name == OURS else {}) for name in names}


def main() -> None:
    """Measure, print the tables, write one JSON file."""
    options = _options()
    size = Size(
        items=options.items,
        width=options.width,
        layers=options.layers,
        vocabulary=options.vocabulary,
        epochs=options.epochs,
    )
    python = install_trl(options.bench) if options.trl else None
    output, bars = Output(), []
    figures: dict[str, Any] = {"settings": asdict(size) | {"lr": options.lr}}
    machine = this_machine()
    output.text(
        f"commit {commit()}, {machine.cores:g} cores of {processor() or machine.platform}, "
        "one thread, fp32"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model", size)
        halved = replace(size, items=max(size.batch, size.items // 2))
        courses = {
            "sft": course("sft", model, size, options.lr),
            "dpo": course("dpo", model, halved, options.lr),
        }
        courses["memory"] = Course(0, _memory_jobs(model, size, options.lr))
        for kind, found in courses.items():
            arms = {n: j for n, j in found.jobs.items() if options.trl or n == OURS}
            results: dict[str, list[Figures]] = {name: [] for name in arms}
            for repeat in range(options.repeats):
                for name, job in arms.items():
                    at = f"repeat {repeat + 1} of {options.repeats}"
                    print(f"{at}: {kind}, {name}", file=sys.stderr)
                    results[name].append(measure(name, job, python))
            figures[kind] = results
            bars += _report(output, kind, found, results)
    output.table(
        ["bar", "must be", "is", ""],
        [[bar.name, bar.bar, str(bar.value), bar.verdict] for bar in bars],
    )
    figures["bars"] = [asdict(bar) | {"verdict": bar.verdict} for bar in bars]
    write(options.out, figures)
    output.text(f"written to {options.out}")


def _report(
    output: Output, kind: str, found: Course, results: Mapping[str, Sequence[Figures]]
) -> list[Bar]:
    """Print one table; give its bars."""
    if kind == "memory":
        columns = ["peak_mib", "before_mib"]
        rows = [
            [name, *(str(Spread.of([f[column] for f in each])) for column in columns)]
            for name, each in results.items()
        ]
        header = ["median (least to most)", "peak MiB", "before the step"]
        output.table(header, rows, title="one DPO step")
        return memory(results)
    speeds = {n: [found.tokens / f["cpu_seconds"] for f in each] for n, each in results.items()}
    rows = [
        [name, str(Spread.of(speed)), str(Spread.of([f["cpu_seconds"] for f in results[name]]))]
        for name, speed in speeds.items()
    ]
    output.table(
        ["median (least to most)", "real tokens per CPU-second", "CPU seconds"],
        rows,
        title=f"{kind}: {found.tokens:,} real tokens",
    )
    return compare(kind, speeds, results)


if __name__ == "__main__":
    main()

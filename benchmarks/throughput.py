"""Engine throughput, and verifiers 0.1.14 beside it, in one run on one machine.

    python -m rollwave.benchmarks.throughput

Both sides play the same world ("k turns are left.") with the same number of sessions
and turns and the same latency. Over HTTP both talk to the same stub server. Each
measurement is a fresh process, and the sides take turns, so that a busy moment hits
all alike. verifiers is installed into a virtual environment of its own, `.bench/verifiers`.

What is compared with what:

* **in process**: our engine with messages, deadlines, records and journal on, against
  verifiers tuned (aiohttp) on its stub server, which is how it is fastest as shipped; and,
  for fairness, against verifiers on a client without HTTP, which no user runs;
* **HTTP**: both against the stub server.

Not here: real models (`inference`), live sessions and their memory (`sessions`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..cli.output import Output
from .report import Spread, write
from .stub_server import stub_server

VERIFIERS: Final = "verifiers==0.1.14"
SIDE: Final = Path(__file__).with_name("verifiers_side.py")
SECONDS: Final = 900.0
"""Deadline of one measurement."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of the table: what was reached and what must be."""

    name: str
    value: Spread
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the median reaches the bar; "" where there is none."""
        if self.at_least is not None:
            return "reached" if self.value.median >= self.at_least else "missed"
        if self.at_most is not None:
            return "reached" if self.value.median <= self.at_most else "missed"
        return ""

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"


def install_verifiers(folder: Path) -> Path:
    """Make the virtual environment of the other side, once. Gives its interpreter."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {VERIFIERS} into {folder} …", file=sys.stderr)
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", VERIFIERS, "openai[aiohttp]"]
        subprocess.run(command, check=True)
        done.touch()
    return python


def measure(command: list[str]) -> Figures:
    """Run one measurement in a process of its own; its last line is JSON."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def ours(options: argparse.Namespace, *more: str) -> list[str]:
    """Our side, as a command line."""
    command = [sys.executable, "-m", "rollwave", "bench", "engine", "--json"]
    return [*command, *_size(options), *more]


def _size(options: argparse.Namespace) -> list[str]:
    return [
        f"--sessions={options.sessions}",
        f"--turns={options.turns}",
        f"--latency-ms={options.latency_ms}",
    ]


def commands(options: argparse.Namespace, url: str) -> dict[str, list[str]]:
    """Every measurement by name, in the order in which they take turns."""
    batched = ["--sessions=1000", "--turns=10", "--latency-ms=20"]
    batched += ["--per-request-ms=0.1", "--batch=256"]
    engine = [sys.executable, "-m", "rollwave", "bench", "engine", "--json"]
    arms = {
        "rollwave in process": ours(options),
        "rollwave over HTTP": ours(options, f"--server={url}"),
        "rollwave batched": [*engine, *batched],
    }
    if options.verifiers:
        side = [str(install_verifiers(options.bench)), str(SIDE)]
        size = [*_size(options), f"--url={url}"]
        arms |= {
            "verifiers in process": [*side, "inprocess", *size],
            "verifiers over HTTP, tuned": [*side, "tuned", *size],
        }
        if options.stock:
            arms["verifiers over HTTP, as shipped"] = [*side, "stock", *size]
    return arms


def compare(results: dict[str, list[Figures]]) -> list[Bar]:
    """The rows: our own bars, and the ratios of turns per second, repeat by repeat."""

    def spread(arm: str, key: str) -> Spread:
        return Spread.of([figures[key] for figures in results[arm]])

    def ratio(arm: str, other: str, key: str = "turns_per_second") -> Spread:
        pairs = zip(results[arm], results[other], strict=True)
        return Spread.of([a[key] / b[key] for a, b in pairs])

    cpu = "cpu_microseconds_per_turn"
    bars = [
        Bar(name="engine CPU a turn, µs", value=spread("rollwave in process", cpu), at_most=60),
        Bar(
            name="1,000 sessions × 10 turns, batch cap 256: share of the ideal",
            value=spread("rollwave batched", "efficiency"),
            at_least=0.9,
        ),
    ]
    tuned, bare = "verifiers over HTTP, tuned", "verifiers in process"
    if tuned in results:
        bars += [
            Bar(
                name="in process, × verifiers tuned",
                value=ratio("rollwave in process", tuned),
                at_least=40,
            ),
            Bar(
                name="over HTTP, × verifiers tuned",
                value=ratio("rollwave over HTTP", tuned),
                at_least=5,
            ),
            Bar(
                name="in process, × verifiers without HTTP",
                value=ratio("rollwave in process", bare),
            ),
            # Other work on the machine stretches seconds, but hardly the CPU of a turn.
            Bar(
                name="over HTTP, CPU a turn: verifiers tuned / rollwave",
                value=ratio(tuned, "rollwave over HTTP", cpu),
            ),
        ]
    return bars


def main() -> None:
    """Measure, print the tables, write one JSON file."""
    parser = argparse.ArgumentParser(description="Engine throughput beside verifiers.")
    parser.add_argument("--sessions", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-verifiers", dest="verifiers", action="store_false")
    parser.add_argument("--stock", action="store_true", help="also verifiers without tuning; slow")
    parser.add_argument("--bench", type=Path, default=Path(".bench/verifiers"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/throughput.json"))
    options = parser.parse_args()
    results: dict[str, list[Figures]] = {}
    with stub_server(options.latency_ms) as url:
        arms = commands(options, url)
        for repeat in range(options.repeats):
            for name, command in arms.items():
                print(f"repeat {repeat + 1} of {options.repeats}: {name}", file=sys.stderr)
                results.setdefault(name, []).append(measure(command))
    bars = compare(results)
    output = Output()
    columns = ("turns_per_second", "cpu_microseconds_per_turn", "seconds")
    output.table(
        ["median (least to most)", "turns/s", "CPU µs/turn", "seconds"],
        [
            [name, *(str(Spread.of([f[key] for f in figures])) for key in columns)]
            for name, figures in results.items()
        ],
        title=f"{options.sessions} sessions × {options.turns} turns, {options.latency_ms:g} ms",
    )
    output.table(
        ["bar", "must be", "is", ""],
        [[bar.name, bar.bar, str(bar.value), bar.verdict] for bar in bars],
    )
    figures = {
        "settings": {"sessions": options.sessions, "turns": options.turns},
        "latency_ms": options.latency_ms,
        "arms": results,
        "bars": [asdict(bar) | {"verdict": bar.verdict} for bar in bars],
    }
    write(options.out, figures)
    output.text(f"written to {options.out}")


if __name__ == "__main__":
    main()

"""How long `import rollwave` and `rollwave --help` take, and what they load.

    python -m rollwave.benchmarks.import_time [--runs 15] [--json FILE]

Each import runs in a fresh interpreter; the time of an interpreter that imports
nothing is measured beside it and subtracted. The bar is 0.3 s for the median.

Not here: the proof that nothing heavy is loaded (`tests/test_import.py`).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from ..cli.machine import describe, this_machine
from ..cli.output import Output, to_json

BAR_SECONDS: Final = 0.3

CASES: Final = {
    "import rollwave": "import rollwave",
    "rollwave --help": "from rollwave.cli.main import main; main(['--help'])",
}


def seconds(code: str) -> float:
    """Run code in a fresh interpreter and return the wall-clock seconds of the process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def modules(code: str) -> int:
    """Count the modules that code loads beyond those of a bare interpreter."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(len(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Measure each case, interleaved with the bare interpreter so that noise hits both."""
    bare: list[float] = []
    raw: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(runs):
        bare.append(seconds("pass"))
        for name, code in CASES.items():
            raw[name].append(seconds(code))
    floor = statistics.median(bare)
    return {
        name: {
            "median_seconds": statistics.median(times) - floor,
            "worst_seconds": max(times) - floor,
            "modules": float(modules(CASES[name])),
        }
        for name, times in raw.items()
    }


def main(
    runs: Annotated[int, typer.Option(min=1, help="Fresh interpreters for each case.")] = 15,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(
        "runs/bench/import_time.json"
    ),
) -> None:
    """Print the table, write the figures, and fail if `import rollwave` misses the bar."""
    output = Output()
    machine = this_machine()
    found = measure(runs)
    output.table(
        ("what", "median s", "worst s", "modules", "bar s"),
        [
            (
                name,
                round(figures["median_seconds"], 4),
                round(figures["worst_seconds"], 4),
                int(figures["modules"]),
                BAR_SECONDS,
            )
            for name, figures in found.items()
        ],
        title=f"import time on {describe(machine)}",
    )
    json.parent.mkdir(parents=True, exist_ok=True)
    json.write_text(to_json({"machine": machine, "runs": runs, "cases": found}) + "\n")
    output.text(f"written to {json}")
    if found["import rollwave"]["median_seconds"] > BAR_SECONDS:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

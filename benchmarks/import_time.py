"""How long `import rollwave` and `rollwave --help` take, and how much they load.

    python -m rollwave.benchmarks.import_time

Each import runs in a fresh interpreter; the time of an interpreter that imports
nothing is measured beside it and subtracted. `import rollwave` has a bar: 0.3 s.

Not here: the proof that nothing heavy is loaded (`tests/test_import.py`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ..cli.output import Output
from .report import Spread, write

BAR_SECONDS: Final = 0.3

CASES: Final = {
    "import rollwave": "import rollwave",
    "rollwave.open_engine": "import rollwave; rollwave.open_engine",
    "rollwave --help": "from rollwave.cli.main import main; main(['--help'])",
}


def seconds(code: str) -> float:
    """Run code in a fresh interpreter and return the wall-clock seconds of the process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def modules(code: str) -> int:
    """Count the modules that code loads beyond those of a bare interpreter."""
    script = (
        f"import sys\nbare = set(sys.modules)\n{code}\nprint('\\n', len(set(sys.modules) - bare))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measure(repeats: int) -> dict[str, Spread]:
    """Measure each case, beside a bare interpreter, so that a busy moment hits both."""
    values: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repeats):
        for name, code in CASES.items():
            bare = min(seconds("pass"), seconds("pass"))
            values[name].append(max(0.0, seconds(code) - bare))
    return {name: Spread.of(times) for name, times in values.items()}


def main() -> int:
    """Print the table, write one JSON file; 1 if `import rollwave` misses its bar."""
    parser = argparse.ArgumentParser(description="Import times.")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/import_time.json"))
    options = parser.parse_args()
    spreads = measure(options.repeats)
    loaded = {name: modules(code) for name, code in CASES.items()}
    met = spreads["import rollwave"].median < BAR_SECONDS
    output = Output()
    output.table(
        ["seconds, median (least to most)", "", "modules"],
        [[name, str(spread), loaded[name]] for name, spread in spreads.items()],
    )
    output.text(f"bar: import rollwave under {BAR_SECONDS:g} s: {'met' if met else 'MISSED'}")
    figures = {name: asdict(spread) | {"modules": loaded[name]} for name, spread in spreads.items()}
    write(options.out, {"seconds": figures, "bar_seconds": BAR_SECONDS, "met": met})
    output.text(f"written to {options.out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

"""`import rollwave` is light: nothing heavy is loaded, measured by what is loaded.

Seconds depend on the machine; `benchmarks/import_time.py` prints them.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from rollwave.cli.main import COMMANDS

HEAVY = (
    "accelerate",
    "hypothesis",
    "matplotlib",
    "numpy",
    "peft",
    "pyarrow",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
    "vllm",
)


def loaded_by(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the top-level modules it loaded."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_import_loads_nothing_heavy() -> None:
    assert loaded_by("import rollwave").isdisjoint(HEAVY)


def test_the_measure_itself_sees_what_is_loaded() -> None:
    assert "rich" in loaded_by("import rollwave, rich")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    loaded = loaded_by(f"from rollwave.cli.main import main\nmain({words!r})")
    assert loaded.isdisjoint({*HEAVY} - {"rich", "typer"})

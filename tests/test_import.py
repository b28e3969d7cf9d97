"""`import rollwave` is light: nothing heavy is loaded, measured by what is loaded.

Seconds depend on the machine; `benchmarks/import_time.py` prints them.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import rollwave
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


def type_checkers_view() -> dict[str, str]:
    """Read the names that `__init__.py` imports for type checkers, with their modules."""
    tree = ast.parse(Path(rollwave.__file__).read_text(encoding="utf-8"))
    return {
        alias.name: node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }


@pytest.mark.parametrize("name", rollwave.__all__)
def test_a_public_name_is_what_type_checkers_take_it_for(name: str) -> None:
    home = import_module(f"rollwave.{type_checkers_view()[name]}")
    assert getattr(rollwave, name) is getattr(home, name)


def test_the_public_face_is_sorted_complete_and_listed() -> None:
    assert set(rollwave.__all__) == set(type_checkers_view())
    assert list(rollwave.__all__) == sorted(rollwave.__all__)
    assert set(rollwave.__all__) <= set(dir(rollwave))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        rollwave.Sesion  # type: ignore[attr-defined]  # noqa: B018

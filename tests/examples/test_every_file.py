"""Every campaign in examples/ can be read, and each of the ladder's is run in small somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollwave.actors.config import load_config
from rollwave.benchmarks.ladder import NAMES
from rollwave.envs.registry import resolve

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(FOLDER.glob("*.toml"))
ELSEWHERE = {"demo", "smollm2"}
"""Run by `make demo` and `make smollm2`."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_can_be_read_and_says_how_to_run_it(file: Path) -> None:
    config = load_config(file)
    assert config.run.out == f"runs/{file.stem}"
    assert resolve(config.environment.id).id
    opening = file.read_text().partition("\n[")[0]
    assert opening.startswith("# ")
    commands = (f"rollwave evolve examples/{file.stem}.toml", f"make {file.stem}")
    assert any(f"#   {command}\n" in opening for command in commands)


def test_the_ladder_has_every_file_of_an_algorithm() -> None:
    assert {file.stem for file in FILES} == set(NAMES) | ELSEWHERE


@pytest.mark.parametrize("name", NAMES)
def test_each_is_run_in_small(name: str) -> None:
    tests = [
        Path(__file__).with_name(f"test_{kind}_files.py") for kind in ("preference", "gradient")
    ]
    assert any(f'    "{name}": ' in test.read_text() for test in tests)

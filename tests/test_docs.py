"""The documents keep up with the code: links lead somewhere, trees and commands are complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from rollwave.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [
        link for link in links if "://" not in link and not (page.parent / link).resolve().exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    """`engine/store.py` in backticks is a promise that the file is there."""
    folders = r"(?:engine|envs|learners|actors|cli|benchmarks|tests|examples|docs)"
    names = re.findall(
        rf"`({folders}/[\w/.-]+\.(?:py|toml|md|json))(?:::\w+)?`", page.read_text(encoding="utf-8")
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_tests_exist(page: Path) -> None:
    """`tests/engine/test_ref.py::test_x` names a test that is really there."""
    text = page.read_text(encoding="utf-8")
    missing = []
    for file, test in re.findall(r"`?(tests/[\w/]+\.py)::(\w+)", text):
        path = ROOT / file
        if not path.exists() or not re.search(rf"\b{test}\b", path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_the_tree_in_the_readme_names_every_folder() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [name.split(".")[-1] for name in project["tool"]["setuptools"]["packages"][1:]]
    missing = [
        name
        for name in [*packages, "tests", "docs", "examples"]
        if not re.search(rf"^\s*{name}/ ", tree, flags=re.MULTILINE)
    ]
    assert missing == []


def test_the_readme_shows_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"rollwave {name}" not in readme] == []


def test_the_makefile_has_what_the_documents_promise() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    promised = {
        target for page in PAGES for target in re.findall(r"make ([a-z][a-z-]+)\b", _code(page))
    }
    assert {"demo", "test", "setup", "lint"} <= promised
    assert {t for t in promised if not re.search(rf"^{t}:", makefile, flags=re.MULTILINE)} == set()


def test_what_is_run_with_m_runs() -> None:
    """`python -m rollwave.benchmarks.x` and the Makefile's list name modules that do something."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^BENCHMARKS \?= (.*)$", makefile, flags=re.MULTILINE)[0].split())
    sources = [*PAGES, *(ROOT / "benchmarks").glob("*.py")]
    for path in sources:
        named |= set(re.findall(r"-m rollwave\.benchmarks\.(\w+)", path.read_text("utf-8")))
    assert len(named) > 3
    files = {name: ROOT / f"benchmarks/{name}.py" for name in named}
    for name, path in files.items():
        if path.with_suffix("").is_dir():
            files[name] = path.with_suffix("") / "__main__.py"
    idle = [n for n, p in files.items() if '__name__ == "__main__"' not in p.read_text("utf-8")]
    assert idle == []


def _code(page: Path) -> str:
    """Give only what stands in code: prose may make sense of the word, too."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text("utf-8"), flags=re.DOTALL))

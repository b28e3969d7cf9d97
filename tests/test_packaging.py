"""The wheel: it builds, holds what it should, and imports away from this folder."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import rollwave

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that no build folder is left here."""
    source = tmp_path_factory.mktemp("source") / "any-name"
    source.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the package")
    for name in tracked.stdout.splitlines():
        if name.startswith(("tests/", "docs/")) or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(out), str(source)],
        check=True,
        timeout=200,
    )
    (built,) = out.glob("rollwave-*.whl")
    return built


def test_everything_lies_under_one_name(wheel: Path) -> None:
    """No bare `engine` or `envs` is ever put into a user's site-packages."""
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"rollwave", f"rollwave-{rollwave.__version__}.dist-info"}


def test_no_tests_and_no_caches_are_shipped(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if re.search(r"/(tests|\.venv|runs|__pycache__)/", n)]
    assert "rollwave/py.typed" in names


def test_data_files_are_shipped(wheel: Path) -> None:
    """Every data file beside the code of an environment is in the wheel."""
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {
        f"rollwave/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "envs").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert data <= names, sorted(data - names)


def test_it_imports_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import json, pkgutil, sys\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import rollwave, rollwave.engine.codec, rollwave.envs.registry, rollwave.cli.main\n"
        "print(json.dumps([rollwave.__file__, rollwave.__version__,\n"
        "    [m.name for m in pkgutil.iter_modules(rollwave.__path__)]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    file, version, modules = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert version == rollwave.__version__
    assert {"engine", "envs", "learners", "actors", "cli", "benchmarks"} <= set(modules)


def test_the_version_is_said_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == rollwave.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{rollwave.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_the_core_is_light() -> None:
    """What only learners, vLLM, figures or tests need is an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {re.split(r"[\[>=<~! ]", need)[0] for need in project["dependencies"]}
    assert core <= {
        "h11",
        "httpx",
        "msgpack",
        "msgspec",
        "outcome",
        "pyarrow",
        "rich",
        "trio",
        "typer",
    }


def test_every_import_is_a_declared_dependency() -> None:
    """What comes along by chance today may be gone with somebody else's next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    needs = [*project["dependencies"], *(need for extra in extras for need in extra)]
    declared = {re.split(r"[\[>=<~! ]", need)[0].replace("-", "_") for need in needs}
    packages = {"engine", "envs", "learners", "actors", "cli", "benchmarks", "examples"}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported(node)
        if name not in {*sys.stdlib_module_names, *declared, "rollwave"}
    }
    assert undeclared == set()


def _imported(node: ast.AST) -> list[str]:
    """Give the top-level names of an absolute import statement."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [node.module.partition(".")[0]]
    return []

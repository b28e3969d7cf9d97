"""The import law, read from the source: who may know whom, and what must load lazily.

Nothing is imported here; every rule is checked on the syntax trees, so that a
breach is named by file and line even where the module could not be loaded.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "envs", "learners", "actors", "cli", "benchmarks")
MODULES = sorted(
    [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    + [ROOT / "__init__.py", ROOT / "__main__.py"]
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))

MAY_IMPORT = {
    "engine": {"engine"},
    "envs": {"engine", "envs"},
    "learners": {"engine", "learners"},
    "actors": {"engine", "envs", "learners", "actors"},
    "cli": set(PACKAGES),  # `rollwave bench` is the benchmark of the engine
    "benchmarks": set(PACKAGES),
    # The public face and `python -m rollwave`.
    "__init__": {"engine", "envs", "learners", "actors"},
    "__main__": {"cli"},
}

HEAVY = {
    "accelerate",
    "datasets",
    "fastapi",
    "gguf",
    "hypercorn",
    "hypothesis",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "pytest",
    "ray",
    "safetensors",
    "starlette",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "wandb",
}
"""Optional, or slow to import."""

ALLOWED_AT_TOP = {
    "engine/testing.py": {"hypothesis"},
    # The laws are a package that only those who test environments import.
    "envs/laws/__init__.py": {"hypothesis"},
    "envs/laws/machine.py": {"hypothesis"},
    "envs/laws/scripts.py": {"hypothesis"},
    "envs/laws/search.py": {"hypothesis"},
    "actors/simulation/strategies.py": {"hypothesis"},
    "cli/figures.py": {"matplotlib"},
    "cli/simulation_figure.py": {"matplotlib"},
    "benchmarks/recovery_figure.py": {"matplotlib"},
    "benchmarks/soak_figure.py": {"matplotlib"},
    "actors/backends/vllm.py": {"vllm", "torch"},
    "actors/backends/vllm_worker.py": {"vllm", "torch", "safetensors"},
    "actors/backends/transformers.py": {"torch", "transformers"},
}
"""Files that are themselves loaded lazily, and what they may import at their top."""

LEARNERS_WITHOUT_TORCH = {"learners/__init__.py", "learners/base.py", "learners/model/chat.py"}

TORCH = {"torch", "transformers", "peft", "safetensors", "accelerate", "numpy", "tokenizers"}

VLLM_FILES = {"actors/backends/vllm.py", "actors/backends/vllm_worker.py"}


class Import(NamedTuple):
    """One imported module: relative ones with the package they start from."""

    line: int
    level: int
    name: str
    """Dotted; for `from . import x` it is x."""
    lazy: bool
    """Inside a function, or under TYPE_CHECKING."""


def name_of(path: Path) -> str:
    """Give a file's name relative to the repository, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[Import]:
    """List every import statement of a file."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, 0, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                found.append(Import(node.lineno, node.level, node.module, lazy))
            else:
                found.extend(
                    Import(node.lineno, node.level, alias.name, lazy) for alias in node.names
                )
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, inside or guarded)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def package_of(path: Path) -> str:
    """Give the top-level package of a file; a root file is its own."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def target_of(path: Path, imported: Import) -> str | None:
    """Give the top-level package of ours that an import reaches, if any."""
    if imported.level:
        folder = path.relative_to(ROOT).parts[:-1]
        base = folder[: len(folder) - (imported.level - 1)]
        return (*base, *imported.name.split("."))[0]
    if imported.name.startswith("rollwave."):
        return imported.name.split(".")[1]
    return None


def breaches() -> Iterator[str]:
    """Find every import that the law forbids."""
    for path in MODULES:
        allowed = MAY_IMPORT[package_of(path)]
        for imported in imports(path):
            target = target_of(path, imported)
            if target in PACKAGES and target not in allowed:
                yield f"{name_of(path)}:{imported.line} imports {target}"


def test_import_law() -> None:
    assert list(breaches()) == []


def test_import_law_can_fail(tmp_path: Path) -> None:
    # The checker itself: an absolute, a relative and a lazy import are all seen.
    file = tmp_path / "sample.py"
    file.write_text(
        "import torch\nfrom ..envs import base\nfrom . import codec\n"
        "def f():\n    import vllm\n    from ...actors.session import Session\n"
    )
    seen = imports(file)
    assert [(i.name, i.level, i.lazy) for i in seen] == [
        ("torch", 0, False),
        ("envs", 2, False),
        ("codec", 1, False),
        ("vllm", 0, True),
        ("actors.session", 3, True),
    ]
    assert target_of(ROOT / "engine" / "x.py", seen[1]) == "envs"
    assert target_of(ROOT / "engine" / "x.py", seen[2]) == "engine"
    assert target_of(ROOT / "envs" / "maze" / "x.py", seen[4]) == "actors"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_package_code_imports_itself_relatively(path: Path) -> None:
    """A bare `import engine` works in this folder and nowhere else; `rollwave.` could be
    another installed copy."""
    absolute = [
        f"line {i.line}: {i.name}"
        for i in imports(path)
        if i.level == 0 and i.name.split(".")[0] in {*PACKAGES, "rollwave", "tests"}
    ]
    assert absolute == []


@pytest.mark.parametrize("path", [*TESTS, *EXAMPLES], ids=name_of)
def test_tests_and_examples_import_the_installed_name(path: Path) -> None:
    bare = [
        f"line {i.line}: {i.name}"
        for i in imports(path)
        if i.level or i.name.split(".")[0] in {*PACKAGES, "tests"}
    ]
    assert bare == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_modules_load_lazily(path: Path) -> None:
    name = name_of(path)
    allowed = ALLOWED_AT_TOP.get(name, set())
    if name.startswith("learners/") and name not in LEARNERS_WITHOUT_TORCH:
        allowed = allowed | TORCH
    heavy = [
        f"line {i.line}: {i.name}"
        for i in imports(path)
        if not i.lazy and i.level == 0 and i.name.split(".")[0] in HEAVY - allowed
    ]
    assert heavy == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_and_vllm_stay_where_they_belong(path: Path) -> None:
    """vLLM in its one backend; torch in learners and in the backends that need it."""
    name = name_of(path)
    forbidden = set()
    if name not in VLLM_FILES and not name.startswith("benchmarks/"):
        forbidden |= {"vllm"}
    if not name.startswith(("learners/", "actors/backends/", "benchmarks/")):
        forbidden |= {"torch", "transformers", "peft"}
    found = [
        f"line {i.line}: {i.name}"
        for i in imports(path)
        if i.level == 0 and i.name.split(".")[0] in forbidden
    ]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].rstrip().endswith((".", ":", ","))


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=name_of)
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length <= 500


def test_no_dumping_grounds() -> None:
    vague = {"utils", "util", "helpers", "common", "misc", "tools"}
    assert [name_of(path) for path in MODULES if path.stem in vague] == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if package_of(p) not in {"cli", "benchmarks"}], ids=name_of
)
def test_the_library_never_prints_and_never_evaluates(path: Path) -> None:
    forbidden = {"print", "eval", "exec", "input", "breakpoint"}
    calls = [
        f"line {node.lineno}: {node.func.id}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in forbidden
    ]
    assert calls == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_global_generator_is_never_touched(path: Path) -> None:
    """Seeds form a tree: only private generators, made from a derived seed."""
    if not any(i.name == "random" and i.level == 0 for i in imports(path)):
        return  # a local variable may well be called random
    touched = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr not in {"Random", "getstate", "setstate"}  # saved for the host, restored
    ]
    assert touched == []


def test_packages_list_equals_the_folders() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(("rollwave", *path.parent.relative_to(ROOT).parts))
        for path in MODULES
        if path.name == "__init__.py"
    }
    assert set(listed) == folders
    assert len(listed) == len(set(listed))


def test_every_folder_with_code_is_a_package() -> None:
    bare = {name_of(path.parent) for path in MODULES if not (path.parent / "__init__.py").exists()}
    assert bare == set()


def test_the_drawing_of_errors_is_complete() -> None:
    """The tree at the top of engine/errors.py names every class, below its base."""
    source = (ROOT / "engine" / "errors.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    bases = {
        node.name: ast.unparse(node.bases[0])
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.endswith("Kind")
    }
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (ast.get_docstring(tree) or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)([A-Z]\w+)(?:\s|$)", line)
        if match:
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            drawn[match[2]] = above[depth - 1] if depth else "Exception"
    assert drawn == bases


def test_nothing_names_a_place_outside_the_repository() -> None:
    """Hosts of package registries and paths of one machine have no place in the sources."""
    pattern = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|(?<![\w.~])/work/|/root/")
    texts = [
        *MODULES,
        *TESTS,
        *EXAMPLES,
        *(p for p in ROOT.glob("*") if p.suffix in {".md", ".toml"} or p.name == "Makefile"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    found = [
        f"{name_of(path)}: {line.strip()[:80]}"
        for path in texts
        if path != Path(__file__).resolve()
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert found == []

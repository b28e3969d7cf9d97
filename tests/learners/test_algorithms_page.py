"""docs/algorithms.md keeps its promise: each formula has a function, and a test that knows it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "algorithms.md").read_text("utf-8")
TESTS = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}

ALGORITHMS = (
    "learners/cloning/behaviour_cloning.py",
    "learners/cloning/agent_evol.py",
    "learners/cloning/rejection.py",
    "learners/preferences/dpo.py",
    "learners/preferences/eto.py",
    "learners/gradients/grpo.py",
    "learners/gradients/ppo.py",
    "learners/curriculum.py",
    "actors/best_of.py",
)
FORMULAS = (
    "learners/preferences/losses.py",
    "learners/preferences/pairs.py",
    "learners/gradients/advantages.py",
    "learners/gradients/losses.py",
    "learners/gradients/importance.py",
    "learners/gradients/kl.py",
    "learners/gradients/placement.py",
)


class Row(NamedTuple):
    """A formula, what computes it, and the files that test it."""

    formula: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]
    source: str


def rows() -> list[Row]:
    table = PAGE.partition("## Formulas")[2].partition("\n## ")[0]
    found: list[Row] = []
    for line in [line for line in table.splitlines() if line.startswith("| ")][1:]:
        formula, functions, tests, source = (cell.strip() for cell in line.strip("| ").split(" | "))
        named = tuple(re.findall(r"`(test_\w+\.py)`", tests))
        if tests.startswith("the same"):
            named = (*found[-1].tests, *named)
        found.append(Row(formula, tuple(re.findall(r"`([\w.]+)`", functions)), named, source))
    return found


ROWS = rows()


def resolved(functions: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The objects of a row. A name without a dot is in the module of the one before it."""
    found: list[tuple[str, Any]] = []
    module = ""
    for name in functions:
        full = name if "." in name or not module else f"{module}.{name}"
        parts = full.split(".")
        for cut in range(len(parts), 0, -1):
            path = "/".join(parts[:cut])
            here = next((p for p in ("learners", ".") if (ROOT / p / f"{path}.py").exists()), "")
            if here:
                break
        else:
            raise AssertionError(f"{full}: there is no such module")
        module = ".".join(parts[:cut])
        inside = ".".join(("rollwave", *(("learners",) if here == "learners" else ()), module))
        thing: Any = importlib.import_module(inside)
        for part in parts[cut:]:
            thing = getattr(thing, part)
        found.append((parts[-1], thing))
    return found


def test_no_row_lacks_a_column() -> None:
    assert len(ROWS) > 25
    assert [row for row in ROWS if not all(row)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.functions[0])
def test_each_formula_has_its_function_and_a_test_that_knows_it(row: Row) -> None:
    pytest.importorskip("torch", reason="most of the functions are torch's")
    texts = {name: TESTS[name].read_text("utf-8") for name in row.tests}
    for name, thing in resolved(row.functions):
        assert callable(thing) or inspect.ismodule(thing)
        if callable(thing):
            assert inspect.getdoc(thing), name
    names = {part for function in row.functions for part in function.split(".")[-2:]}
    knows = [
        f for f, text in texts.items() if any(name in f or _said(name, text) for name in names)
    ]
    assert knows, f"none of {row.tests} says {names}"


def _said(name: str, text: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


@pytest.mark.parametrize("file", [*ALGORITHMS, *FORMULAS])
def test_each_file_opens_with_its_source_and_what_it_simplifies(file: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / file).read_text("utf-8"))) or ""
    assert re.search(r"\bSources?:", said) or re.search(r"arXiv \d{4}\.\d{5}", said)
    if file in ALGORITHMS:
        assert re.search(r"\bSimplified:", said)


def test_every_algorithm_is_on_the_page() -> None:
    """Whatever has an `evolve` of its own."""
    modules = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "learners").rglob("*.py"))
        if re.search(r"^def evolve\(", path.read_text("utf-8"), flags=re.MULTILINE)
        and path.name != "algorithms.py"
    ]
    assert set(modules) <= set(ALGORITHMS)
    wanted = [file.removeprefix("learners/").removesuffix(".py") for file in modules]
    assert [name for name in wanted if f"`{name.replace('/', '.')}" not in PAGE] == []

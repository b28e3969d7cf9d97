"""`rollwave.X`: every public name is there, loads late, and is what its module calls so."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import rollwave

SOURCE = Path(rollwave.__file__)
ROOT = SOURCE.resolve().parent


def typed_names() -> dict[str, str]:
    """Give what a type checker sees: public name → module, from the guarded imports."""
    guard = next(
        node
        for node in ast.parse(SOURCE.read_text("utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name: f"rollwave.{node.module}"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def run(code: str) -> str:
    """Run code in a fresh interpreter and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_the_list_is_what_type_checkers_see() -> None:
    assert set(rollwave.__all__) == set(typed_names())


def test_the_list_is_sorted_and_without_repetition() -> None:
    assert rollwave.__all__ == sorted(set(rollwave.__all__))


@pytest.mark.parametrize("name", rollwave.__all__)
def test_each_name_is_the_object_of_its_module(name: str) -> None:
    assert getattr(rollwave, name) is getattr(import_module(typed_names()[name]), name)


@pytest.mark.parametrize("name", rollwave.__all__)
def test_each_name_has_a_docstring_that_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(rollwave, name))


def test_a_star_import_brings_the_list_and_no_more() -> None:
    brought: dict[str, object] = {}
    exec("from rollwave import *", brought)
    assert set(brought) - {"__builtins__"} == set(rollwave.__all__)


def test_completion_lists_the_names_before_they_are_loaded() -> None:
    code = "import rollwave; print(*(set(rollwave.__all__) - set(dir(rollwave))))"
    assert run(code).split() == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'rollwave' has no attribute 'open_motor'"):
        _ = rollwave.open_motor  # type: ignore[attr-defined]


def test_importing_alone_loads_none_of_our_modules_and_no_dependency() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport rollwave\n"
        "print(*{n for n in set(sys.modules) - before if n.startswith(('rollwave.', 'trio'))})"
    )
    assert run(code).split() == []


def test_opening_an_engine_for_experts_loads_no_model_library() -> None:
    code = (
        "import sys, trio, rollwave\n"
        "async def main():\n"
        "    async with rollwave.open_engine() as engine:\n"
        "        tasks = engine.tasks('textcraft-v1', 'test', limit=2)\n"
        "        return [t.outcome async for t in engine.rollout(tasks)]\n"
        "assert trio.run(main) == [rollwave.Outcome.SUCCESS] * 2\n"
        "print(*{'torch', 'transformers', 'vllm', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    assert run(code).split() == []


def test_every_name_that_the_documents_use_is_public() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    used = set(re.findall(r"\brollwave\.([A-Za-z_]\w*)", text)) - packages
    assert used - set(rollwave.__all__) - {"__version__"} == set()

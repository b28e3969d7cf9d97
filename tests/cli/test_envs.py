"""`rollwave envs`, and the world of docs/environments.md copied out of the page and checked."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollwave.cli.envs import find
from rollwave.cli.main import main
from rollwave.engine.errors import ConfigError
from rollwave.envs import registry
from rollwave.envs.laws import LAWS, broken, check
from rollwave.envs.registry import BUILT_IN, resolve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "environments.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, a fresh registry, and no module left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_REGISTRY", registry.Registry())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """Exit code, the JSON of the last line if there is any, and standard error."""
    code = main(["envs", *words])
    out, err = capsys.readouterr()
    last = out.strip().splitlines()[-1:]
    return code, json.loads(last[0]) if last and last[0].startswith("{") else out, err


def save(desk: Path, source: str, name: str = "numbers_env") -> None:
    (desk / f"{name}.py").write_text(source, encoding="utf-8")
    importlib.invalidate_caches()


def page_block(language: str, marker: str) -> str:
    return next(text for kind, text in BLOCKS if kind == language and marker in text)


WORLD = page_block("python", "class Guess")
MENDED = WORLD.replace(
    "        guess = int(action)\n", page_block("python", "if action in self.available_actions()")
)


def test_list_shows_every_world(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = answer(capsys, "list", "--json")
    assert code == 0
    rows = {row["id"]: row for row in said["environments"]}
    assert set(rows) >= set(BUILT_IN)
    assert rows["maze-grid-v1"]["options"] == {
        "size": 5,
        "loops": 0.5,
        "style": "text",
        "turn_limit": 0,
    }
    assert rows["maze-v1"]["splits"] == {"train": 13, "dev": 3, "test": 5, "unseen": 5}
    code, said, _ = answer(capsys, "list")
    assert code == 0
    assert all(id in said for id in BUILT_IN)


def test_check_of_a_sound_world(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = answer(capsys, "check", "maze-grid?style=terse", "--examples", "10", "--json")
    assert code == 0
    assert (said["held"], said["skipped"], said["broken"]) == (13, 1, 0)
    (checked,) = said["checks"]
    assert checked["environment"] == "maze-grid-v1?style=terse"
    assert (checked["over"], checked["verdict"]) == ("in-process", "passed")
    assert {law["law"] for law in checked["laws"]} == set(LAWS)


def test_check_of_an_unknown_world(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(capsys, "check", "maze-gird")
    assert code == 2
    assert "did you mean maze-grid-v1?" in err


def test_the_world_of_the_page_is_short() -> None:
    assert len([line for line in WORLD.splitlines() if line.strip()]) <= 40


def test_the_table_of_laws_is_what_the_laws_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for result in check("maze-grid?style=terse", examples=1, over="worker"):
        assert f"| {result.law} | {result.text} |" in text
    for id in BUILT_IN:
        options = registry.Registry()._family(id).options
        shown = " ".join(f"{key}={value}" for key, value in options.items())
        row = next(line for line in text.splitlines() if line.startswith(f"| `{id}`"))
        assert shown in row


def test_check_leaves_nothing_behind(desk: Path) -> None:
    save(desk, MENDED)
    words = [sys.executable, "-m", "rollwave", "envs", "check", "numbers_env:FAMILY"]
    subprocess.run([*words, "--examples", "5"], check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert {path.name for path in desk.iterdir()} <= {"numbers_env.py", "__pycache__"}


@pytest.mark.parametrize(
    ("source", "name", "complaint"),
    [
        ("", "nowhere:X", "no module 'nowhere'"),
        ("import nothing_such", "mine:X", "no module 'nothing_such'"),
        ("", "mine:X", "module mine has no 'X'"),
        ("X = 3", "mine:X", "mine:X is a int"),
        (WORLD + "SPEC = build(id='guess-number-v1')", "mine:SPEC?a=1", "without options"),
        (WORLD, "mine:FAMILY?a=1", "it has none"),
    ],
)
def test_a_world_that_is_not_there_is_named(
    desk: Path, source: str, name: str, complaint: str
) -> None:
    save(desk, source, "mine")
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        find(name)


def test_a_spec_of_ones_own_is_checked_as_it_is(desk: Path) -> None:
    save(desk, MENDED + "\nSPEC = build(id='guess-number-v1')\n")
    assert not broken(check(find("numbers_env:SPEC"), examples=5))
    assert find("maze").id == resolve("maze").id

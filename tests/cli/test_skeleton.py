"""What `envs new` writes keeps every law, passes its own test, and can be played as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.cli.main import main
from rollwave.cli.skeleton import write
from rollwave.engine.errors import ConfigError


def rollwave(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rollwave", *words],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_new_world_is_checked_tested_and_played_by_copy_and_paste(tmp_path: Path) -> None:
    made = rollwave(tmp_path, "envs", "new", "up-and-up")
    assert made.returncode == 0, made.stderr
    check, rollout, test = [line.split() for line in made.stdout.splitlines()[1:4]]
    assert rollwave(tmp_path, *check[1:], "--examples", "20").returncode == 0
    played = rollwave(tmp_path, *rollout[1:], "--limit", "5", "--json")
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout.splitlines()[-1])["outcomes"]["success"] == 5
    assert test[:3] == ["python", "-m", "pytest"]
    tested = subprocess.run(
        [sys.executable, *test[1:], "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "3 passed" in tested.stdout


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_mine.py").write_text("kept")
    assert main(["envs", "new", "mine", "--out", str(tmp_path)]) == 2
    assert "test_mine.py is there already" in capsys.readouterr().err.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]


def test_another_directory_is_made_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "worlds"
    assert main(["envs", "new", "mine", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "mine:FAMILY"
    assert main(["envs", "new", "other", "--out", str(out)]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"cd {out} && rollwave envs check other:FAMILY" in said
    names = ["mine.py", "other.py", "test_mine.py", "test_other.py"]
    assert sorted(path.name for path in out.iterdir()) == names


@given(st.text(max_size=12))
def test_a_name_is_a_name_or_refused(name: str) -> None:
    """Nothing but lower-case words reaches a path."""
    if name.isascii() and name.replace("-", "a").isalnum() and name.islower():
        return
    with pytest.raises(ConfigError, match="a name is lower-case words"):
        write(name, Path("/nonexistent"))


@pytest.mark.parametrize("name", ["../etc", "a/b", "A", "a b", "my-world-v1", "-a", "a-", "1a", ""])
def test_these_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rollwave envs new my-world"):
        write(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_spec_alone_cannot_be_played(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "from dataclasses import replace\n"
        "from rollwave.envs.registry import resolve\n"
        "SPEC = replace(resolve('maze-v1'), id='other-v1')\n"
    )
    done = rollwave(tmp_path, "rollout", "--env", "one:SPEC", "--out", "runs/a")
    assert done.returncode == 2
    assert "is one spec, not a family" in done.stderr

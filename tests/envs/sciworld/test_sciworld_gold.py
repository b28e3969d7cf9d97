"""Solutions on disk: read back, or computed anew, and never anybody else's."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import encode
from rollwave.envs.sciworld import gold
from rollwave.envs.sciworld.gold import GoldPath

ACTIONS = ("open door to kitchen", "go to kitchen")


class Slow:
    """Counts what it is asked."""

    def __init__(self, version: str = "1.2.3") -> None:
        self.jvm = SimpleNamespace(version=version)
        self.asked: list[tuple[str, int, str]] = []

    def gold_path(self, *task: Any) -> tuple[str, ...]:
        self.asked.append(task)
        return ACTIONS


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def path(slow: Slow, task: str = "boil", variation: int = 0, easy: str = "easy") -> tuple[str, ...]:
    return gold.path(cast(Any, slow), task, variation, easy)


def files(cache: Path) -> list[Path]:
    return [file for file in cache.rglob("*") if file.is_file()]


def test_each_is_computed_once_and_belongs_to_us_alone(cache: Path) -> None:
    for _ in range(2):
        slow = Slow()
        for task in [("boil", 0, "easy"), ("boil", 0, ""), ("boil", 1, "easy"), ("melt", 0, "")]:
            assert path(slow, *task) == ACTIONS
    assert slow.asked == []
    assert len(files(cache)) == 4
    for file in [*files(cache), *(cache / "rollwave").rglob("*")]:
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    other = Slow("1.3.0")
    path(other)
    assert other.asked == [("boil", 0, "easy")]


@settings(max_examples=20, deadline=None)
@given(data=st.binary(max_size=40), cut=st.integers(0, 60))
def test_what_is_not_what_it_should_be_is_computed_anew(data: bytes, cut: int) -> None:
    path(Slow())
    (file,) = files(gold.folder())
    whole = file.read_bytes()
    for damaged in (data, whole[:cut], whole + data + b"\0"):
        file.write_bytes(damaged)
        slow = Slow()
        assert path(slow) == ACTIONS
        assert slow.asked == [("boil", 0, "easy")]
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "wrong",
    [
        GoldPath("1.2.3", "melt", 0, "easy", ("x",)),
        GoldPath("1.2.3", "boil", 1, "easy", ("x",)),
        GoldPath("1.2.3", "boil", 0, "", ("x",)),
        GoldPath("1.2.4", "boil", 0, "easy", ("x",)),
        GoldPath("1.2.3", "boil", 0, "easy", ()),
    ],
)
def test_another_tasks_solution_is_not_taken(cache: Path, wrong: GoldPath) -> None:
    path(Slow())
    (file,) = files(cache)
    file.write_bytes(encode(wrong))
    assert path(slow := Slow()) == ACTIONS
    assert len(slow.asked) == 1


def test_where_nothing_can_be_written_all_else_goes_on(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert path(slow := Slow()) == ACTIONS
        assert len(slow.asked) == 1


def test_a_file_is_written_whole_or_not_at_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(gold.os, "fsync", full)
    assert path(Slow()) == ACTIONS
    assert files(cache) == []


def test_without_xdg_it_is_under_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert gold.folder() == tmp_path / ".cache" / "rollwave" / "sciworld"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(gold.Path, "home", homeless)
    for _ in range(2):
        assert path(slow := Slow()) == ACTIONS
        assert len(slow.asked) == 1

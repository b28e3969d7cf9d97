"""Directories that appear whole or not at all, and one run at a time in each."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("safetensors", reason="it says in its own way that a disk is full")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import RunLocked, StorageFailed  # noqa: E402
from rollwave.learners.training import directories  # noqa: E402
from rollwave.learners.training.directories import (  # noqa: E402
    LOCK,
    atomic_directory,
    claimed,
    emptied,
    mend,
)


def write(target: Path, text: str, error: Exception | None = None) -> None:
    """Write a directory of two files; with an error, break off between them."""
    with atomic_directory(target) as draft:
        (draft / "a").write_text(text)
        if error is not None:
            raise error
        (draft / "b").write_text(text)


def content(target: Path) -> list[str]:
    return [(target / name).read_text() for name in ("a", "b")]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    write(tmp_path / "d", "old")
    with pytest.raises(RuntimeError, match="crash"):
        write(tmp_path / "d", "new", RuntimeError("crash"))
    assert content(tmp_path / "d") == ["old", "old"]
    assert names(tmp_path) == ["d"]
    write(tmp_path / "d", "new")
    assert content(tmp_path / "d") == ["new", "new"]
    assert names(tmp_path) == ["d"]


def test_what_lies_deeper_reaches_the_disk_too_before_what_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic and moments lie in folders: of those, only the folder was flushed."""
    flushed: list[str] = []
    real = directories._flush

    def recording(path: Path) -> None:
        flushed.append(str(path.relative_to(tmp_path)))
        real(path)

    monkeypatch.setattr(directories, "_flush", recording)
    with atomic_directory(tmp_path / "d") as draft:
        (draft / "in" / "deep").mkdir(parents=True)
        for name in ("a", "in/b", "in/deep/c"):
            (draft / name).write_text("x")
    files = {f".d.draft/{name}" for name in ("a", "in/b", "in/deep/c")}
    assert set(flushed[:3]) == files
    assert flushed[3:] == [".d.draft/in/deep", ".d.draft/in", ".d.draft", "."]


def test_a_full_disk_is_a_clear_error_and_the_old_directory_stays(tmp_path: Path) -> None:
    write(tmp_path / "d", "old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageFailed, match="free some space"):
        write(tmp_path / "d", "new", full)
    assert content(tmp_path / "d") == ["old", "old"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system's own refusal of anything longer, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_safetensors_says_of_the_disk_is_understood(tmp_path: Path) -> None:
    """It raises an error of its own, no `OSError`: that passed for a defect of ours."""
    from safetensors import SafetensorError
    from safetensors.numpy import np, save_file

    def save(values: object) -> None:
        with atomic_directory(tmp_path / "d") as draft:
            save_file({"x": values}, draft / "x.safetensors")

    save(np.zeros(10))
    with largest_file(4096), pytest.raises(StorageFailed, match=r"d: File too large; free some"):
        save(np.zeros(10_000))
    assert names(tmp_path / "d") == ["x.safetensors"]
    assert names(tmp_path) == ["d"]

    class Other(SafetensorError):
        """One that is not about the disk."""

    with pytest.raises(Other):
        write(tmp_path / "d", "new", Other("two tensors share memory"))


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def dies_at(operation: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the process die at its n-th operation on the disk: no clean-up does anything then."""
    done: list[str] = []

    def dying(name: str, real):
        def call(*args, **kwargs):
            if len(done) >= operation:
                raise Killed
            done.append(name)
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "write_text"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
        ):
            patch.setattr(owner, name, dying(name, getattr(owner, name)))
        real = shutil.rmtree
        patch.setattr(shutil, "rmtree", dying("rmtree", real))
        yield done


def test_whatever_moment_it_dies_at_the_directory_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for operation in range(100):
        folder = tmp_path / str(operation)
        write(folder / "d", "old")
        with dies_at(operation, monkeypatch) as done, suppress(Killed):
            write(folder / "d", "new")
        mend(folder / "d")
        assert names(folder) == ["d"]
        assert content(folder / "d") in (["old", "old"], ["new", "new"])
        outcomes.append((folder / "d" / "a").read_text())
        if len(done) < operation:
            break
    assert {"rename", "fsync", "rmtree"} <= set(done)
    # The new one is there from some moment on, for good.
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"old", "new"}


def test_what_is_in_a_claimed_directory_stays_until_it_is_emptied(tmp_path: Path) -> None:
    work = tmp_path / "models" / "m.training"
    with claimed(work) as path:
        assert path == work
        (work / "checkpoint").mkdir()
        (work / "note").write_text("")
    assert names(work) == ["checkpoint", LOCK, "note"]
    with claimed(work):
        emptied(work)
        assert names(work) == [LOCK]
    assert not work.exists()


def test_whatever_moment_it_dies_at_nobody_finds_half_of_what_was_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint without its state was once an error of the next run."""
    for operation in range(100):
        work = tmp_path / str(operation)
        for name in ("checkpoint", "step-2"):
            write(work / name, name)
        with dies_at(operation, monkeypatch) as done, suppress(Killed):
            emptied(work)
        left = [name for name in names(work) if not name.startswith(".")]
        assert left in (["checkpoint", "step-2"], ["step-2"], [])
        assert all(content(work / name) == [name, name] for name in left)
        emptied(work)
        assert names(work) == []
        if len(done) < operation:
            break
    assert "rmtree" in done


def test_only_one_run_works_in_a_directory_threads_included(tmp_path: Path) -> None:
    work = tmp_path / "m.training"
    held, leave = threading.Event(), threading.Event()

    def abandoned() -> None:
        with claimed(work):
            (work / "checkpoint").mkdir()
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=abandoned)
    thread.start()
    assert held.wait(60)
    with pytest.raises(RunLocked, match=r"m\.training is in use.*the same command again"):
        claimed(work).__enter__()
    assert names(work) == ["checkpoint", LOCK]  # the refused one touched nothing
    leave.set()
    thread.join()
    with claimed(work):
        pass


def test_a_claim_that_was_let_go_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locking a file that its holder has just removed would lock nothing."""
    work = tmp_path / "m.training"
    holder = claimed(work)
    holder.__enter__()
    real, waited = directories.fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not waited:
            waited.append(descriptor)
            holder.__exit__(None, None, None)  # it removes the lock and the directory
        real(descriptor, operation)

    monkeypatch.setattr(directories.fcntl, "flock", flock)
    with claimed(work):
        assert names(work) == [LOCK]
        with pytest.raises(RunLocked):
            claimed(work).__enter__()


def test_a_place_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    for block in (claimed, atomic_directory):
        with pytest.raises(StorageFailed, match="models/m"):
            block(tmp_path / "models" / "m").__enter__()

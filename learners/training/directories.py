"""Directories that appear whole or not at all, each written by one run at a time.

    models/policy-0003            what everybody reads
          /.policy-0003.draft     being written; renamed into place when it is whole
          /.policy-0003.old       what it takes the place of, between two renames
          /policy-0003.training   work in progress, with the lock of the run that holds it

Invariants: whatever dies, the name holds the old directory or the new one, or `mend`
puts the old one back; a disk that refuses is `StorageFailed` and costs nothing that was
there; two runs never work in one place, not even two threads of one process.

Not here: what is in the directories (`checkpoint`, `policy`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from ...engine.errors import RunLocked, StorageFailed, storage_error

LOCK: Final = "lock"
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def atomic_directory(out: str | Path) -> Iterator[Path]:
    """Give an empty directory that takes the place of `out` when the block ends well.

    Raises:
        StorageFailed: the disk refused; `out` is as it was.
    """
    target = Path(out)
    draft, old = _draft(target), _old(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mend(target)
        draft.mkdir()
    except OSError as error:
        raise storage_error(error, target) from error
    try:
        yield draft
        _flush_all(draft)
        if target.exists():
            target.rename(old)
        draft.rename(target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        refused = _disk_error(error, target)
        if refused is None:
            raise
        raise refused from error
    finally:
        with suppress(OSError):  # what cannot be removed now is mended by the next run
            mend(target)


def mend(out: str | Path) -> None:
    """Put right what a crash left: the old directory back in its place, drafts gone.

    Raises:
        OSError: the disk refused.
    """
    target = Path(out)
    draft, old = _draft(target), _old(target)
    if old.exists() and not target.exists():  # a crash between the two renames
        old.rename(target)
    for leftover in (draft, old):
        if leftover.exists():
            shutil.rmtree(leftover)


@contextmanager
def claimed(work: str | Path) -> Iterator[Path]:
    """Make a working directory and hold it; it goes at the end if nothing is left in it.

    The lock dies with the process. Within one it keeps a thread that was abandoned at
    its deadline apart from the run that goes on after it.

    Raises:
        RunLocked: another run, perhaps of this process, still works there.
        StorageFailed: the directory cannot be made.
    """
    path = Path(work)
    try:
        lock = _take_lock(path)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield path
    finally:
        with suppress(OSError):
            _remove_if_idle(path)
        os.close(lock)


def emptied(work: str | Path) -> None:
    """Remove everything in a claimed directory but the claim, in the order of names.

    A directory loses its name before its files: whatever dies, nobody finds half of it.

    Raises:
        OSError: the disk refused.
    """
    for entry in sorted(Path(work).iterdir()):
        if entry.is_dir():
            gone = entry.with_name(f".{entry.name.strip('.')}.gone")
            if entry != gone:
                entry.rename(gone)
            shutil.rmtree(gone)
        elif entry.name != LOCK:
            entry.unlink()


def _take_lock(path: Path) -> int:
    while True:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (path / LOCK).stat()):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise RunLocked(
                f"{path} is in use by an evolution step that has not ended (one that was given "
                "up ends after its optimiser step): wait for it, then run the same command again"
            ) from None
        except FileNotFoundError:
            pass
        os.close(lock)  # its holder removed it just now: take the new one


def _remove_if_idle(path: Path) -> None:
    """Remove a working directory in which nothing but the lock is left, while it is held."""
    if [entry.name for entry in path.iterdir()] == [LOCK]:
        (path / LOCK).unlink()
        path.rmdir()


def _disk_error(error: Exception, target: Path) -> StorageFailed | None:
    """Say what the disk refused. safetensors hides the system's error in its own text."""
    if isinstance(error, OSError):
        return storage_error(error, target)
    found = _OS_ERROR.search(str(error))
    if found is None:
        return None
    number = int(found[1])
    return storage_error(OSError(number, os.strerror(number)), target)


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.draft")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _flush_all(folder: Path) -> None:
    """Flush all that is below, then the folders that name it, the deepest first."""
    below = sorted(folder.rglob("*"), key=lambda path: (path.is_dir(), -len(path.parts)))
    for path in (*below, folder):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

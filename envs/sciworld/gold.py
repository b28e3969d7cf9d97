"""The package's own solutions: seconds each to compute, so each is computed once a machine.

Under `$XDG_CACHE_HOME/rollwave/sciworld/` (else `~/.cache/…`), a folder for each release and
a file for each task.

Invariants: a file is written whole or not at all, and only its owner may read or write it;
one that is not what it should be is computed anew; where nothing can be written, nothing
is kept and all else goes on.

Not here: who computes them (`machinery.Machinery.gold_path`), who plays them (`expert`).
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...engine.codec import Message, decoder, encode
from ...engine.errors import MessageError
from .machinery import Machinery

_LARGEST: Final = 1 << 20


class GoldPath(Message, frozen=True):
    """What a file holds."""

    version: str
    task: str
    variation: int
    simplification: str
    actions: tuple[str, ...]


def folder() -> Path:
    """Where they are kept.

    Raises:
        RuntimeError: nowhere: neither is set, and the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "rollwave" / "sciworld"


def path(machinery: Machinery, task: str, variation: int, simplification: str) -> tuple[str, ...]:
    """The actions, from the disk or from the simulator.

    Raises:
        ConfigError: there is no such task or variation.
        EnvironmentLost: the Java process died.
    """
    wanted = GoldPath(machinery.jvm.version, task, variation, simplification, ())
    try:
        file = _file(wanted)
    except RuntimeError:  # this user has no home
        return machinery.gold_path(task, variation, simplification)
    found = _read(file, wanted)
    if found is None:
        found = machinery.gold_path(task, variation, simplification)
        _write(file, encode(GoldPath(wanted.version, task, variation, simplification, found)))
    return found


def _file(wanted: GoldPath) -> Path:
    """Named by what is in it; the simplifications, which a user may spell, by their bytes."""
    simplification = wanted.simplification.encode().hex()
    name = f"{wanted.task}-{wanted.variation}-{simplification[:200] or 'none'}.gold"
    return folder() / f"scienceworld-{wanted.version}" / name


def _read(file: Path, wanted: GoldPath) -> tuple[str, ...] | None:
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid != os.getuid():
                return None
            found = decoder(GoldPath).decode(stream.read(_LARGEST))
    except (OSError, MessageError):
        return None
    same = (
        (found.version, found.task) == (wanted.version, wanted.task)
        and found.variation == wanted.variation
        and found.simplification == wanted.simplification
    )
    return found.actions if same and found.actions else None


def _write(file: Path, data: bytes) -> None:
    with suppress(OSError):
        missing = [parent for parent in file.parents if not parent.exists()]
        for parent in reversed(missing):  # `parents=True` would make them as others may write
            parent.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".gold-", dir=file.parent)  # readable to us alone
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

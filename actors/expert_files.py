"""The files that a campaign took its experts from, as they were then: `experts.json` in a run.

Invariant: a file whose content has changed is noticed; one that is gone is no difference,
since the sealed wave holds what was in it.

Not here: which trajectories of them are cloned (`imported`).
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from ..engine.disk import Disk
from ..engine.errors import BadDataFile, ConfigError, storage_error

RECORD: Final = "experts.json"
"""File in the run directory that says where its experts come from."""

_BLOCK: Final = 1 << 20


class Source(msgspec.Struct, frozen=True):
    """One file or directory, as it was when it was read."""

    path: str
    digest: str


class Record(msgspec.Struct, frozen=True):
    """What became of the files' trajectories."""

    sources: list[Source]
    read: int
    kept: int
    left_out: dict[str, int]
    """By reason."""
    assumed: dict[str, int]
    """Trajectories of which the files did not say this: `env`, `task`, `reward`."""


def write_record(out: Path, record: Record) -> None:
    """Leave in the run directory where its experts come from. Blocks.

    Raises:
        StorageFailed: the disk refused.
    """
    path = out / RECORD
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    try:
        Disk().replace(path, text + b"\n")
    except OSError as error:
        raise storage_error(error, path) from error


def read_record(out: Path) -> Record | None:
    """What a run says of where its experts come from; None if it says nothing."""
    try:
        return msgspec.json.decode((out / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def require_unchanged(out: Path) -> None:
    """Refuse to go on beside files that are no longer what the run read. Blocks.

    A file that is gone is no difference: the sealed wave holds what was in it.

    Raises:
        ConfigError: a file's content differs; the text names it.
    """
    record = read_record(out)
    for source in record.sources if record else ():
        path = Path(source.path)
        if path.exists() and digest(path) != source.digest:
            raise ConfigError(
                f"{path} has changed since {out} took its experts from it: the run keeps those it "
                "has; choose another --out directory to clone the new ones, or put the file back"
            )


def digest(path: Path) -> str:
    """Hash a file, or the files of a directory with their names (of a run, its sealed waves).

    Raises:
        BadDataFile: it cannot be read.
    """
    found = blake2b(digest_size=16)
    root = path / "waves" if (path / "run.json").exists() else path
    try:
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for each in files:
            found.update(f"{each.relative_to(root).as_posix()}\0{each.stat().st_size}\0".encode())
            with each.open("rb") as file:
                while block := file.read(_BLOCK):
                    found.update(block)
    except OSError as error:
        raise BadDataFile(f"cannot read {path}: {error.strerror or error}") from None
    return found.hexdigest()

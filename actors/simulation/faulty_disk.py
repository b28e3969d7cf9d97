"""A disk that is full, tears a write, fails at an fsync, or loses its power.

A power cut leaves of what no fsync covered: all of it, nothing, a part, or a file of the
right length with zeros in it; a rename that no fsync of its directory covered may be undone.

Invariant: what an fsync that returned covered is never touched.

Not here: what is killed with the power (`drill`), what a killed process leaves behind
(everything it had written: the operating system has it).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from ...engine.disk import Disk
from ...engine.seeds import generator
from .fault_plan import Strike

DISK_STRIKES: Final = ("disk.full", "disk.torn", "disk.fsync", "process.power")

_SECTOR: Final = 512


class PowerLost(BaseException):
    """Ends who was using the disk when the power was cut. Nobody may handle it."""


class FaultyDisk(Disk):
    """Another disk, with faults at some of its operations."""

    def __init__(
        self,
        inner: Disk,
        strikes: Sequence[Strike],
        struck: Callable[[str], None],
        crash: Callable[[str], bool],
        seed: int = 0,
    ) -> None:
        """`crash` ends the simulated process; False where that cannot die."""
        self._inner = inner
        self._struck = struck
        self._crash = crash
        self._seed = seed
        self._failing: dict[tuple[str, int], str] = {}
        for strike in strikes:
            if strike.kind == "process.power":
                continue
            counted = "sync" if strike.kind == "disk.fsync" else "write"
            for number in range(strike.at, strike.at + strike.lasts):
                self._failing[counted, number] = strike.kind
        self._cuts = {strike.at for strike in strikes if strike.kind == "process.power"}
        self._count = {"any": 0, "write": 0, "sync": 0}
        self._paths: dict[int, Path] = {}
        self._contents: dict[Path, bytes] = {}  # before the writes that no fsync covers
        self._entries: dict[Path, bytes | None] = {}  # before the renames that none covers

    def open(self, path: Path) -> int:
        if not path.exists():
            self._entries.setdefault(path, None)
        descriptor = self._inner.open(path)
        self._paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        kind = self._next("write", descriptor)
        if kind == "disk.full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if kind == "disk.torn":
            self._inner.write(descriptor, data[: len(data) // 2], offset)
            raise OSError(errno.EIO, "Input/output error")
        self._inner.write(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        if self._next("sync", descriptor):
            raise OSError(errno.EIO, "Input/output error")
        self._inner.sync(descriptor)
        self._contents.pop(self._paths[descriptor], None)

    def truncate(self, descriptor: int, length: int) -> None:
        self._operation(descriptor)
        self._inner.truncate(descriptor, length)

    def close(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)
        self._inner.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._operation()
        self._inner.sync_directory(path)
        for entry in [entry for entry in self._entries if entry.parent == path]:
            del self._entries[entry]

    def replace(self, path: Path, data: bytes) -> None:
        self._entries.setdefault(path, path.read_bytes() if path.exists() else None)
        super().replace(path, data)

    def _next(self, counted: str, descriptor: int) -> str:
        """Count a write or an fsync, and say what is wrong with it."""
        self._operation(descriptor)
        number = self._count[counted]
        self._count[counted] += 1
        kind = self._failing.get((counted, number), "")
        if kind:
            self._struck(kind)
        return kind

    def _operation(self, descriptor: int | None = None) -> None:
        """Count an operation; the power may be cut before it."""
        number = self._count["any"]
        self._count["any"] += 1
        if number in self._cuts:
            self._cut(generator(self._seed, "power", number))
        if descriptor is not None and (path := self._paths[descriptor]) not in self._contents:
            self._contents[path] = path.read_bytes()

    def _cut(self, chance: Random) -> None:
        """Lose what no fsync covers, and end the process."""
        before = {path: path.read_bytes() for path in self._contents if path.exists()}
        undone = [path for path in sorted(self._entries) if chance.random() < 0.5]
        entries = {path: path.read_bytes() for path in undone if path.exists()}

        def lose() -> None:
            for path in sorted(before):
                path.write_bytes(_left(self._contents[path], before[path], chance))
            for path in undone:
                old = self._entries[path]
                if old is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(old)

        lose()
        if not self._crash("process.power"):
            for path, data in (entries | before).items():  # there is nobody who could die
                path.write_bytes(data)
            return
        raise PowerLost


def _left(durable: bytes, written: bytes, chance: Random) -> bytes:
    """What a power cut leaves of a file."""
    if not written.startswith(durable):
        return chance.choice((durable, written))
    cut = chance.randint(len(durable), len(written))
    ways = [durable, written, written[:cut]]
    if len(written) - cut >= _SECTOR:
        ways.append(written[:cut] + bytes(len(written) - cut))
    return chance.choice(ways)

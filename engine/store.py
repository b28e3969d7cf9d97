"""One run directory: settings, lock, journal and sealed waves.

    run.json               format version, time of creation, settings
    lock                   held with flock by the one process that writes
    journal.msgpack        what happened since the last seal (`journal`)
    waves/wave-0000.parquet

A wave is a Parquet file (`wavefile`), written beside its name, made durable and
renamed: it exists whole or not at all. `models/` and `figures/` are left to others.

Invariants:

* a sealed wave never changes: sealing its number again is refused unless the
  content is the same;
* `read` returns what was sealed, or raises `WaveCorrupt`: the hash covers the
  number, the policy version and every byte of every trajectory's message;
* a directory that is not a run of ours is never written to.

Not here: what is worth storing (the campaign) and model checkpoints.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from .disk import Disk
from .errors import NotARun, RunLocked, StoreError, storage_error
from .trajectory import Trajectory, Wave
from .wavefile import FORMAT, check_format, describe, wave_bytes, wave_info
from .wavefile import WaveInfo as WaveInfo
from .wavefile import read_wave as read_wave
from .wavefile import scan_wave as scan_wave

_OWN: Final = frozenset({"lock", "run.json", ".run.json.tmp"})


class _Run(msgspec.Struct, frozen=True):
    """Content of run.json."""

    format: int
    created: str
    settings: dict[str, str]


class Store:
    """A run directory. Made by `open`; a context manager."""

    def __init__(self, path: Path, run: _Run, lock: int | None, disk: Disk) -> None:
        self.path: Final = path
        self.settings: Final[Mapping[str, str]] = run.settings
        """As they were when the run was created."""
        self.created: Final = run.created
        """ISO 8601, UTC."""
        self._lock = lock
        self._disk = disk

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        settings: Mapping[str, str] | None = None,
        exclusive: bool = True,
        disk: Disk | None = None,
    ) -> Self:
        """Open a run, or create one where nothing is. Blocks on the disk, briefly.

        Args:
            path: an absent or empty directory becomes a run.
            settings: kept in a new run; an existing run keeps its own.
            exclusive: False only reads, takes no lock and creates nothing.
            disk: where the writes go.

        Raises:
            NotARun: the path holds something else, or a run of another version.
            RunLocked: another process writes to this run.
            StorageFailed: the operating system refused.
        """
        path, disk = Path(path), disk or Disk()
        if not exclusive:
            return cls(path, _read_run(path), None, disk)
        _refuse_foreign(path)
        if (path / "run.json").exists():
            _read_run(path)  # before anything is written to what may not be ours
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            run = _read_run(path) if (path / "run.json").exists() else _create(path, settings, disk)
            (path / "waves").mkdir(exist_ok=True)
            for leftover in (path / "waves").glob(".wave-*.tmp"):
                leftover.unlink()
        except OSError as error:
            os.close(lock)
            raise storage_error(error, path) from error
        except StoreError:
            os.close(lock)
            raise
        return cls(path, run, lock, disk)

    @property
    def disk(self) -> Disk:
        """Where the run's writes go, those of its journal too."""
        return self._disk

    @property
    def journal_path(self) -> Path:
        """Where the run's journal is, or will be."""
        return self.path / "journal.msgpack"

    def close(self) -> None:
        """Let another process write to this run. Later calls do nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def seal(
        self, number: int, policy_version: int, trajectories: Sequence[Trajectory]
    ) -> WaveInfo:
        """Write a wave, for good. Blocks: call it in a thread.

        Sealing the same content under the same number again, as after a crash,
        returns the wave that is there.

        Raises:
            BadSample: a trajectory breaks an invariant of its record.
            MessageError: a trajectory cannot be encoded.
            StorageFailed: the disk refused; no file of that name was left behind.
            StoreError: another wave has this number, or the store does not write.
        """
        if self._lock is None:
            raise StoreError(f"{self.path} is not open for writing: open it with exclusive=True")
        path = self._wave_path(number)
        info, records = describe(path, number, policy_version, trajectories)
        try:
            if path.exists():
                sealed = wave_info(path)
                if sealed.digest != info.digest:
                    raise StoreError(
                        f"{path} is sealed with other trajectories (hash {sealed.digest}, not "
                        f"{info.digest}): waves never change; use the next number"
                    )
                # It may have been renamed by a process that died before this.
                self._disk.sync_directory(path.parent)
            else:
                self._disk.replace(path, wave_bytes(info, records))
        except OSError as error:
            raise storage_error(error, path) from error
        return info

    def sealed(self, number: int) -> bool:
        """Whether a wave has this number. Looks at no other."""
        return self._wave_path(number).exists()

    def waves(self) -> list[WaveInfo]:
        """List the sealed waves by number, without reading their trajectories.

        Raises:
            WaveCorrupt: a file's footer is damaged.
        """
        paths = (self.path / "waves").glob("wave-*.parquet")
        return sorted(map(wave_info, paths), key=lambda info: info.number)

    def read(self, number: int) -> Wave:
        """Read a sealed wave and verify it, as `read_wave` does."""
        return read_wave(self._wave_path(number))

    def _wave_path(self, number: int) -> Path:
        return self.path / "waves" / f"wave-{number:04d}.parquet"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _refuse_foreign(path: Path) -> None:
    """Raise `NotARun` where a run must not be created, before anything is touched."""
    if not path.exists() or (path / "run.json").exists():
        return
    if not path.is_dir():
        raise NotARun(f"{path} is a file, not a run directory: choose another --out directory")
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _OWN)
    if foreign:
        raise NotARun(
            f"{path} holds other files ({', '.join(foreign[:3])}) and no run.json: "
            "choose an empty or new --out directory"
        )


def _read_run(path: Path) -> _Run:
    file = path / "run.json"
    try:
        run = msgspec.json.decode(file.read_bytes(), type=_Run)
    except (FileNotFoundError, NotADirectoryError):
        raise NotARun(f"{path} is not a run: it has no run.json; check the path") from None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}; check permissions") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotARun(f"{file} is not a run's: {error}; restore it or choose another run") from None
    check_format(run.format, file)
    return run


def _create(path: Path, settings: Mapping[str, str] | None, disk: Disk) -> _Run:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    run = _Run(FORMAT, created, dict(settings or {}))
    text = msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n"
    disk.replace(path / "run.json", text)
    disk.sync_directory(path.parent)
    return run


def _take_lock(path: Path) -> int:
    """Lock the run for this process. The lock dies with the descriptor, hence with us."""
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise RunLocked(
            f"{path} is being written by process {holder or '(unknown)'}: wait for it, stop it, "
            "or choose another --out directory"
        ) from None
    except OSError:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock

"""The append-only journal of a run: what was acknowledged survives a crash.

A record is the MessagePack array `[crc32, bin]`, the encoded message in `bin`;
the file is records one after another, readable by any MessagePack library. The
header has a fixed width, 92 ce <crc32> c6 <length>, so that a damaged length is
told from a torn tail.

`append` costs microseconds and promises nothing. `sync` returns when everything
appended before it is on the disk: one write and one fsync serve all who wait.

Invariants:

* after `sync` returned, the records are read back whatever dies later;
* reading gives a prefix of what was appended or raises `JournalCorrupt`, never
  another record: a torn tail (a crash in mid-write) is no error and is cut when
  the journal is next opened, damage anywhere else is one;
* a failed commit keeps its records in memory; the next `sync` writes them again,
  at the same place, since a disk that failed an fsync may have dropped the pages;
* a disk that does not answer is an error too, after `DISK_SECONDS`.

Not here: what the records mean, and sealed waves (`store`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import BinaryIO, Final, Self
from zlib import crc32

import outcome
import trio

from .blocking import run_blocking, simulated
from .codec import MAX_MESSAGE_BYTES, M, Message, decoder, encode
from .disk import Disk
from .errors import (
    JournalCorrupt,
    MessageError,
    MessageTooLarge,
    StorageFailed,
    StoreError,
    storage_error,
)

DISK_SECONDS: Final = 120.0
"""Deadline of one commit. A healthy disk takes milliseconds; a network mount that has lost
its server never answers."""

_HEADER: Final = Struct(">HIBI")
_RECORD: Final = 0x92CE  # array of two, of which the first is a uint32 ...
_BINARY: Final = 0xC6  # ... and the second a bin with a 32-bit length
_EMPTY: Final = _HEADER.pack(_RECORD, 0, _BINARY, 0)
_SECTOR: Final = 512
_WINDOW: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """What the journal did since it was opened."""

    records: int
    """On the disk, those found at open included."""
    length: int
    """Bytes on the disk."""
    pending: int
    """Records that no finished commit covers yet."""
    commits: int
    """Writes with an fsync."""
    largest_commit: int
    """Records."""
    torn_bytes: int
    """Cut off at open: the unfinished write of a crash."""


class _Commit:
    """One write and fsync, under way or done. `error` says how it failed."""

    __slots__ = ("done", "error", "records", "size")

    def __init__(self, records: int, size: int) -> None:
        self.records = records
        self.size = size
        self.done = trio.Event()
        self.error: BaseException | None = None


class Journal:
    """A journal open for appending. Made by `open`; one writer a file (the store locks)."""

    def __init__(
        self, path: Path, descriptor: int, scan: _Scan, disk: Disk, *, threaded: bool
    ) -> None:
        self.path: Final = path
        self._descriptor = descriptor
        self._disk = disk
        self._threaded = threaded
        self._torn = scan.size - scan.good
        self._good = scan.good  # bytes known to be durable
        self._durable = scan.records  # records known to be durable
        self._appended = scan.records
        self._buffer: list[bytes] = []  # appended, in no commit
        self._commit: _Commit | None = None  # the one under way
        self._commits = 0
        self._largest = 0
        self._closing = False
        self._error: BaseException | None = None  # of the last commit that failed

    @classmethod
    async def open(
        cls, path: str | Path, *, disk: Disk | None = None, threaded: bool | None = None
    ) -> Journal:
        """Open or create the journal, and cut a torn tail.

        Args:
            path: the file; its directory exists.
            disk: where the writes go.
            threaded: False commits on the calling task; by default so where time is
                virtual, and would jump ahead while a thread works (`blocking`).

        Raises:
            JournalCorrupt: a record before the tail is damaged.
            StorageFailed: the file cannot be opened, created or cut.
        """
        path, disk = Path(path), disk or Disk()
        if threaded is None:
            threaded = not simulated()
        descriptor, scan = await run_blocking(_open, path, disk)
        return cls(path, descriptor, scan, disk, threaded=threaded)

    def append(self, message: Message) -> None:
        """Add a record. It is safe once a later `sync` has returned.

        Raises:
            MessageTooLarge: the message is above the size limit.
            StoreError: the journal is closed.
        """
        if self._closing:
            raise StoreError(f"{self.path} is closed: append before closing the store")
        payload = encode(message)
        if len(payload) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(
                f"record of {len(payload)} bytes; the limit is {MAX_MESSAGE_BYTES}"
            )
        self._buffer.append(_HEADER.pack(_RECORD, crc32(payload), _BINARY, len(payload)) + payload)
        self._appended += 1

    async def sync(self) -> None:
        """Wait until everything appended so far is durable.

        Cancelling a waiter harms neither the commit nor the other waiters.

        Raises:
            StorageFailed: the disk refused, or did not answer. The records are kept;
                `sync` tries again.
        """
        await trio.lowlevel.checkpoint()
        wanted = self._appended
        while self._durable < wanted:
            if self._descriptor < 0:  # closing failed: there is no next time
                assert self._error is not None
                raise self._failure(self._error) from self._error
            commit = self._commit or self._begin()
            with trio.move_on_after(DISK_SECONDS) as scope:
                await commit.done.wait()
            if scope.cancelled_caught:
                raise StorageFailed(
                    f"cannot write {self.path}: the disk has not answered for {DISK_SECONDS:g} s; "
                    "check the mount, then run the same command again (what was sealed is intact)"
                )
            if commit.error is not None:
                raise self._failure(commit.error) from commit.error

    async def close(self) -> None:
        """Commit what is left and close the file. Later calls do nothing.

        Cancelled or failed, it still closes the file, once no thread uses it.

        Raises:
            StorageFailed: the disk refused; what was not committed is lost.
        """
        if self._closing:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        if self._commit is None and self._buffer:
            self._begin()
        elif self._commit is None:
            self._release()
        await self.sync()

    @property
    def pending(self) -> int:
        """Records that no finished commit covers yet."""
        return self._appended - self._durable

    def statistics(self) -> JournalStatistics:
        """Give the counts so far."""
        return JournalStatistics(
            records=self._durable,
            length=self._good,
            pending=self.pending,
            commits=self._commits,
            largest_commit=self._largest,
            torn_bytes=self._torn,
        )

    def _begin(self) -> _Commit:
        """Start a commit of the whole buffer. It runs to its end whoever stops waiting."""
        batch, self._buffer = self._buffer, []
        commit = self._commit = _Commit(len(batch), sum(map(len, batch)))
        if self._threaded:
            # Not to_thread.run_sync: a waiter must be cancellable without taking
            # the commit down for the others, and with no task to own it.
            token = trio.lowlevel.current_trio_token()

            def deliver(result: outcome.Outcome[None]) -> None:
                try:
                    token.run_sync_soon(self._finish, commit, batch, result)
                except trio.RunFinishedError:
                    self._release()  # the loop died: nobody waits any more

            trio.lowlevel.start_thread_soon(lambda: self._write(batch), deliver, "journal")
        else:
            self._finish(commit, batch, outcome.capture(self._write, batch))
        return commit

    def _write(self, batch: list[bytes]) -> None:
        """Put the batch behind the last durable byte, or leave the file as it was."""
        try:
            self._disk.write(self._descriptor, b"".join(batch), self._good)
            self._disk.sync(self._descriptor)
        except OSError:
            with suppress(OSError):  # in vain: the next commit writes over what is left there
                self._disk.truncate(self._descriptor, self._good)
            raise

    def _finish(self, commit: _Commit, batch: list[bytes], result: outcome.Outcome[None]) -> None:
        if isinstance(result, outcome.Error):
            commit.error = self._error = result.error
            self._buffer = batch + self._buffer
        else:
            self._good += commit.size
            self._durable += commit.records
            self._commits += 1
            self._largest = max(self._largest, commit.records)
        self._commit = None
        commit.done.set()
        if self._closing:
            if self._buffer and commit.error is None:
                self._begin()
            else:
                self._release()

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        self._disk.close(descriptor)

    def _failure(self, error: BaseException) -> BaseException:
        return storage_error(error, self.path) if isinstance(error, OSError) else error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


@dataclass(frozen=True, slots=True)
class _Scan:
    """How far a journal file is good."""

    records: int
    good: int
    """Bytes up to the end of the last whole record."""
    size: int
    """Bytes in the file."""


def _open(path: Path, disk: Disk) -> tuple[int, _Scan]:
    try:
        descriptor = disk.open(path)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        disk.sync_directory(path.parent)
        scan = _Scan(0, 0, path.stat().st_size)
        for records, (_, good) in enumerate(_records(path), 1):
            scan = _Scan(records, good, scan.size)
        if scan.good < scan.size:
            disk.truncate(descriptor, scan.good)
            disk.sync(descriptor)
    except OSError as error:
        disk.close(descriptor)
        raise storage_error(error, path) from error
    except StoreError:
        disk.close(descriptor)
        raise
    return descriptor, scan


def read_journal(path: str | Path, *accepted: type[M]) -> Iterator[M]:
    """Give the records of a journal in order. An absent journal holds none.

    A torn tail ends the reading silently: nobody was told that it was safe.

    Raises:
        JournalCorrupt: a record is damaged, or is none of the accepted messages.
        StoreError: the file cannot be read.
    """
    path = Path(path)
    decode: Callable[[bytes], M] = decoder(*accepted).decode
    start = 0
    try:
        for payload, end in _records(path):
            try:
                yield decode(payload)
            except MessageError as error:
                raise JournalCorrupt(
                    f"{path}: the record at byte {start} is whole, but {error}; "
                    "read it with the version of Rollwave that wrote it"
                ) from None
            start = end
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check the path") from error


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Give each payload with the offset after it, up to the end or a torn tail."""
    count = good = 0
    with path.open("rb") as file:
        while (payload := _record(file, good)) is not None:
            count += 1
            good += _HEADER.size + len(payload)
            yield payload, good
        if not _torn(file, good):
            raise JournalCorrupt(
                f"{path}: the record at byte {good} is damaged; the {count} records before it "
                f"are intact. Keep a copy, then cut the damage off with "
                f"`truncate -s {good} {path}`: episodes recorded after it are played again"
            )


def _record(file: BinaryIO, start: int) -> bytes | None:
    """Give the payload of the record at `start`, if a whole one is there."""
    file.seek(start)
    header = file.read(_HEADER.size)
    if not _ours(header) or len(header) < _HEADER.size:
        return None
    _, checksum, _, length = _HEADER.unpack(header)
    payload = file.read(length)
    return payload if len(payload) == length and crc32(payload) == checksum else None


def _ours(header: bytes) -> bool:
    """Whether this is a header that `append` makes, or the beginning of one."""
    padded = header + _EMPTY[len(header) :]
    mark, _, kind, length = _HEADER.unpack(padded)
    return bool(mark == _RECORD and kind == _BINARY and length <= MAX_MESSAGE_BYTES)


def _torn(file: BinaryIO, start: int) -> bool:
    """Whether what begins at `start` is the unfinished write of a crash, not damage.

    A write cut short leaves the beginning of a record; a power cut may leave a
    file that has its new length, but zeros where data should be. Either is the
    last thing in the file: a whole record behind it means that it was damaged
    later, perhaps in its length.
    """
    size = file.seek(0, SEEK_END)
    if start == size:
        return True
    file.seek(max(start, size - _SECTOR))
    zeros = not file.read().strip(b"\0")
    file.seek(start)
    header = file.read(_HEADER.size)
    if not zeros:
        if not _ours(header):
            return False
        end = start + _HEADER.size + _HEADER.unpack(header + _EMPTY[len(header) :])[3]
        if len(header) == _HEADER.size and end <= size:
            # All of it is there: wrong, unless its writer finished it just now.
            return _record(file, start) is not None
    return not _record_after(file, start + 1, size)


def _record_after(file: BinaryIO, start: int, size: int) -> bool:
    """Whether a whole record begins anywhere in `start:size`."""
    while start < size:
        file.seek(start)
        window = file.read(_WINDOW)
        found = window.find(_EMPTY[:2])
        if found < 0:
            start += max(len(window) - 1, 1)  # the mark may straddle two windows
        elif _record(file, start + found) is not None:
            return True
        else:
            start += found + 1
    return False

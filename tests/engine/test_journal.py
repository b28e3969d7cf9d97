"""What `sync` acknowledged is read back; damage is named; a bad disk loses nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import msgpack
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import Message
from rollwave.engine.disk import Disk
from rollwave.engine.errors import JournalCorrupt, MessageTooLarge, StorageFailed, StoreError
from rollwave.engine.journal import Journal, read_journal
from rollwave.engine.strategies import trajectories
from rollwave.engine.trajectory import ChatMessage, Trajectory


class Note(Message, frozen=True):
    text: str
    data: bytes = b""


class Other(Message, frozen=True):
    text: str


notes = st.builds(Note, st.text(max_size=20), st.binary(max_size=40) | st.just(bytes(600)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.msgpack"


def read(path: Path) -> list[Note]:
    return list(read_journal(path, Note))


async def write(path: Path, records: Sequence[Message], *, threaded: bool = True) -> None:
    async with await Journal.open(path, threaded=threaded) as journal:
        for record in records:
            journal.append(record)


class BadDisk(Disk):
    """Fails, tears or holds up writes on demand."""

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}  # operation → errno
        self.torn = 0  # bytes that get through before a write fails
        self.hold: threading.Event | None = None
        self.calls: list[str] = []

    def _pass(self, operation: str) -> None:
        self.calls.append(operation)
        if operation in self.fail:
            raise OSError(self.fail[operation], f"injected into {operation}")

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        if self.hold is not None:
            assert self.hold.wait(30)
        if "write" in self.fail:
            super().write(descriptor, data[: self.torn], offset)
        self._pass("write")
        super().write(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        self._pass("sync")
        super().sync(descriptor)

    def truncate(self, descriptor: int, length: int) -> None:
        self._pass("truncate")
        super().truncate(descriptor, length)

    def open(self, path: Path) -> int:
        self._pass("open")
        return super().open(path)

    def close(self, descriptor: int) -> None:
        self._pass("close")
        super().close(descriptor)


# ---- writing and reading -------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(trajectories(), max_size=3), max_size=3))
def test_what_was_appended_is_read_back_over_several_openings(
    sessions: list[list[Trajectory]],
) -> None:
    async def main(path: Path) -> None:
        for records in sessions:
            await write(path, [*records], threaded=False)

    with TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        trio.run(main, path)
        assert list(read_journal(path, Trajectory)) == [*chain(*sessions)]


async def test_the_file_is_plain_messagepack(path: Path) -> None:
    await write(path, [Note("a"), Note("b", b"\x00")])
    unpacker = msgpack.Unpacker()
    unpacker.feed(path.read_bytes())
    records = [msgpack.unpackb(payload) for _, payload in unpacker]
    assert records == [["Note", "a", b""], ["Note", "b", b"\x00"]]


def test_an_absent_journal_holds_nothing(path: Path) -> None:
    assert read(path) == []


async def test_a_record_of_another_kind_is_named_with_its_place(path: Path) -> None:
    await write(path, [Note("a"), Other("b")])
    records = read_journal(path, Note)
    assert next(records) == Note("a")
    with pytest.raises(JournalCorrupt, match=r"journal.msgpack: the record at byte \d\d is whole"):
        next(records)


async def test_what_is_too_large_is_refused_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollwave.engine.journal.MAX_MESSAGE_BYTES", 100)
    async with await Journal.open(path) as journal:
        with pytest.raises(MessageTooLarge, match="limit is 100"):
            journal.append(Note("x" * 100))
        journal.append(Note("y"))
    assert read(path) == [Note("y")]


async def test_a_directory_in_its_place_is_a_clear_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageFailed, match=r"cannot write .*journal\.msgpack"):
        await Journal.open(path)
    with pytest.raises(StoreError, match=r"cannot read .*journal\.msgpack"):
        read(path)


# ---- group commit --------------------------------------------------------------------


async def test_one_commit_serves_all_who_wait(path: Path) -> None:
    disk = BadDisk()
    disk.hold = threading.Event()

    async def note(journal: Journal, index: int) -> None:
        journal.append(Note(str(index)))
        await journal.sync()

    async with await Journal.open(path, disk=disk) as journal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, journal, 0)
            await trio.testing.wait_all_tasks_blocked()
            for index in range(1, 100):  # all of these arrive while the first commit is held up
                nursery.start_soon(note, journal, index)
            await trio.testing.wait_all_tasks_blocked()
            assert journal.statistics().pending == 100
            disk.hold.set()
        statistics = journal.statistics()
    assert (statistics.commits, statistics.largest_commit) == (2, 99)
    assert (statistics.records, statistics.pending) == (100, 0)
    assert statistics.length == path.stat().st_size
    assert disk.calls.count("sync") == 2
    assert sorted(read(path), key=lambda note: int(note.text)) == [
        Note(str(index)) for index in range(100)
    ]


async def test_sync_returns_only_after_the_write_and_the_fsync(path: Path) -> None:
    disk = BadDisk()
    async with await Journal.open(path, disk=disk) as journal:
        disk.calls.clear()
        journal.append(Note("a"))
        assert disk.calls == []
        await journal.sync()
        assert disk.calls == ["write", "sync"]
        await journal.sync()  # nothing new: the disk is left alone
        assert disk.calls == ["write", "sync"]


async def test_a_cancelled_waiter_harms_neither_commit_nor_others(path: Path) -> None:
    disk = BadDisk()
    disk.hold = threading.Event()
    synced: list[int] = []
    async with await Journal.open(path, disk=disk) as journal:
        async with trio.open_nursery() as nursery:

            async def wait(index: int, scope: trio.CancelScope) -> None:
                with scope:
                    journal.append(Note(str(index)))
                    await journal.sync()
                    synced.append(index)

            first, second = trio.CancelScope(), trio.CancelScope()
            nursery.start_soon(wait, 1, first)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()  # it had started the commit
            await trio.testing.wait_all_tasks_blocked()
            assert first.cancelled_caught
            nursery.start_soon(wait, 2, second)
            await trio.testing.wait_all_tasks_blocked()
            disk.hold.set()
        assert synced == [2]
    assert read(path) == [Note("1"), Note("2")]


async def test_sync_is_a_checkpoint_even_with_nothing_to_do(path: Path) -> None:
    async with await Journal.open(path) as journal:
        with trio.testing.assert_checkpoints():
            await journal.sync()


# ---- bad disks -----------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_a_failed_commit_keeps_its_records_for_the_next(
    path: Path, operation: str, threaded: bool
) -> None:
    disk = BadDisk()
    async with await Journal.open(path, disk=disk, threaded=threaded) as journal:
        journal.append(Note("safe"))
        await journal.sync()
        disk.fail, disk.torn = {operation: errno.ENOSPC}, 9
        journal.append(Note("kept"))
        for _ in range(2):
            with pytest.raises(StorageFailed, match=r"journal\.msgpack.*free some space"):
                await journal.sync()
            assert read(path) == [Note("safe")]
            assert path.stat().st_size == journal.statistics().length
        disk.fail = {}
        journal.append(Note("later"))
        await journal.sync()
        assert read(path) == [Note("safe"), Note("kept"), Note("later")]


async def test_a_torn_write_that_cannot_be_cut_is_written_over(path: Path) -> None:
    disk = BadDisk()
    async with await Journal.open(path, disk=disk) as journal:
        journal.append(Note("safe"))
        await journal.sync()
        disk.fail, disk.torn = {"write": errno.EIO, "truncate": errno.EIO}, 15
        journal.append(Note("kept"))
        with pytest.raises(StorageFailed):
            await journal.sync()
        assert read(path) == [Note("safe")]  # the torn piece is no record
        disk.fail = {}
        await journal.sync()
    assert read(path) == [Note("safe"), Note("kept")]


async def test_everyone_who_waits_on_a_failed_commit_is_told(path: Path) -> None:
    disk = BadDisk()
    disk.hold = threading.Event()
    disk.fail = {"sync": errno.EIO}
    failures: list[StorageFailed] = []

    async def note(index: int) -> None:
        journal.append(Note(str(index)))
        try:
            await journal.sync()
        except StorageFailed as error:
            failures.append(error)

    async with await Journal.open(path, disk=disk) as journal:
        async with trio.open_nursery() as nursery:
            for index in range(5):
                nursery.start_soon(note, index)
            await trio.testing.wait_all_tasks_blocked()
            disk.hold.set()
        assert len(failures) == 5
        assert len({id(error) for error in failures}) == 5  # each with a traceback of its own
        disk.fail = {}
    assert len(read(path)) == 5


@pytest.mark.parametrize("operation", ["open", "truncate"])
async def test_a_journal_that_cannot_be_opened_says_so_and_leaks_nothing(
    path: Path, operation: str
) -> None:
    path.write_bytes(b"\x92\xce")  # a torn tail, to be cut
    disk = BadDisk()
    disk.fail = {operation: errno.EROFS}
    with pytest.raises(StorageFailed, match=r"cannot write .*journal\.msgpack"):
        await Journal.open(path, disk=disk)
    assert disk.calls[-1] == ("open" if operation == "open" else "close")


# ---- closing -------------------------------------------------------------------------


async def test_closing_commits_what_is_left_and_ends_appending(path: Path) -> None:
    journal = await Journal.open(path)
    journal.append(Note("a"))
    await journal.close()
    await journal.close()
    assert read(path) == [Note("a")]
    with pytest.raises(StoreError, match="is closed"):
        journal.append(Note("b"))
    await journal.sync()  # all that was appended is safe: nothing to complain of


async def test_a_cancelled_close_still_commits_and_lets_the_file_go(path: Path) -> None:
    disk = BadDisk()
    disk.hold = threading.Event()
    journal = await Journal.open(path, disk=disk)
    journal.append(Note("a"))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.sync)
            await trio.testing.wait_all_tasks_blocked()
            journal.append(Note("b"))  # after the commit under way
            nursery.start_soon(journal.close)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    disk.hold.set()
    with trio.fail_after(30):
        while "close" not in disk.calls:
            await trio.lowlevel.checkpoint()
    assert read(path) == [Note("a"), Note("b")]


@pytest.mark.parametrize("threaded", [True, False])
async def test_closing_on_a_full_disk_says_so_and_lets_the_file_go(
    path: Path, threaded: bool
) -> None:
    disk = BadDisk()
    journal = await Journal.open(path, disk=disk, threaded=threaded)
    journal.append(Note("a"))
    disk.fail = {"write": errno.ENOSPC}
    with pytest.raises(StorageFailed, match="free some space"):
        await journal.close()
    assert disk.calls[-1] == "close"
    with pytest.raises(StorageFailed, match="free some space"):
        await journal.sync()
    assert journal.statistics().pending == 1


def test_the_loop_may_die_while_a_commit_is_under_way(path: Path) -> None:
    disk = BadDisk()
    disk.hold = threading.Event()

    async def main() -> None:
        journal = await Journal.open(path, disk=disk)
        journal.append(Note("a"))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.sync)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    trio.run(main)
    disk.hold.set()
    for _ in range(3000):
        if "close" in disk.calls:
            break
        threading.Event().wait(0.01)  # a foreign thread's end: there is no loop to wait on
    assert read(path) == [Note("a")]
    assert disk.calls[-1] == "close"


def test_on_the_virtual_clock_no_time_passes(path: Path) -> None:
    async def main() -> None:
        async with await Journal.open(path, threaded=False) as journal:
            for index in range(50):
                journal.append(Note(str(index)))
                with trio.fail_after(0.001):
                    await journal.sync()
        assert trio.current_time() == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(read(path)) == 50


KILLED = """
import sys, trio
from rollwave.engine.journal import Journal
from rollwave.engine.trajectory import ChatMessage

async def main():
    async with await Journal.open(sys.argv[1]) as journal:
        async def note(index):
            journal.append(ChatMessage("user", f"{index} " + "x" * 5000))
            await journal.sync()
            print(index, flush=True)
        for batch in range(10_000):
            async with trio.open_nursery() as nursery:
                for index in range(10):
                    nursery.start_soon(note, 10 * batch + index)

trio.run(main)
"""


@pytest.mark.parametrize("lines", [1, 37, 211])
def test_what_was_acknowledged_survives_kill_9(path: Path, lines: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(lines)]
        process.kill()
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    found = [int(record.text.split()[0]) for record in read_journal(path, ChatMessage)]
    assert set(acknowledged) <= set(found)
    assert len(set(found)) == len(found)


# ---- all of it together ---------------------------------------------------------------

operations = st.lists(
    st.sampled_from(["append", "sync", "full", "torn", "fsync", "mend", "crash"]), max_size=20
)


@settings(max_examples=150, deadline=None)
@given(operations, st.integers(0, 40))
def test_nothing_acknowledged_is_ever_lost(steps: list[str], torn: int) -> None:
    """Any order of appends, syncs, disk faults and crashes (reopening without closing)."""
    faults: dict[str, Callable[[], dict[str, int]]] = {
        "full": lambda: {"write": errno.ENOSPC},
        "torn": lambda: {"write": errno.EIO, "truncate": errno.EIO},
        "fsync": lambda: {"sync": errno.EIO},
        "mend": dict,
    }

    async def main(path: Path) -> None:
        disk = BadDisk()
        disk.torn = torn
        journal = await Journal.open(path, disk=disk, threaded=False)
        appended: list[Message] = []
        safe = 0
        for index, step in enumerate(steps):
            if step == "append":
                record = Note(str(index), bytes(index))
                journal.append(record)
                appended.append(record)
            elif step == "sync":
                try:
                    await journal.sync()
                    safe = len(appended)
                except StorageFailed:
                    assert disk.fail
            elif step == "crash":
                disk.fail = {}
                journal._release()  # as the end of the process would
                journal = await Journal.open(path, disk=disk, threaded=False)
                found = read(path)
                assert found == appended[: len(found)]
                assert len(found) >= safe
                appended, safe = appended[: len(found)], len(found)
            else:
                disk.fail = faults[step]()
            found = read(path)
            assert found == appended[: len(found)]
            assert len(found) >= safe
        disk.fail = {}
        await journal.close()
        assert read(path) == appended

    with TemporaryDirectory() as folder:
        trio.run(main, Path(folder) / "j")


async def test_a_disk_that_never_answers_is_an_error_and_loses_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    answer = threading.Event()

    class Hung(Disk):
        def sync(self, descriptor: int) -> None:
            answer.wait(60)

    journal = await Journal.open(tmp_path / "journal", disk=Hung())
    journal.append(Note("kept", b""))
    # The clock jumps as soon as nobody but the disk's thread is busy.
    with pytest.raises(StorageFailed, match="has not answered for 120 s; check the mount"):
        await journal.sync()
    autojump_clock.autojump_threshold = inf
    answer.set()
    await journal.sync()
    await journal.close()
    assert read(tmp_path / "journal") == [Note("kept", b"")]

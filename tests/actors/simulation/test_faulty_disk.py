"""The faulty disk: what fails, what stays, and what a power cut leaves."""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.protocol import Accepted
from rollwave.actors.simulation.drill import QuickDisk
from rollwave.actors.simulation.fault_plan import Strike, StrikeKind
from rollwave.actors.simulation.faulty_disk import FaultyDisk, PowerLost
from rollwave.engine.codec import Message
from rollwave.engine.errors import StorageFailed
from rollwave.engine.journal import Journal, read_journal
from rollwave.engine.testing import run_simulated


class Note(Message, frozen=True):
    number: int
    text: str = "x" * 200


def disk(
    *strikes: tuple[StrikeKind, int, int], seed: int = 0, mortal: bool = True
) -> tuple[FaultyDisk, Counter[str]]:
    struck: Counter[str] = Counter()

    def count(kind: str) -> None:
        struck[kind] += 1

    made = [Strike(kind=kind, at=at, lasts=lasts) for kind, at, lasts in strikes]
    return FaultyDisk(QuickDisk(), made, count, lambda _: mortal, seed), struck


@pytest.mark.parametrize(
    ("kind", "number", "left"),
    [("disk.full", errno.ENOSPC, b"onetwo"), ("disk.torn", errno.EIO, b"onetwoth")],
)
def test_a_write_fails_at_its_count_and_as_long_as_it_lasts(
    tmp_path: Path, kind: StrikeKind, number: int, left: bytes
) -> None:
    faulty, struck = disk((kind, 2, 2))
    descriptor = faulty.open(tmp_path / "file")
    faulty.write(descriptor, b"one", 0)
    faulty.write(descriptor, b"two", 3)
    for _ in range(2):
        with pytest.raises(OSError) as error:
            faulty.write(descriptor, b"thre", 6)
        assert error.value.errno == number
    assert (tmp_path / "file").read_bytes() == left
    faulty.write(descriptor, b"three", 6)
    faulty.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"onetwothree"
    assert struck == {kind: 2}


def test_an_fsync_fails_at_its_count(tmp_path: Path) -> None:
    faulty, struck = disk(("disk.fsync", 1, 1))
    descriptor = faulty.open(tmp_path / "file")
    faulty.sync(descriptor)
    with pytest.raises(OSError, match="Input/output"):
        faulty.sync(descriptor)
    faulty.sync(descriptor)
    faulty.close(descriptor)
    assert struck == {"disk.fsync": 1}


def test_replacing_counts_its_parts_and_leaves_nothing_half(tmp_path: Path) -> None:
    faulty, _ = disk(("disk.torn", 1, 1))
    faulty.replace(tmp_path / "file", b"old")
    with pytest.raises(OSError):
        faulty.replace(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_who_cannot_die_loses_nothing_to_a_power_cut(tmp_path: Path) -> None:
    faulty, struck = disk(("process.power", 2, 1), mortal=False, seed=3)
    descriptor = faulty.open(tmp_path / "file")
    for number in range(4):
        faulty.write(descriptor, bytes([number]) * 600, 600 * number)
    faulty.close(descriptor)
    assert (tmp_path / "file").stat().st_size == 2400
    assert struck == {}


@given(st.integers(0, 60), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_power_cut_takes_nothing_that_an_fsync_covered(
    tmp_path_factory: pytest.TempPathFactory, at: int, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("power")
    faulty, _ = disk(("process.power", at, 1), seed=seed)
    safe: dict[str, bytes] = {}
    written: dict[str, bytes] = {"log": b""}
    try:
        descriptor = faulty.open(directory / "log")
        faulty.sync_directory(directory)
        safe["log"] = b""
        for number in range(6):
            record = bytes([65 + number]) * 300
            faulty.write(descriptor, record, len(written["log"]))
            written["log"] += record
            if number % 2:
                faulty.sync(descriptor)
                safe["log"] = written["log"]
            faulty.replace(directory / "state", record)
            safe["state"] = record
    except PowerLost:
        pass
    else:
        faulty.close(descriptor)
    for name, content in safe.items():
        found = (directory / name).read_bytes() if (directory / name).exists() else None
        if name == "log":
            assert found is not None
            assert found[: len(content)] == content
        else:  # either the last one that was replaced, or the one that was being written
            assert found is not None
            assert found[:1] in (content[:1], bytes([content[0] + 1]))
            assert len(found) == 300


@given(st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_journal_stands_any_power_cut(
    tmp_path_factory: pytest.TempPathFactory, at: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    acknowledged: list[int] = []

    async def main() -> None:
        faulty, _ = disk(("process.power", at, 1), seed=seed)
        async with await Journal.open(path, disk=faulty) as journal:
            for number in range(12):
                journal.append(Note(number))
                if number % 3 == 2:
                    await journal.sync()
                    acknowledged.append(number)

    with suppress(PowerLost):
        run_simulated(main)
    kept = [record.number for record in read_journal(path, Note)]
    assert kept == list(range(len(kept)))
    assert len(kept) > max(acknowledged, default=-1)

    async def again() -> int:
        async with await Journal.open(path) as journal:
            return journal.statistics().records

    assert run_simulated(again) == len(kept)


def test_a_journal_on_a_full_disk_keeps_its_records_for_the_next_commit(tmp_path: Path) -> None:
    async def main() -> None:
        faulty, _ = disk(("disk.full", 1, 2))
        async with await Journal.open(tmp_path / "journal", disk=faulty) as journal:
            journal.append(Accepted())
            await journal.sync()
            journal.append(Accepted())
            for _ in range(2):
                with pytest.raises(StorageFailed, match="free some space"):
                    await journal.sync()
            await journal.sync()
            await trio.lowlevel.checkpoint()

    run_simulated(main)
    assert len(list(read_journal(tmp_path / "journal", Accepted))) == 2

"""A damaged journal: torn tails are cut, damage is named, what was good stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import msgpack
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine import journal as journals
from rollwave.engine.codec import Message
from rollwave.engine.errors import JournalCorrupt
from rollwave.engine.journal import Journal, read_journal


class Note(Message, frozen=True):
    text: str
    data: bytes = b""


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


RECORDS = [Note("first", b"x" * 30), Note("second"), Note("third", bytes(20))]


async def test_a_torn_tail_is_tolerated_and_cut_when_opened(path: Path) -> None:
    await write(path, RECORDS)
    whole = path.read_bytes()
    last = len(whole) - 1
    while True:  # every cut inside the last record
        path.write_bytes(whole[:last])
        if read(path) != RECORDS[:2]:
            break
        async with await Journal.open(path) as journal:
            assert journal.statistics().torn_bytes == last - path.stat().st_size
            assert journal.statistics().records == 2
            journal.append(Note("next"))
        assert read(path) == [*RECORDS[:2], Note("next")]
        last -= 1
    assert len(whole) - last > 30
    assert read(path) == RECORDS[:1]


@pytest.mark.parametrize("zeros", [1, 10, 4096])
async def test_a_tail_of_zeros_after_a_power_cut_is_torn_too(path: Path, zeros: int) -> None:
    await write(path, RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(zeros))
    assert read(path) == RECORDS
    await write(path, [Note("next")])
    assert read(path) == [*RECORDS, Note("next")]


async def test_damage_is_named_with_file_place_and_way_out(path: Path) -> None:
    await write(path, RECORDS)
    data = bytearray(path.read_bytes())
    second = data.index(b"second")
    data[second] ^= 1
    path.write_bytes(data)
    records = read_journal(path, Note)
    assert next(records) == RECORDS[0]
    with pytest.raises(JournalCorrupt) as caught:
        next(records)
    text = str(caught.value)
    assert str(path) in text
    assert "the 1 records before it are intact" in text
    command = text.partition("`truncate -s ")[2].partition(" ")[0]
    with pytest.raises(JournalCorrupt, match=f"at byte {command} is damaged"):
        await Journal.open(path)
    assert path.read_bytes() == data  # opening changed nothing
    path.write_bytes(data[: int(command)])
    assert read(path) == RECORDS[:1]


async def test_a_damaged_length_is_not_taken_for_a_torn_tail(path: Path) -> None:
    await write(path, RECORDS)
    data = bytearray(path.read_bytes())
    data[9] ^= 0x40  # the first record now claims 16 KiB more than there is
    path.write_bytes(data)
    with pytest.raises(JournalCorrupt, match="at byte 0 is damaged; the 0 records"):
        read(path)


async def test_a_reader_overtaken_by_the_writer_sees_a_prefix(path: Path) -> None:
    """The record was incomplete when it was read, and whole when that was looked into."""
    await write(path, RECORDS)
    start = path.read_bytes().index(b"\x92\xce", 11)
    with path.open("rb") as file:
        assert journals._torn(file, start)


def good_part(path: Path) -> list[Note]:
    """Read until the end or the damage."""
    found: list[Note] = []
    with suppress(JournalCorrupt):
        for record in read_journal(path, Note):
            found.append(record)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(notes, min_size=1, max_size=6), st.data())
def test_any_flip_or_cut_leaves_a_clean_prefix(records: list[Note], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "j"

        async def main() -> None:
            await write(path, records, threaded=False)
            raw = bytearray(path.read_bytes())
            where = data.draw(st.integers(0, len(raw) - 1), "where")
            if data.draw(st.booleans(), "cut"):
                path.write_bytes(raw[:where])
            else:
                raw[where] ^= data.draw(st.integers(1, 255), "flip")
                path.write_bytes(raw)
            found = good_part(path)
            assert found == records[: len(found)]
            ends = [0]
            for record in records:
                ends.append(ends[-1] + 11 + len(msgpack.packb(["Note", record.text, record.data])))
            assert len(found) == sum(end <= where for end in ends[1:])  # all before the damage
            try:
                journal = await Journal.open(path, threaded=False)
            except JournalCorrupt:
                return
            async with journal:  # writing goes on behind the good part
                journal.append(Note("next"))
            assert good_part(path) == [*found, Note("next")]

        trio.run(main)

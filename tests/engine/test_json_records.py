"""Cutting JSON files into records: the same ones that a whole-file reader finds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.engine import json_records as module
from rollwave.engine.errors import BadDataFile
from rollwave.engine.json_records import json_records

WRITES_FILES = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[],:\n é\x00', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@WRITES_FILES
@given(
    values=st.lists(VALUES, max_size=6),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    packed=st.booleans(),
    lines=st.booleans(),
)
def test_every_record_is_found_however_the_file_is_read(
    tmp_path: Path, values: list[Any], chunk: int, indent: int | None, packed: bool, lines: bool
) -> None:
    if lines:
        values = [{"value": value} for value in values]  # a line that begins a list is a list
        text = "\r\n".join(json.dumps(value) for value in values)
    else:
        text = json.dumps(values, indent=indent, ensure_ascii=False)
    data = text.encode()
    file = tmp_path / "records.json"
    file.write_bytes(gzip.compress(data) if packed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        assert [json.loads(record) for record in json_records(file)] == values


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[1, 2", "ends within item 1"),
        (b'[{"a": "no end', "ends within item 0"),
        (b"[1,, 2]", "nothing stands where item 1 should"),
        (b"[1,]", "nothing stands where item 1 should"),
        (b"[1] tail", "behind the end"),
        (b"[1]" + b" " * 3_000_000 + b"tail", "behind the end"),
        (b"[1}, 2]", "item 0 closes what was not opened"),
    ],
)
def test_what_is_no_list_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(data)
    with pytest.raises(BadDataFile, match=rf"bad\.json is not JSON.*{words}"):
        list(json_records(file))


@pytest.mark.parametrize("head", [b"[", b'{"a": '])
def test_a_record_may_not_go_on_without_end(
    tmp_path: Path, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 1 << 10)
    monkeypatch.setattr(module, "MAX_RECORD", 1 << 16)
    file = tmp_path / "bomb.json.gz"
    file.write_bytes(gzip.compress(head + b'"' + b"x" * (1 << 20)))
    with pytest.raises(BadDataFile, match="item 0 is longer than 65536 bytes"):
        list(json_records(file))


def test_a_long_list_of_short_records_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 1 << 8)
    monkeypatch.setattr(module, "MAX_RECORD", 1 << 10)
    file = tmp_path / "long.json"
    file.write_text(json.dumps(["x" * 90] * 500))
    assert len(list(json_records(file))) == 500
    with pytest.raises(BadDataFile, match="unpacks to more than 1000 bytes"):
        list(json_records(file, limit=1000))


@WRITES_FILES
@given(st.binary(max_size=60))
def test_any_bytes_are_cut_or_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any.json"
    file.write_bytes(data)
    try:
        assert all(record.strip() for record in json_records(file))
    except BadDataFile as error:
        assert str(file) in str(error)  # noqa: PT017 (either way is right)

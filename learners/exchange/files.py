"""Files of rows, as streams: JSON lists, JSON lines (both also gzipped) and Parquet.

Invariant: a file is written beside its name and renamed: it appears whole or not at all.

Not here: what a row means (`rows` and the formats).
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import msgspec

from ...engine.agenttraj import UNREADABLE
from ...engine.errors import BadDataFile, storage_error
from ...engine.json_records import json_records

ROWS: Final = 256
"""Rows held at once."""

Row = TypeVar("Row")


def is_parquet(path: Path) -> bool:
    """Whether a path names a Parquet file."""
    return path.suffix == ".parquet"


def read_rows(path: Path, kind: type[Row], form: str) -> Iterator[Row]:
    """Give the rows of a JSON or Parquet file, checked.

    Args:
        path: the file.
        kind: a `msgspec.Struct`; columns that it does not have are not read.
        form: the format's name, for the error.

    Raises:
        BadDataFile: the file cannot be read, or a row is not of that kind.
    """
    if is_parquet(path):
        yield from rows_of_dicts(path, _parquet_rows(path, kind), kind, form)
        return
    for number, raw in enumerate(json_records(path)):
        try:
            yield msgspec.json.decode(raw, type=kind)
        except UNREADABLE as error:
            raise _not_of(path, number, form, error) from None


def rows_of_dicts(path: Path, rows: Iterable[Any], kind: type[Row], form: str) -> Iterator[Row]:
    """Check rows that are dictionaries already.

    Raises:
        BadDataFile: a row is not of that kind.
    """
    for number, row in enumerate(rows):
        try:
            yield msgspec.convert(row, type=kind)
        except msgspec.ValidationError as error:
            raise _not_of(path, number, form, error) from None


def first_columns(path: Path) -> set[str]:
    """Name the columns of a Parquet file, or the keys of a JSON file's first record.

    Raises:
        BadDataFile: it can not be read, or holds no records.
    """
    if is_parquet(path):
        with _parquet(path) as file:
            return set(file.schema_arrow.names)
    for raw in json_records(path):
        try:
            return set(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]))
        except UNREADABLE as error:
            raise BadDataFile(f"{path}, item 0 is not a record: {error}") from None
    raise BadDataFile(f"{path} holds no records, so nothing says which format it is in")


def write_rows(path: Path, rows: Iterable[msgspec.Struct], schema: Any) -> None:
    """Write rows into a Parquet file, a JSON list or JSON lines, as the path ends.

    Args:
        path: `.parquet`, or `.json`, `.jsonl`, both also with `.gz`.
        rows: in order; taken one after the other.
        schema: `pyarrow.Schema`; None where the format has no Parquet file.

    Raises:
        StorageFailed: the disk refused.
    """
    with replacing(path) as file:
        if is_parquet(path):
            _write_parquet(file, rows, schema)
        elif path.suffix == ".gz":
            # Without a name and time in it, equal rows give equal files.
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                _write_json(cast(BinaryIO, packed), rows, lines=".jsonl" in path.suffixes)
        else:
            _write_json(file, rows, lines=path.suffix == ".jsonl")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` when the block ends well.

    Raises:
        StorageFailed: the disk refused; `path` is as it was.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("wb")
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        draft.unlink(missing_ok=True)


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Give rows in lists of at most `ROWS`."""
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) == ROWS:
            yield held
            held = []
    if held:
        yield held


def _write_json(file: BinaryIO, rows: Iterable[msgspec.Struct], *, lines: bool) -> None:
    before, between, after = (b"", b"\n", b"\n") if lines else (b"[\n", b",\n", b"\n]\n")
    file.write(before)
    count = 0
    for count, row in enumerate(rows, 1):
        if count > 1:
            file.write(between)
        file.write(msgspec.json.encode(row))
    if count or not lines:
        file.write(after)


def _write_parquet(file: BinaryIO, rows: Iterable[msgspec.Struct], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for some in batches(rows):
            plain = [msgspec.to_builtins(row) for row in some]
            writer.write_table(pa.Table.from_pylist(plain, schema))


def _parquet_rows(path: Path, kind: Any) -> Iterator[Any]:
    import pyarrow as pa

    with _parquet(path) as file:
        names = {field.encode_name for field in msgspec.structs.fields(kind)}
        wanted: Sequence[str] = [name for name in file.schema_arrow.names if name in names]
        try:
            for batch in file.iter_batches(ROWS, columns=wanted):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> BadDataFile:
    if isinstance(error, OSError) and error.errno:
        return BadDataFile(f"cannot read {path}: {os.strerror(error.errno)}")
    return BadDataFile(
        f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}; copy it again"
    )


def _not_of(path: Path, number: int, form: str, error: BaseException) -> BadDataFile:
    return BadDataFile(f"{path}, item {number} is not in the format {form}: {error}")

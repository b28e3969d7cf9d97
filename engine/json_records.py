"""The records of a JSON file, one after the other: a list, or one record a line, also gzipped.

A list is cut at its commas without being decoded, so a file of any length takes the memory of
its longest record. What a record means is for the caller.

Invariant: whatever the bytes are, the answer is records or a `BadDataFile` that names the file;
no more than `MAX_RECORD` bytes are ever held for one record, and a gzip file that unpacks
without end is refused by that.

Not here: what records mean (`agenttraj`, `learners.exchange`).
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .errors import BadDataFile

MAX_RECORD: Final = 64 * 1024 * 1024
"""Longest record, in bytes of JSON: a conversation of a million tokens is about 5 MB."""

_CHUNK: Final = 1 << 20
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)
"""A whole string, a string whose end is not in sight (`"` alone), or a mark of structure."""


def json_records(path: str | Path, *, limit: int = 0) -> Iterator[bytes]:
    """Give the undecoded records of a file, in order.

    Args:
        path: the file; gzip is recognised by its first bytes.
        limit: refuse a file that is longer, unpacked; 0 = any length.

    Raises:
        BadDataFile: the file is missing, cut off, a damaged gzip file, or no list where it
            begins like one; a record or the file is too long.
    """
    path = Path(path)
    chunks = _chunks(path, limit)
    head = b""
    for chunk in chunks:
        head = (head + chunk).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head:
            break
    yield from _elements(path, head[1:], chunks) if head[:1] == b"[" else _lines(path, head, chunks)


def _chunks(path: Path, limit: int) -> Iterator[bytes]:
    """Read a file, unpacked."""
    try:
        packed = path.open("rb")
    except OSError as error:
        raise BadDataFile(f"cannot read {path}: {error.strerror or error}") from None
    length = 0
    with packed:
        try:
            gzipped = packed.peek(2)[:2] == b"\x1f\x8b"
            source = gzip.GzipFile(fileobj=packed) if gzipped else packed
            while chunk := source.read(_CHUNK):
                length += len(chunk)
                if limit and length > limit:
                    raise BadDataFile(f"{path} unpacks to more than {limit} bytes")
                yield chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadDataFile(
                f"{path} is a damaged gzip file, perhaps cut off while copying: {error}"
            ) from None
        except OSError as error:
            raise BadDataFile(f"cannot read {path}: {error.strerror or error}") from None


def _lines(path: Path, data: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    number = 0
    while True:
        *lines, data = data.splitlines(keepends=True) or [b""]
        if data.endswith(b"\n"):
            lines.append(data)
            data = b""
        for line in lines:
            if record := line.strip():
                yield record
                number += 1
        more = _more(path, data, chunks, number)
        if not more:
            break
        data += more
    if record := data.strip():
        yield record


def _elements(path: Path, data: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut a list, whose opening bracket is taken off, at its commas."""
    start = position = depth = number = 0
    while True:
        token = _TOKEN.search(data, position)
        mark = token.group() if token else b'"'
        if token is None or mark == b'"':
            position = (token.start() if token else len(data)) - start
            data, start = data[start:], 0
            more = _more(path, data, chunks, number)
            if not more:
                raise BadDataFile(
                    f"{path} is not JSON: the list ends within item {number}; copy the file again"
                )
            data += more
            continue
        position = token.end()
        if mark in b"{[":
            depth += 1
        elif mark in b"}]" and depth:
            depth -= 1
        elif mark in b",]" and not depth:
            record = data[start : token.start()].strip()
            if not record and not (mark == b"]" and number == 0):
                raise BadDataFile(f"{path} is not JSON: nothing stands where item {number} should")
            if record:
                yield record
                number += 1
            start = position
            if mark == b"]":
                break
        elif mark == b"}":
            raise BadDataFile(f"{path} is not JSON: item {number} closes what was not opened")
    rest = data[start:]
    while not rest.strip():
        if not (rest := next(chunks, b"")):
            return
    raise BadDataFile(f"{path} is not JSON: something stands behind the end of the list")


def _more(path: Path, data: bytes, chunks: Iterator[bytes], number: int) -> bytes:
    """Read as much as is there already, and at least a chunk, so that no byte is looked at
    more than a few times."""
    found = b""
    while len(found) <= len(data) and (chunk := next(chunks, b"")):
        found += chunk
        if len(data) + len(found) > MAX_RECORD + _CHUNK:
            raise BadDataFile(f"{path}, item {number} is longer than {MAX_RECORD} bytes")
    return found

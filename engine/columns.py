"""Trajectories as Arrow columns and back, exactly.

One row is one trajectory. Plain fields become plain columns of the same name;
the packed fields become lists without a copy of their bytes:

    token_ids list<uint32> · loss_mask list<uint8> · logprobs list<float32>
    prompt list<struct{role, text, loss}> · turns list<struct{observation, …}>
    reward nullable double · fault nullable struct{kind, text, turn}
    versions_oldest, versions_newest int64 (the pair `versions`)

so that pyarrow, `datasets`, DuckDB or pandas read a wave without our code.

Invariant: `list(from_table(to_table(x))) == x`, to the bit of every float.

Not here: files, metadata and hashes (`store`). Loads pyarrow when called.
"""

from __future__ import annotations

import types
from array import array
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cache
from itertools import pairwise
from typing import Any, Final, get_args, get_origin, get_type_hints

from .codec import Message
from .trajectory import Trajectory

# Packed field → Arrow type and width of an element.
_PACKED: Final = {"token_ids": ("uint32", 4), "loss_mask": ("uint8", 1), "logprobs": ("float32", 4)}
_PAIR: Final = "versions"
_PLAIN: Final = {str: "string", int: "int64", float: "float64", bool: "bool"}


def schema() -> Any:
    """Return the `pyarrow.Schema` of a wave."""
    import pyarrow as pa

    fields = []
    for name, hint in _hints(Trajectory).items():
        if name in _PACKED:
            kind = pa.list_(pa.field("element", _plain(_PACKED[name][0]), nullable=False))
            fields.append(pa.field(name, kind, nullable=False))
        elif name == _PAIR:
            fields += [pa.field(f"{_PAIR}_{end}", pa.int64(), nullable=False) for end in _ENDS]
        else:
            fields.append(_field(name, hint))
    return pa.schema(fields)


_ENDS: Final = ("oldest", "newest")


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the dotted Parquet path and Arrow type of every leaf column of a schema or type."""
    import pyarrow as pa

    for field in kind:
        path = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            yield from leaves(field.type, f"{path}.")
        elif pa.types.is_list(field.type):
            element = field.type.value_field
            yield from leaves([element.with_name("list.element")], f"{path}.")
        else:
            yield path, field.type


def to_table(trajectories: Sequence[Trajectory]) -> Any:
    """Turn trajectories into a `pyarrow.Table` with one chunk.

    Raises:
        ValueError: (ArrowInvalid, OverflowError, too) a value does not fit its column.
    """
    import pyarrow as pa

    wanted = schema()
    columns: list[Any] = []
    for field in wanted:
        name = field.name
        if name in _PACKED:
            width = _PACKED[name][1]
            columns.append(_pack([getattr(t, name) for t in trajectories], width, field.type))
        elif name.startswith(f"{_PAIR}_"):
            end = _ENDS.index(name.removeprefix(f"{_PAIR}_"))
            columns.append(pa.array([t.versions[end] for t in trajectories], field.type))
        else:
            columns.append(_array([getattr(t, name) for t in trajectories], field.type))
    return pa.Table.from_arrays(columns, schema=wanted)


def from_table(table: Any) -> Iterator[Trajectory]:
    """Give the trajectories of a table that has the columns of `schema`.

    Raises:
        ValueError: (KeyError, TypeError, ArrowInvalid, too) the columns are not those of a wave.
    """
    names: list[str] = []
    columns: list[list[Any]] = []
    for name, hint in _hints(Trajectory).items():
        names.append(name)
        if name in _PACKED:
            columns.append(_unpack(_one(table, name), _PACKED[name][1]))
        elif name == _PAIR:
            oldest, newest = (_one(table, f"{_PAIR}_{end}").to_pylist() for end in _ENDS)
            columns.append(list(zip(oldest, newest, strict=True)))
        else:
            columns.append(_values(_one(table, name), hint))
    for row in zip(*columns, strict=True):
        yield Trajectory(**dict(zip(names, row, strict=True)))


def _plain(name: str) -> Any:
    import pyarrow as pa

    return pa.type_for_alias(name)


def _field(name: str, hint: Any) -> Any:
    """Give the Arrow field of a plain field, a message or a tuple of messages."""
    import pyarrow as pa

    hint, nullable = _optional(hint)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        kind = pa.list_(_field("element", item))
    elif issubclass(hint, Message):
        kind = pa.struct([_field(*item) for item in _hints(hint).items()])
    else:
        kind = _plain(_PLAIN[str if issubclass(hint, StrEnum) else hint])
    return pa.field(name, kind, nullable=nullable)


@cache  # resolving them takes longer than a small table, and their number is that of the classes
def _hints(record: type[Message]) -> dict[str, Any]:
    """Give the resolved type of every stored field, in order."""
    hints = get_type_hints(record)
    return {name: hints[name] for name in record.__struct_fields__}


def _optional(hint: Any) -> tuple[Any, bool]:
    """Split `X | None` into X and whether None is allowed."""
    if isinstance(hint, types.UnionType):
        (kind,) = [arg for arg in get_args(hint) if arg is not types.NoneType]
        return kind, True
    return hint, False


def _pack(chunks: list[bytes], width: int, kind: Any) -> Any:
    """Lay packed byte strings end to end under a list array."""
    import pyarrow as pa

    data = b"".join(chunks)
    values = pa.Array.from_buffers(
        kind.value_type, len(data) // width, [None, pa.py_buffer(data)], null_count=0
    )
    return pa.ListArray.from_arrays(_offsets(chunks, width), values, type=kind)


def _offsets(chunks: Sequence[Any], width: int = 1) -> Any:
    import pyarrow as pa

    offsets = array("i", [0])
    total = 0
    for chunk in chunks:
        total += len(chunk) // width
        offsets.append(total)
    return pa.Array.from_buffers(
        pa.int32(), len(offsets), [None, pa.py_buffer(offsets.tobytes())], null_count=0
    )


def _unpack(lists: Any, width: int) -> list[bytes]:
    """Cut the values of a list array back into packed byte strings."""
    offsets = lists.offsets.to_pylist()
    buffer = lists.values.buffers()[1]
    data = memoryview(buffer)[lists.values.offset * width :] if buffer else b""
    return [bytes(data[start * width : end * width]) for start, end in pairwise(offsets)]


def _array(values: list[Any], kind: Any) -> Any:
    """Build the array of a plain column, a column of messages, or of tuples of messages."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        flat = [item for items in values for item in items]
        return pa.ListArray.from_arrays(_offsets(values), _array(flat, kind.value_type), type=kind)
    if pa.types.is_struct(kind):
        missing = [value is None for value in values]
        return pa.StructArray.from_arrays(
            [
                _array([getattr(v, field.name, _blank(field)) for v in values], field.type)
                for field in kind
            ],
            fields=list(kind),
            mask=pa.array(missing, pa.bool_()) if any(missing) else None,
        )
    return pa.array(values, kind)


def _blank(field: Any) -> Any:
    """A value for the children of a missing struct, whose fields may not be null."""
    return "" if str(field.type) == "string" else 0


def _values(column: Any, hint: Any) -> list[Any]:
    """Turn a column back into plain values, messages or tuples of messages."""
    hint, _ = _optional(hint)
    if get_origin(hint) is tuple:
        flat = _values(column.values, get_args(hint)[0])
        offsets = column.offsets.to_pylist()
        return [tuple(flat[start:end]) for start, end in pairwise(offsets)]
    if issubclass(hint, Message):
        by_name = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
        fields = [_values(by_name[name], each) for name, each in _hints(hint).items()]
        present = column.is_valid().to_pylist()
        rows = zip(*fields, strict=True)
        return [hint(*row) if ok else None for ok, row in zip(present, rows, strict=True)]
    if issubclass(hint, StrEnum):
        members: dict[Any, Any] = {None: None, **{member.value: member for member in hint}}
        return [members[value] for value in column.to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def _one(table: Any, name: str) -> Any:
    """Give a column as one array."""
    return table.column(name).combine_chunks()

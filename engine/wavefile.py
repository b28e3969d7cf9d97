"""The file of a sealed wave: Parquet, hashed, verified on reading.

The columns are those of `columns`. The file's metadata, key `rollwave`, is a
JSON object: format, number, policy version, count by outcome, and the blake2b
hash over number, policy version and every trajectory's message. So any Parquet
reader reads the data, and ours proves that it is what was sealed.

Invariant: `read_wave` returns exactly what was sealed, or raises.

Not here: where waves lie and when they may be written (`store`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec

from .codec import decoder, encode
from .columns import from_table, leaves, schema, to_table
from .errors import MessageError, NotARun, StoreError, WaveCorrupt
from .trajectory import Trajectory, Wave, count_outcomes

FORMAT: Final = 1
"""Version of a run directory and of the records in it. Raise it when either changes."""

ROWS: Final = 256
"""Trajectories in a row group: what a lazy reader holds in memory at once."""

_KEY: Final = "rollwave"


@dataclass(frozen=True, slots=True)
class WaveInfo:
    """A sealed wave, from its file's footer alone."""

    number: int
    path: Path
    digest: str
    """blake2b, 128 bits, hexadecimal."""
    policy_version: int
    """The version that was served while it was collected."""
    trajectories: int
    outcomes: dict[str, int]
    """Count by outcome name."""


class _Footer(msgspec.Struct, frozen=True):
    """What a wave file says about itself, in its metadata."""

    format: int
    number: int
    policy_version: int
    digest: str
    outcomes: dict[str, int]


def read_wave(path: str | Path) -> Wave:
    """Read a wave file whole and verify its hash. Blocks.

    Raises:
        WaveCorrupt: it is damaged, or no wave.
        NotARun: it was written by another version.
        StoreError: it cannot be opened.
    """
    path = Path(path)
    records: list[Trajectory] = []
    with _parquet(path) as file:
        info = _info(path, file)
        try:
            for index in range(file.num_row_groups):
                records += from_table(file.read_row_group(index))
            digest = _digest(info.number, info.policy_version, records)
        except _damage() as error:
            raise _corrupt(path, f"{type(error).__name__}: {error}") from error
    if digest != info.digest or count_outcomes(records) != info.outcomes:
        raise _corrupt(path, f"its content hashes to {digest}, sealed was {info.digest}")
    return Wave(info.number, info.policy_version, digest, tuple(records))


def scan_wave(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Read a wave lazily: one `pyarrow.Table` of at most `ROWS` rows after the other.

    For figures and filters over many waves. The hash is not verified, since it
    covers the whole file; page checksums are.

    Args:
        path: the wave file.
        columns: the columns wanted, all by default; a nested one in dots, as in
            "turns.list.element.action".

    Raises:
        WaveCorrupt: it is damaged, or no wave.
        NotARun: it was written by another version.
        StoreError: it cannot be opened, or has no such column.
    """
    path = Path(path)
    wanted = None if columns is None else list(columns)
    known = {part for name, _ in leaves(schema()) for part in (name, name.partition(".")[0])}
    for name in wanted or ():
        if name not in known:
            raise StoreError(f"{path} has no column {name!r}; it has {', '.join(schema().names)}")
    with _parquet(path) as file:
        _info(path, file)
        for index in range(file.num_row_groups):
            try:
                table = file.read_row_group(index, columns=wanted)
            except _damage() as error:
                raise _corrupt(path, f"{type(error).__name__}: {error}") from error
            yield table


def wave_info(path: Path) -> WaveInfo:
    """Describe a wave file from its footer alone. Raises as `read_wave` does."""
    with _parquet(path) as file:
        return _info(path, file)


def describe(
    path: Path, number: int, policy_version: int, trajectories: Sequence[Trajectory]
) -> tuple[WaveInfo, list[Trajectory]]:
    """Check and hash what is to be sealed at `path`; give it as it will be read back.

    Raises:
        BadSample: a trajectory breaks an invariant of its record.
        MessageError: a trajectory holds what no message can.
    """
    records = [_canonical(trajectory) for trajectory in trajectories]
    digest = _digest(number, policy_version, records)
    outcomes = count_outcomes(records)
    return WaveInfo(number, path, digest, policy_version, len(records), outcomes), records


def _canonical(trajectory: Trajectory) -> Trajectory:
    """Bring a record to the form it has after decoding.

    A reward given as the integer 1 encodes otherwise than the 1.0 that is read
    back; the hash is over what is read back.
    """
    trajectory.check()
    try:
        record: Trajectory = decoder(Trajectory).decode(encode(trajectory))
    except MessageError as error:
        raise MessageError(f"trajectory {trajectory.id!r}: {error}") from None
    return record


def _digest(number: int, policy_version: int, records: Sequence[Trajectory]) -> str:
    """Hash a wave: its number, its policy version, and each message with its length."""
    digest = blake2b(f"{FORMAT} {number} {policy_version}".encode(), digest_size=16)
    for record in records:
        payload = encode(record)
        digest.update(len(payload).to_bytes(8, "little"))
        digest.update(payload)
    return digest.hexdigest()


def wave_bytes(info: WaveInfo, records: Sequence[Trajectory]) -> bytes:
    """Give the whole file. In memory: a failure so far has touched no disk.

    Raises:
        StoreError: a value does not fit its column (an integer beyond 64 bits).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = _Footer(FORMAT, info.number, info.policy_version, info.digest, info.outcomes)
    kinds = list(leaves(schema()))
    out = BytesIO()
    try:
        with pq.ParquetWriter(
            out,
            schema().with_metadata({_KEY.encode(): msgspec.json.encode(footer)}),
            compression="zstd",
            # A dictionary takes every NaN for the same NaN; floats stay as they are.
            use_dictionary=[path for path, kind in kinds if not pa.types.is_floating(kind)],
            column_encoding={
                path: "BYTE_STREAM_SPLIT" for path, kind in kinds if pa.types.is_floating(kind)
            },
            write_page_checksum=True,
        ) as writer:
            for start in range(0, len(records), ROWS):
                writer.write_table(to_table(records[start : start + ROWS]), row_group_size=ROWS)
    except (pa.ArrowException, OverflowError) as error:
        raise StoreError(f"wave {footer.number} does not fit its columns: {error}") from error
    return out.getvalue()


def _parquet(path: Path) -> Any:
    """Open a wave file; damage in its footer is `WaveCorrupt`."""
    import pyarrow.parquet as pq

    try:
        path.open("rb").close()
    except OSError as error:
        raise StoreError(f"cannot read wave {path}: {error.strerror}; check the path") from error
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except _damage() as error:
        raise _corrupt(path, f"{type(error).__name__}: {error}") from error


def _info(path: Path, file: Any) -> WaveInfo:
    """Read what an open wave file says about itself."""
    try:
        raw = (file.schema_arrow.metadata or {})[_KEY.encode()]
        footer = msgspec.json.decode(raw, type=_Footer)
    except _damage() as error:
        raise _corrupt(path, f"no readable {_KEY} entry in its metadata") from error
    check_format(footer.format, path)
    return WaveInfo(
        footer.number,
        path,
        footer.digest,
        footer.policy_version,
        sum(footer.outcomes.values()),
        footer.outcomes,
    )


def _damage() -> tuple[type[BaseException], ...]:
    """What pyarrow and our decoding raise on bytes that are not what was written."""
    import pyarrow as pa

    return (
        pa.ArrowException,
        msgspec.MsgspecError,
        OSError,
        MemoryError,
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
    )


def _corrupt(path: Path, reason: str) -> WaveCorrupt:
    return WaveCorrupt(
        f"wave {path} is damaged ({reason.splitlines()[0][:300]}): restore it from a copy, or move "
        "it away and run the same command again to play its episodes anew; other waves are intact"
    )


def check_format(found: int, path: Path) -> None:
    """Raise `NotARun` unless this build reads that format."""
    if found != FORMAT:
        raise NotARun(
            f"{path} has format {found}, this version of Rollwave reads {FORMAT}: "
            "use the version that wrote it, or start a new run"
        )

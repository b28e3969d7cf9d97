"""Hugging Face's `datasets`: a directory of `save_to_disk`.

Written are the columns of a sealed wave, so everything is carried. Read are these, and the
columns of the row formats (a data set of AgentTraj, say); in a directory of several splits each
record belongs to its split.

Both ways the data passes as memory-mapped Arrow batches, not through memory.

Not here: fetching data sets, which is for `datasets` itself.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...engine.columns import from_table, schema, to_table
from ...engine.errors import BadDataFile, BadSample, ConfigError, MissingDependency, storage_error
from ...engine.trajectory import Trajectory
from .base import Format, Reading, Tally
from .files import ROWS, batches
from .recognition import by_columns


class HFDatasets(Format):
    """Directories of `datasets`."""

    name: ClassVar = "datasets"
    summary: ClassVar = "a directory of Hugging Face's datasets (save_to_disk); carries everything"
    suffixes: ClassVar = ()

    def read(self, path: Path, reading: Reading, tally: Tally) -> Iterator[Trajectory]:
        """Give the trajectories of a data set, or of each of its splits."""
        library = _library()
        try:
            loaded = library.load_from_disk(str(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadDataFile(
                f"{path} is not a directory of datasets' save_to_disk: {error}"
            ) from error
        parts = loaded if isinstance(loaded, library.DatasetDict) else {reading.split: loaded}
        for split, part in parts.items():
            of_split = replace(reading, split=split)
            tables = part.with_format("arrow").iter(ROWS)
            names = set(part.column_names)
            if set(schema().names) <= names:
                yield from map(reading.renamed, _own(path, tables, tally))
                continue
            rows = (row for table in tables for row in table.to_pylist())
            yield from by_columns(path, names).read_dicts(path, rows, of_split, tally)

    def write(self, path: Path, trajectories: Iterable[Trajectory], tally: Tally) -> None:
        """Write a data set with the columns of a sealed wave."""
        import pyarrow as pa

        library = _library()
        if path.exists():
            raise ConfigError(f"{path} exists: choose another directory")
        draft = path.with_name(f".{path.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        stream = draft / "rows.arrow"
        try:
            draft.mkdir(parents=True)
            with pa.ipc.new_stream(str(stream), schema()) as writer:
                for some in batches(trajectories):
                    writer.write_table(to_table(some))
                    tally.written += len(some)
            with _quiet(library):
                library.Dataset.from_file(str(stream)).save_to_disk(str(draft / "whole"))
            (draft / "whole").rename(path)
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _own(path: Path, tables: Iterable[Any], tally: Tally) -> Iterator[Trajectory]:
    """Read tables with the columns of a wave.

    Raises:
        BadDataFile: a column is of another type, or a row is no trajectory.
    """
    import pyarrow as pa

    wanted = schema()
    for table in tables:
        for field in wanted:
            kind = table.schema.field(field.name).type
            if _kind(kind) != _kind(field.type):
                raise BadDataFile(f"{path}: column {field.name} is {kind}, not {field.type}")
        try:
            found = list(from_table(table.select(wanted.names)))
            for trajectory in found:
                trajectory.check()
        except (pa.ArrowException, ValueError, LookupError, TypeError, BadSample) as error:
            raise BadDataFile(
                f"{path}, within {table.num_rows} items from item {tally.read}: {error}"
            ) from error
        tally.read += len(found)
        yield from found


def _kind(kind: Any) -> str:
    """Spell an Arrow type without what `datasets` does not keep: names of list elements, and
    whether nulls are allowed."""
    return re.sub(r" not null|\b(?:element|item): ", "", str(kind))


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingDependency(
            "directories of Hugging Face's datasets need it: pip install 'rollwave[datasets]'"
        ) from None
    return datasets


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Save without progress bars, which the command line has none of its own to mix with."""
    hidden = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            library.enable_progress_bars()

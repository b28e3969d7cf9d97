"""Which format something is in: by name, or by what a file looks like.

    a directory with run.json                      store
    a directory of `save_to_disk`                  datasets
    Parquet with a sealed wave's columns           store
    records                                        by their columns (`recognition`)

Invariant: a file that looks like none of these is refused with what was found in it.

Not here: the formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ...engine.errors import BadDataFile, ConfigError
from ...engine.trajectory import Trajectory
from .base import Format, Reading, Tally
from .files import first_columns
from .hf_datasets import HFDatasets
from .recognition import ROW_FORMATS, by_columns
from .runs import Runs

FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {form.name: form for form in (*ROW_FORMATS, HFDatasets(), Runs())}
)
"""Every format by its name."""


def find_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        ConfigError: there is none; the text lists those there are.
    """
    if name not in FORMATS:
        raise ConfigError(f"no data format {name!r}; there are: {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(path: Path) -> Format:
    """Say which format a file or directory is in.

    Raises:
        BadDataFile: it is missing, or in none that is known.
    """
    if path.is_dir():
        if (path / "run.json").exists():
            return FORMATS["store"]
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return FORMATS["datasets"]
        raise BadDataFile(
            f"{path} is neither a run directory (run.json) nor one of datasets' save_to_disk "
            "(state.json)"
        )
    names = first_columns(path)
    if path.suffix == ".parquet" and {"token_ids", "turns"} <= names:
        return FORMATS["store"]
    return by_columns(path, names)


def read(
    path: Path,
    form: str = "",
    reading: Reading | None = None,
    tally: Tally | None = None,
) -> Iterator[Trajectory]:
    """Give the trajectories of a file or directory, one after the other.

    Args:
        path: what to read.
        form: name of its format; "" to see for oneself.
        reading: what is taken for granted where it does not say.
        tally: counts while reading.

    Raises:
        BadDataFile: it is in no known format, or not of the format's form.
        ConfigError: there is no format of that name.
    """
    found = find_format(form) if form else detect(path)
    yield from found.read(path, reading or Reading(), tally or Tally())

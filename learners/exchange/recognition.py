"""Which format of rows has such columns.

    data_source, item_id                      openmanus
    item_id                                   agenttraj
    conversations                             sharegpt
    messages, or prompt and completion        trl

Invariant: columns of no format are refused by name; pairs are named as such.

Not here: directories and our own files (`finding`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ...engine.errors import BadDataFile
from .agenttraj import AgentTraj
from .openmanus import OpenManus
from .rows import RowFormat
from .sharegpt import ShareGPT
from .trl import TRL

ROW_FORMATS: Final[tuple[RowFormat[Any], ...]] = (AgentTraj(), OpenManus(), ShareGPT(), TRL())


def by_columns(path: Path, names: set[str]) -> RowFormat[Any]:
    """Find the row format that has such columns.

    Raises:
        BadDataFile: there is none.
    """
    if {"chosen", "rejected"} <= names:
        raise BadDataFile(f"{path} holds preference pairs, not trajectories; these only go out")
    if "item_id" in names:
        return OpenManus() if "data_source" in names else AgentTraj()
    if "conversations" in names:
        return ShareGPT()
    if "messages" in names or {"prompt", "completion"} <= names:
        return TRL()
    raise BadDataFile(
        f"{path} has the columns {', '.join(sorted(names)[:8])}, which are those of no format: "
        f"rename them to those of {', '.join(form.name for form in ROW_FORMATS)}"
    )

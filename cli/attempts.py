"""What several attempts at a task would give to somebody who chose among them, as a table.

Not here: the figures (`actors.best_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..actors.best_of import best_of
from ..engine.trajectory import Trajectory
from .output import Cell, Output


def report_attempts(trajectories: Sequence[Trajectory], output: Output) -> dict[str, Any] | None:
    """Print it, and give it as JSON keys; nothing where a task was tried once.

    JSON keys: `label`, `attempts`, `tasks`, `pass_at` and `best_at` (by k), `majority`,
    `likeliest`.
    """
    found = best_of(trajectories)
    if found is None:
        return None
    rows: list[list[Cell]] = [
        [f"best of {k}", f"{found.pass_at[k]:.1%}", found.best_at[k], found.label if k > 1 else ""]
        for k in found.pass_at
    ]
    rows.append(["the actions most took", None, found.majority, "chosen without the reward"])
    if found.likeliest is not None:
        rows.append(["the likeliest", None, found.likeliest, "chosen without the reward"])
    output.table(
        ["of the attempts at a task", "pass@k", "reward", ""],
        rows,
        title=f"{found.tasks} tasks, {found.attempts} attempts or more at each",
    )
    return asdict(found)

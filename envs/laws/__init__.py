"""The laws: what must hold in every environment, and a search for what breaks them.

    from rollwave.envs.laws import check
    for result in check("maze-grid-v1?size=4"):
        print(result)

`check` searches with Hypothesis for what breaks each law of `single`: legal actions, the
expert's, legal ones twisted, and hostile text. A failure is shrunk to the fewest and
plainest actions, and given with the task and the seed of the episode. `machine` makes a
stateful test in which several sessions at once are reset, stepped, snapshotted, restored
and closed in any order.

Hypothesis is imported in this package alone, which only those who test environments import.
"""

from __future__ import annotations

from ...engine.errors import MissingDependency

try:
    import hypothesis as _  # noqa: F401
except ImportError:
    raise MissingDependency("the laws need hypothesis: pip install 'rollwave[laws]'") from None

from .machine import SessionsMachine, machine
from .scripts import HOSTILE, moves, scripts, tasks
from .search import CARRIED, LAWS, LawResult, broken, check

__all__ = [
    "CARRIED",
    "HOSTILE",
    "LAWS",
    "LawResult",
    "SessionsMachine",
    "broken",
    "check",
    "machine",
    "moves",
    "scripts",
    "tasks",
]

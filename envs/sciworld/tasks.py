"""Which tasks there are: 30 kinds with 7,207 variations, under three numberings.

The kinds, how many variations each has, and which of these train, tune and test are the
package's own; a test compares the table with it. A number means a kind and a variation:

* "data": as in the published trajectories. AgentGym's 22 kinds have 0 to 4338;
* "server": as on AgentGym's server of today, which has one kind more in their midst (all
  from 1096 on is shifted by 300): 23 kinds, 0 to 4638;
* "all": the package's kinds in its own order.

In each the kinds that are left over follow, so that all 7,207 can be played.

Splits. `train`, `dev` and `test` are the package's; no room, substance or creature of a kind
is arranged in two of them in the same way. `unseen` differs in kind: the growing of
plants, inclined planes and heredity, which AgentGym has left out, and in "data" one kind
of measuring more. Every published trajectory at hand is of `train`.

Invariant: the numberings and the splits are fixed; a change is a new version of the
environment.

Not here: sessions (`environment`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import accumulate
from typing import Final, NamedTuple

from ...engine.errors import ConfigError


class Kind(NamedTuple):
    """One kind of task."""

    id: str
    """The package's number of it."""
    name: str
    train: int
    """Variations below this train,"""
    dev: int
    """from there to this tune,"""
    variations: int
    """and the others test."""


KINDS: Final = (
    Kind("1-1", "boil", 14, 21, 30),
    Kind("1-2", "melt", 14, 21, 30),
    Kind("1-3", "freeze", 14, 21, 30),
    Kind("1-4", "change-the-state-of-matter-of", 14, 21, 30),
    Kind("2-1", "use-thermometer", 270, 405, 540),
    Kind("2-2", "measure-melting-point-known-substance", 218, 327, 436),
    Kind("2-3", "measure-melting-point-unknown-substance", 150, 225, 300),
    Kind("3-1", "power-component", 10, 15, 20),
    Kind("3-2", "power-component-renewable-vs-nonrenewable-energy", 10, 15, 20),
    Kind("3-3", "test-conductivity", 450, 675, 900),
    Kind("3-4", "test-conductivity-of-unknown-substances", 300, 450, 600),
    Kind("4-1", "find-living-thing", 150, 225, 300),
    Kind("4-2", "find-non-living-thing", 150, 225, 300),
    Kind("4-3", "find-plant", 150, 225, 300),
    Kind("4-4", "find-animal", 150, 225, 300),
    Kind("5-1", "grow-plant", 62, 93, 126),
    Kind("5-2", "grow-fruit", 62, 93, 126),
    Kind("6-1", "chemistry-mix", 16, 24, 32),
    Kind("6-2", "chemistry-mix-paint-secondary-color", 18, 27, 36),
    Kind("6-3", "chemistry-mix-paint-tertiary-color", 18, 27, 36),
    Kind("7-1", "lifespan-longest-lived", 62, 93, 125),
    Kind("7-2", "lifespan-shortest-lived", 62, 93, 125),
    Kind("7-3", "lifespan-longest-lived-then-shortest-lived", 62, 93, 125),
    Kind("8-1", "identify-life-stages-1", 6, 9, 14),
    Kind("8-2", "identify-life-stages-2", 4, 6, 10),
    Kind("9-1", "inclined-plane-determine-angle", 84, 126, 168),
    Kind("9-2", "inclined-plane-friction-named-surfaces", 692, 1038, 1386),
    Kind("9-3", "inclined-plane-friction-unnamed-surfaces", 80, 120, 162),
    Kind("10-1", "mendelian-genetics-known-plant", 60, 90, 120),
    Kind("10-2", "mendelian-genetics-unknown-plant", 240, 360, 480),
)
"""In the package's order (1.2.3)."""

UNSEEN: Final = frozenset({"5-1", "5-2", "9-1", "9-2", "9-3", "10-1", "10-2"})
"""Kinds that AgentGym's server leaves out."""
UNPUBLISHED: Final = UNSEEN | {"2-3"}
"""Kinds of which it has published no trajectory."""


class Ids(StrEnum):
    """The numberings."""

    DATA = "data"
    SERVER = "server"
    ALL = "all"


@dataclass(frozen=True)
class Table:
    """One numbering."""

    kinds: tuple[Kind, ...]
    """In the order of the numbers."""
    unseen: frozenset[str]
    """Kinds of the split of that name, by id."""
    _ends: tuple[int, ...]

    def __len__(self) -> int:
        """How many tasks there are."""
        return self._ends[-1]

    def task(self, index: int) -> tuple[Kind, int]:
        """Kind and variation of a number.

        Raises:
            ConfigError: there is no such task.
        """
        if not 0 <= index < len(self):
            raise ConfigError(f"sciworld has tasks 0 to {len(self) - 1}, not {index}")
        place = bisect_right(self._ends, index)
        kind = self.kinds[place]
        return kind, index - self._ends[place] + kind.variations

    def number(self, name: str, variation: int) -> int:
        """The number of a kind's variation.

        Raises:
            ConfigError: there is no such kind or variation.
        """
        for kind, end in zip(self.kinds, self._ends, strict=True):
            if kind.name == name and 0 <= variation < kind.variations:
                return end - kind.variations + variation
        raise ConfigError(f"sciworld has no variation {variation} of {name!r}")

    def splits(self) -> Mapping[str, tuple[int, ...]]:
        """Task numbers by split."""
        parts: dict[str, list[int]] = {"train": [], "dev": [], "test": [], "unseen": []}
        for kind, end in zip(self.kinds, self._ends, strict=True):
            first = end - kind.variations
            if kind.id in self.unseen:
                parts["unseen"] += range(first, end)
                continue
            parts["train"] += range(first, first + kind.train)
            parts["dev"] += range(first + kind.train, first + kind.dev)
            parts["test"] += range(first + kind.dev, end)
        return {name: tuple(members) for name, members in parts.items()}


@cache
def table(ids: Ids) -> Table:
    """The numbering of that name."""
    last = {Ids.DATA: UNPUBLISHED, Ids.SERVER: UNSEEN, Ids.ALL: frozenset[str]()}[ids]
    kinds = tuple(sorted(KINDS, key=lambda kind: kind.id in last))
    ends = tuple(accumulate(kind.variations for kind in kinds))
    return Table(kinds, last or UNSEEN, ends)

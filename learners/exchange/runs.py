"""Our own: a run directory, or one sealed wave of it.

Carries everything. Trajectories are sealed by the number of their wave, which is held in
memory whole; reading verifies every wave.

Not here: the files (`engine.store`, `engine.wavefile`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Final

from ...engine.errors import ConfigError
from ...engine.store import Store, read_wave
from ...engine.trajectory import Trajectory
from .base import Format, Reading, Tally

_SETTINGS: Final = {"command": "data convert"}


class Runs(Format):
    """Run directories and sealed waves."""

    name: ClassVar = "store"
    summary: ClassVar = "our own: a run directory (a sealed wave is read, too); carries everything"
    suffixes: ClassVar = ()

    def read(self, path: Path, reading: Reading, tally: Tally) -> Iterator[Trajectory]:
        """Give the trajectories of every sealed wave, in order."""
        if path.is_dir():
            with Store.open(path, exclusive=False) as store:
                for info in store.waves():
                    yield from self._wave(info.path, reading, tally)
        else:
            yield from self._wave(path, reading, tally)

    def _wave(self, path: Path, reading: Reading, tally: Tally) -> Iterator[Trajectory]:
        for trajectory in read_wave(path).trajectories:
            tally.read += 1
            yield reading.renamed(trajectory)

    def write(self, path: Path, trajectories: Iterable[Trajectory], tally: Tally) -> None:
        """Make a run directory.

        Raises:
            ConfigError: there are no trajectories.
            NotARun: the directory holds something else.
            StoreError: it holds a run whose waves have these numbers.
        """
        waves: dict[int, list[Trajectory]] = {}
        for trajectory in trajectories:
            waves.setdefault(trajectory.wave, []).append(trajectory)
        if not waves:
            raise ConfigError(f"nothing to put into {path}: no trajectory was read")
        with Store.open(path, settings=_SETTINGS) as store:
            for number, members in sorted(waves.items()):
                store.seal(number, max(t.versions[1] for t in members), members)
                tally.written += len(members)

"""A run directory as a reader sees it: sealed waves, and what its journal holds.

Invariant: it only reads; no lock is taken, so that a run can be looked at while
it is being written.

Not here: the directory's layout (`engine.store`, `actors.waves`) and how it is
shown (`inspect`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from ..engine.errors import ConfigError, NotARun
from ..engine.store import Store
from ..engine.trajectory import Outcome, Trajectory, count_outcomes
from ..engine.wavefile import WaveInfo, scan_wave


@dataclass(frozen=True, slots=True)
class WaveLine:
    """One wave of a run, as the overview lists it."""

    number: int
    sealed: bool
    """False: still in its journal; the same command goes on with it."""
    policy_version: int | None
    trajectories: int
    in_flight: int
    """Episodes that have begun and not ended: live now, or interrupted and gone on with."""
    outcomes: Mapping[str, int]
    success_rate: float | None
    """Successes over scored trajectories: faults and cancellations are not failures."""
    average_reward: float | None
    path: str
    digest: str


class Run:
    """One run directory, read only."""

    def __init__(self, directory: Path) -> None:
        """Open it.

        Raises:
            NotARun: there is no run of ours there.
        """
        if not directory.is_dir():
            raise NotARun(f"{directory} is not a directory: give the --out of a rollwave command")
        self.store: Final = Store.open(directory, exclusive=False)
        self._sealed: Final = {info.number: info for info in self.store.waves()}
        self._unsealed, self._in_flight = _unsealed(self.store, self._sealed)

    @property
    def numbers(self) -> list[int]:
        """The waves there are, sealed or not."""
        return sorted([*self._sealed, *self._unsealed])

    def read(self, number: int) -> Sequence[Trajectory]:
        """Read the trajectories of a wave.

        Raises:
            ConfigError: the run has no such wave.
        """
        if number in self._sealed:
            return self.store.read(number).trajectories
        if number in self._unsealed:
            return self._unsealed[number]
        known = ", ".join(map(str, self.numbers)) or "none yet"
        raise ConfigError(f"{self.store.path} has no wave {number}; it has: {known}")

    def lines(self) -> Iterator[WaveLine]:
        """Sum up each wave. Sealed ones are not read whole: counts, and one column."""
        for number in self.numbers:
            info = self._sealed.get(number)
            if info is None:
                records = self.read(number)
                rewards = [t.reward for t in records if t.reward is not None]
                live = self._in_flight[number]
                yield _line(number, None, count_outcomes(records), rewards, live)
            else:
                yield _line(number, info, info.outcomes, _rewards(info.path))

    def find(self, id_: str, wave: int | None) -> Trajectory:
        """Find a trajectory by id, in one wave or in all.

        Raises:
            ConfigError: there is none; the text says the nearest id.
        """
        seen: list[str] = []
        for number in self.numbers if wave is None else [wave]:
            for trajectory in self.read(number):
                if trajectory.id == id_:
                    return trajectory
                seen.append(trajectory.id)
        near = get_close_matches(id_, seen, n=1) or seen[:1]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no trajectory {id_!r} among {len(seen)} in {self.store.path}{hint}")


def _unsealed(
    store: Store, sealed: Container[int]
) -> tuple[dict[int, list[Trajectory]], Counter[int]]:
    """Read what the journal holds of waves that are not sealed: the trajectories of each, and
    how many episodes of it have begun and not ended."""
    waves: dict[int, list[Trajectory]] = {}
    live: Counter[int] = Counter()
    if not store.journal_path.exists():
        return waves, live
    from ..actors.dispatcher import wave_of
    from ..actors.turnlog import read_progress

    ended, begun = read_progress(store.journal_path)
    for trajectory in ended.values():
        if trajectory.wave not in sealed:
            waves.setdefault(trajectory.wave, []).append(trajectory)
    for number in map(wave_of, begun):
        if number not in sealed:
            waves.setdefault(number, [])
            live[number] += 1
    return waves, live


def _rewards(path: Path) -> list[float]:
    """Read the rewards of a sealed wave, and nothing else of it."""
    rewards: list[float] = []
    for table in scan_wave(path, ["reward"]):
        rewards += [value for value in table.column("reward").to_pylist() if value is not None]
    return rewards


def _line(
    number: int,
    info: WaveInfo | None,
    outcomes: Mapping[str, int],
    rewards: Sequence[float],
    in_flight: int = 0,
) -> WaveLine:
    scored = sum(outcomes.get(outcome.value, 0) for outcome in Outcome if outcome.scored)
    return WaveLine(
        number=number,
        sealed=info is not None,
        policy_version=info.policy_version if info else None,
        trajectories=sum(outcomes.values()),
        in_flight=in_flight,
        outcomes=dict(outcomes),
        success_rate=outcomes.get(Outcome.SUCCESS.value, 0) / scored if scored else None,
        average_reward=sum(rewards) / len(rewards) if rewards else None,
        path=str(info.path) if info else "",
        digest=info.digest if info else "",
    )

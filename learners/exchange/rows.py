"""A format of rows: one trajectory is one record of a JSON or Parquet file.

Invariant: every row that is written was read back first: a conversation that does not come
back word for word is left out, and whatever else does not is counted as lost.

Not here: the rows of each format (its own module), and files (`files`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from ...engine.agenttraj import Cut
from ...engine.errors import BadDataFile
from ...engine.trajectory import Trajectory
from .base import Format, Reading, Tally
from .building import About, Builder
from .comparison import lost, same_words
from .files import read_rows, rows_of_dicts, write_rows

R = TypeVar("R", bound=msgspec.Struct)


class CannotCarry(Exception):
    """A trajectory of which this format has no record; its text is the reason's name."""


class RowFormat(Format, Generic[R]):
    """A format whose records stand one after the other."""

    row: ClassVar[type[msgspec.Struct]]
    """The record, as far as it is read."""

    @abstractmethod
    def parts(self, where: str, row: R) -> tuple[Cut, About] | None:
        """Take a record apart; None if it has no conversation.

        Raises:
            BadDataFile: it cannot be cut into turns.
        """

    @abstractmethod
    def encode(self, trajectory: Trajectory, number: int) -> R:
        """Give the record of a scored trajectory that has turns.

        Raises:
            CannotCarry: there is none.
        """

    def schema(self) -> Any:
        """Return the `pyarrow.Schema` of its Parquet files; None if it has none."""
        return None

    def read(self, path: Path, reading: Reading, tally: Tally) -> Iterator[Trajectory]:
        """Give the trajectories of a JSON or Parquet file."""
        yield from self._trajectories(path, read_rows(path, self.row, self.name), reading, tally)

    def read_dicts(
        self, path: Path, rows: Iterable[Any], reading: Reading, tally: Tally
    ) -> Iterator[Trajectory]:
        """Give the trajectories of rows that are dictionaries already."""
        found = rows_of_dicts(path, rows, self.row, self.name)
        yield from self._trajectories(path, found, reading, tally)

    def write(self, path: Path, trajectories: Iterable[Trajectory], tally: Tally) -> None:
        """Write one row a trajectory, as far as there is one for it."""
        self.require_suffix(path)
        write_rows(path, self._rows(trajectories, tally), self.schema())

    def _trajectories(
        self, path: Path, rows: Iterable[Any], reading: Reading, tally: Tally
    ) -> Iterator[Trajectory]:
        builder = Builder(reading, tally)
        for number, row in enumerate(rows):
            tally.read += 1
            where = f"{path}, item {number}"
            found = self.parts(where, row)
            if found is None:
                tally.left_out["no_conversation"] += 1
            else:
                yield builder.build(where, number, *found)

    def _rows(self, trajectories: Iterable[Trajectory], tally: Tally) -> Iterator[R]:
        builder = Builder(Reading(), Tally())
        for trajectory in trajectories:
            if reason := _unfit(trajectory):
                tally.left_out[reason] += 1
                continue
            try:
                row = self.encode(trajectory, tally.written)
                found = self._read_back(row)
            except CannotCarry as error:
                tally.left_out[str(error)] += 1
                continue
            if found is None or not same_words(trajectory, found[0]):
                tally.left_out["conversation"] += 1
                continue
            tally.lost.update(lost(trajectory, builder.build("", tally.written, *found)))
            tally.written += 1
            yield row

    def _read_back(self, row: R) -> tuple[Cut, About] | None:
        """Give what a reader will find; None if it will refuse the row."""
        try:
            # As bytes and back: what is read may be less than what is written.
            back: Any = msgspec.json.decode(msgspec.json.encode(row), type=self.row)
            return self.parts("", back)
        except BadDataFile:
            return None
        except UnicodeEncodeError:
            raise CannotCarry("not_unicode") from None


def _unfit(trajectory: Trajectory) -> str:
    """Name why a conversation cannot stand for the episode, or nothing."""
    if not trajectory.outcome.scored:
        return trajectory.outcome.value
    return "" if trajectory.turns else "no_turns"

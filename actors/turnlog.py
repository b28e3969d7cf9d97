"""The turns of live episodes, journalled as they are taken, and read back after a crash.

    session ─ record ─▶ journal          nobody waits: a commit takes it along
    crash, same command ─▶ begun ─▶ RunEpisode.turns ─▶ the session goes on behind them

Invariants:

* what `begun` gives for an episode is a prefix of the turns it took, in order, from turn
  0 on, all under one seed: a hole, or a turn of another seed, ends or replaces it;
* a turn that cannot be logged costs nothing but itself and what follows it in the log.

Turns are a convenience, not a promise: those of the last moments before a crash may be
missing, and are played again. Only ended episodes are acknowledged (`collector`).

Not here: how an episode is rebuilt from its turns (`session`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..engine.errors import MessageError, StoreError
from ..engine.journal import Journal, read_journal
from ..engine.trajectory import Outcome, Trajectory
from .protocol import TurnTaken


class TurnLog:
    """Where the sessions of one rollout log their turns."""

    __slots__ = ("_journal", "_stir")

    def __init__(self, journal: Journal, stir: Callable[[], None]) -> None:
        """`stir` is called after each record, so that somebody commits it before long."""
        self._journal = journal
        self._stir = stir

    def record(self, taken: TurnTaken) -> None:
        """Append a turn, without waiting for the disk.

        A turn that no message can carry (too large, half a character) is left out; a journal
        that has been closed is the collector's to complain about.
        """
        with suppress(MessageError, StoreError):
            self._journal.append(taken)
            self._stir()


def read_progress(path: Path) -> tuple[dict[str, Trajectory], dict[str, tuple[TurnTaken, ...]]]:
    """Read the journal of an unsealed wave: what has ended, and what had begun. Blocks.

    Returns:
        Ended episodes by id (the last record of an id counts; cancelled ones are not among
        them: they are played again), and the turns of those that have not.

    Raises:
        JournalCorrupt: damaged other than by a torn tail.
        StoreError: the file cannot be read.
    """
    ended: dict[str, Trajectory] = {}
    begun: dict[str, list[TurnTaken]] = {}
    for record in read_journal(path, Trajectory, TurnTaken):
        if isinstance(record, Trajectory):
            if record.outcome is not Outcome.CANCELLED:
                ended[record.id] = record
                begun.pop(record.id, None)
        elif isinstance(record, TurnTaken):
            turns = begun.setdefault(record.episode, [])
            if record.number == 0:
                turns[:] = [record]
            elif record.number == len(turns) and record.seed == turns[0].seed:
                turns.append(record)
    return ended, {id_: tuple(turns) for id_, turns in begun.items() if turns}

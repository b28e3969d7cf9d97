"""What a run directory has acknowledged, and whether anything of it is lost later.

    look(run) ─▶ Look ─┐
                       ├─▶ Audit: lost, doubled, changed; episodes that went on in the middle
    after each crash ──┘

An episode counts as acknowledged once its record is in the journal or in a sealed wave;
it is told by store and id. Turns of live episodes are no promise: of them it is only
counted how many episodes went on behind theirs.

Invariant: nothing is written; a run is read as anybody can read it, journal and Parquet.

Not here: the crashes (`crashes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from ..actors.protocol import TurnTaken
from ..engine.codec import encode
from ..engine.journal import read_journal
from ..engine.store import read_wave
from ..engine.trajectory import Outcome, Trajectory, Turn

STORES: Final = ("", "evaluations/dev", "evaluations/test")
"""Where a campaign keeps trajectories, below its run directory."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is on the disk at one moment."""

    records: Mapping[str, str]
    """Hash of each acknowledged trajectory, by store and id."""
    sealed: Mapping[str, str]
    """Hash of each sealed wave's file, by path below the run."""
    doubled: Sequence[str]
    """Ids with more than one record in one journal or one wave."""
    begun: Mapping[str, tuple[Turn, ...]]
    """Turns of each episode that was in flight."""
    ended: Mapping[str, tuple[Turn, ...]]
    """Turns of each that was not."""


def look(run: Path) -> Look:
    """Read a run that nobody writes to.

    Raises:
        JournalCorrupt, WaveCorrupt: it is damaged.
    """
    records: dict[str, str] = {}
    sealed: dict[str, str] = {}
    doubled: list[str] = []
    begun: dict[str, list[Turn]] = {}
    ended: dict[str, tuple[Turn, ...]] = {}

    def take(store: str, found: Sequence[Trajectory]) -> None:
        counts = Counter(t.id for t in found)
        doubled.extend(f"{store}:{id_}" for id_, n in counts.items() if n > 1)
        for t in found:
            key = f"{store}:{t.id}"
            records[key] = hash_bytes(encode(t))
            ended[key] = t.turns
            begun.pop(key, None)

    for store in STORES:
        finished: list[Trajectory] = []
        for record in read_journal(run / store / "journal.msgpack", Trajectory, TurnTaken):
            if isinstance(record, TurnTaken):
                turns = begun.setdefault(f"{store}:{record.episode}", [])
                turns[record.number :] = [record.turn]
            elif isinstance(record, Trajectory) and record.outcome is not Outcome.CANCELLED:
                finished.append(record)
        take(store, finished)
        for path in sorted((run / store / "waves").glob("wave-*.parquet")):
            take(store, read_wave(path).trajectories)
            sealed[str(path.relative_to(run))] = hash_bytes(path.read_bytes())
    live = {key: tuple(turns) for key, turns in begun.items()}
    return Look(records, sealed, doubled, live, ended)


@dataclass(slots=True)
class Audit:
    """Looks at one run, one after the other, across its crashes."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    in_flight: int = 0
    """Episodes that a crash caught behind their first logged turn."""
    resumed: int = 0
    """Of them: ended with those very turns, times included: they were not played again."""
    restarted: int = 0
    """Of them: ended otherwise."""
    looks: int = 0
    records: int = 0
    """Acknowledged trajectories that were looked for again, crash by crash."""
    _seen: dict[str, str] = field(default_factory=dict)
    _sealed: dict[str, str] = field(default_factory=dict)
    _begun: dict[str, tuple[Turn, ...]] = field(default_factory=dict)

    def add(self, now: Look) -> None:
        """Compare with everything seen before, and remember it."""
        self.looks += 1
        self.records += len(self._seen)
        self.lost += sorted(self._seen.keys() - now.records.keys())
        self.lost += sorted(self._sealed.keys() - now.sealed.keys())
        self.doubled += now.doubled
        for before, after in ((self._seen, now.records), (self._sealed, now.sealed)):
            self.changed += [key for key in before if key in after and before[key] != after[key]]
            before.update(after)
        self._follow(now)

    def _follow(self, now: Look) -> None:
        """See what became of the episodes that were in flight, and which are now."""
        for key, turns in list(self._begun.items()):
            later = now.ended.get(key, now.begun.get(key))
            if later is None or later[: len(turns)] != turns:
                self.restarted += 1
            elif key in now.ended:
                self.resumed += 1
            else:
                continue  # not yet gone on with
            del self._begun[key]
        self.in_flight += len(now.begun.keys() - self._begun.keys())
        self._begun |= now.begun


def outcome(run: Path) -> dict[str, Any]:
    """What a finished campaign came to, without times and paths: equal for equal campaigns."""
    waves = {
        str(path.relative_to(run)): hash_bytes(
            msgspec.msgpack.encode([_told(t) for t in read_wave(path).trajectories])
        )
        for store in STORES
        for path in sorted((run / store / "waves").glob("wave-*.parquet"))
    }
    models = {
        str(path.parent.relative_to(run)): hash_bytes(path.read_bytes())
        for path in sorted((run / "models").glob("*/model.safetensors"))
    }
    report = msgspec.json.decode((run / "report.json").read_bytes())
    rows = [{k: v for k, v in row.items() if k != "model"} for row in report["rows"]]
    table = {**report, "rows": rows, "out": ""}
    return {"waves": waves, "models": models, "table": table}


def _told(t: Trajectory) -> tuple[object, ...]:
    """What happened in an episode, without when."""
    turns = [(turn.observation, turn.completion, turn.action, turn.reward) for turn in t.turns]
    tokens = (t.token_ids, t.loss_mask, t.logprobs)
    return (t.id, t.outcome, t.reward, t.seed, t.versions, tokens, turns)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name what differs between two outcomes."""
    found = []
    for part in ("waves", "models"):
        names = one[part].keys() | other[part].keys()
        found += sorted(n for n in names if one[part].get(n) != other[part].get(n))
    return found + ["report.json"] * (one["table"] != other["table"])


def hash_bytes(data: bytes) -> str:
    """Hash of some bytes."""
    return blake2b(data, digest_size=16).hexdigest()

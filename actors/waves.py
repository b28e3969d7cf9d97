"""One wave: play it into a journal, then seal it into the store.

Resumable at any moment: a sealed wave is read back; an unsealed one goes on with
the episodes that its journal does not hold, and in the middle of those whose turns it
holds. Cancelled episodes are played again; faulted ones are not (a fault is a result,
and is counted), unless there were so many that the wave was given up.

Invariants:

* the sealed wave holds the manifest's episodes in manifest order, so the same results
  give the same file whatever order they arrived in;
* a wave with too many faults is never sealed: nobody learns from a broken world.

Not here: what a wave is for (`campaign`, the command line).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ..engine.blocking import run_blocking
from ..engine.clock import deadline
from ..engine.errors import ConfigError, DeadlineExceeded, StoreError, TooManyFaults
from ..engine.journal import Journal
from ..engine.store import Store
from ..engine.trajectory import Outcome, Trajectory, Wave
from ..envs.base import Task
from .dispatcher import trajectory_id
from .embedding import Engine
from .monitor import Watch
from .protocol import Opening, Sampling
from .turnlog import read_progress

WAVE_SECONDS: Final = 24 * 3600.0
"""Deadline of a wave, if none is given."""

_SEAL_SECONDS: Final = 600.0
"""Deadline of sealing a wave: encoding it, and one write."""

_ROUNDS: Final = 5
"""Times that a wave is begun in one process without an episode more: each death of a
dispatcher begins it anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WavePlan:
    """What a wave is: its tasks, how often, and how completions are drawn."""

    number: int
    tasks: Sequence[Task]
    attempts: int = 1
    sampling: Sampling | None = None
    turn_limit: int = 0
    policy_version: int = 0
    openings: Mapping[str, Opening] = field(default_factory=dict)
    """Where there are any, the wave is these episodes alone (`branches`)."""

    def attempted(self) -> list[str]:
        """The trajectory ids of every attempt at every task, in order."""
        return [
            trajectory_id(self.number, task.id, attempt)
            for task in self.tasks
            for attempt in range(self.attempts)
        ]

    def manifest(self) -> list[str]:
        """The trajectory ids of the wave, in order."""
        return [id_ for id_ in self.attempted() if not self.openings or id_ in self.openings]


def require_settings(store: Store, settings: Mapping[str, str]) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        ConfigError: a setting differs; the text names the first, both ways.
    """
    for key, value in settings.items():
        had = store.settings.get(key)
        if had != value:
            raise ConfigError(
                f"{store.path} holds a run with {key} = {had!r}, not {value!r}: "
                "give the same settings to go on with it, or choose another --out directory"
            )


async def play_wave(
    engine: Engine,
    store: Store,
    plan: WavePlan,
    *,
    watch: Watch | None = None,
    stage: str = "",
    max_fault_share: float = 1.0,
    seconds: float = WAVE_SECONDS,
) -> Wave:
    """Play what is missing of a wave and seal it.

    Args:
        engine: plays it.
        store: where it is journalled and sealed.
        plan: what it is.
        watch: told a snapshot for each record that arrives.
        stage: the snapshot's words for what is being done.
        max_fault_share: of the wave's episodes; with more faults it is given up.
        seconds: deadline of the whole wave.

    Raises:
        TooManyFaults: the world is broken. The wave is not sealed, and the same command
            plays what faulted again. Or it was sealed when more was allowed.
        DeadlineExceeded: the wave took too long; names what was stuck.
        StorageFailed: the disk refused a record; what was journalled before is kept.
        StoreError: episodes are missing at the end (cancelled under us).
    """
    sealed = await read_sealed(store, plan.number, max_fault_share=max_fault_share)
    if sealed is not None:
        return sealed
    playing = _Playing(engine, store, plan, watch, stage or f"wave {plan.number}", max_fault_share)
    await playing.load()
    try:
        with deadline(playing.stage, seconds):
            idle = 0
            while idle < _ROUNDS and (missing := len(playing.missing())):
                if not await playing.round():
                    break
                idle = idle + 1 if len(playing.missing()) == missing else 0
    except DeadlineExceeded as late:
        lacking = len(playing.missing())
        stuck = playing.stuck or "nothing was being played"
        raise DeadlineExceeded(
            f"{late}: {lacking} of {len(playing.manifest)} episodes had not ended; longest in one "
            f"stage was {stuck}. What has ended is kept; the same command goes on"
        ) from None
    return await playing.seal()


async def read_sealed(store: Store, number: int, *, max_fault_share: float = 1.0) -> Wave | None:
    """Read a wave that was sealed; None if it has not been.

    Raises:
        TooManyFaults: it was sealed when more faults were allowed.
        WaveCorrupt: its file is damaged.
    """
    if not store.sealed(number):
        return None
    wave = await run_blocking(store.read, number)
    faults = sum(t.outcome is Outcome.FAULT for t in wave.trajectories)
    if faults > max_fault_share * len(wave.trajectories):
        raise TooManyFaults(
            f"wave {number} of {store.path} was sealed with {faults} faults among "
            f"{len(wave.trajectories)} episodes, above the allowed share of "
            f"{max_fault_share:g}: allow as many with run.max_fault_share, or start a new run"
        )
    return wave


class _Playing:
    """A wave while it is played: what has ended of it so far."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        plan: WavePlan,
        watch: Watch | None,
        stage: str,
        max_fault_share: float,
    ) -> None:
        self.stage = stage
        self.manifest = plan.manifest()
        self.stuck = ""
        self._wanted = frozenset(self.manifest)
        self._engine = engine
        self._store = store
        self._plan = plan
        self._watch = watch
        self._max_fault_share = max_fault_share
        self._ended: dict[str, Trajectory] = {}

    async def load(self) -> None:
        """Take what an earlier process left in the journal."""
        ended, _ = await run_blocking(read_progress, self._store.journal_path)
        self._ended = {id_: record for id_, record in ended.items() if id_ in self._wanted}
        if self._too_many():
            # It was given up for them. If the world still is broken, that shows again.
            kept = self._ended.items()
            self._ended = {id_: t for id_, t in kept if t.outcome is not Outcome.FAULT}

    def missing(self) -> list[str]:
        """Ids of the episodes that have not ended, or were cancelled."""
        return [
            id_
            for id_ in self.manifest
            if id_ not in self._ended or self._ended[id_].outcome is Outcome.CANCELLED
        ]

    async def round(self) -> bool:
        """Play what is missing; False if somebody stopped it, and it should stay so.

        A dispatcher that dies leaves episodes cancelled that nobody wanted cancelled.
        """
        plan = self._plan
        missing, store = frozenset(self.missing()), self._store
        _, begun = await run_blocking(read_progress, store.journal_path)
        async with await Journal.open(store.journal_path, disk=store.disk) as journal:
            rollout = self._engine.rollout(
                plan.tasks,
                attempts=plan.attempts,
                wave=plan.number,
                sampling=plan.sampling,
                turn_limit=plan.turn_limit,
                journal=journal,
                skip=tuple(id_ for id_ in plan.attempted() if id_ not in missing),
                resume={id_: turns for id_, turns in begun.items() if id_ in missing},
                openings=plan.openings,
            )
            async with rollout:
                try:
                    async for trajectory in rollout:
                        self._ended[trajectory.id] = trajectory
                        if self._watch is not None:
                            self._watch(rollout.snapshot(self.stage))
                        if trajectory.outcome is Outcome.FAULT:
                            self._require_sound()
                except trio.Cancelled:
                    self.stuck = rollout.stuck()
                    raise
                return not rollout.cancelled

    async def seal(self) -> Wave:
        """Seal it, and let the journal go."""
        plan = self._plan
        missing = self.missing()
        if missing:
            raise StoreError(
                f"wave {plan.number} misses {len(missing)} of {len(self.manifest)} episodes "
                f"(first: {missing[0]}); run the same command again to play them"
            )
        records = [self._ended[id_] for id_ in self.manifest]
        with deadline(f"sealing wave {plan.number}", _SEAL_SECONDS):
            # Abandoned, it may still seal the wave: then the next run finds it sealed.
            info = await run_blocking(
                self._store.seal,
                plan.number,
                plan.policy_version,
                records,
                abandon_on_cancel=True,
            )
        # The sealed wave holds everything that it held.
        self._store.journal_path.unlink(missing_ok=True)
        return Wave(plan.number, plan.policy_version, info.digest, tuple(records))

    def _faults(self) -> list[Trajectory]:
        return [t for t in self._ended.values() if t.outcome is Outcome.FAULT]

    def _too_many(self) -> bool:
        return len(self._faults()) > self._max_fault_share * len(self.manifest)

    def _require_sound(self) -> None:
        """Refuse to go on in a broken world, as soon as that is certain."""
        if not self._too_many():
            return
        faults = self._faults()
        kinds = Counter(t.fault.kind.value for t in faults if t.fault is not None)
        counts = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        first = faults[0]
        text = first.fault.text if first.fault is not None else ""
        raise TooManyFaults(
            f"{self.stage}: {len(faults)} of {len(self.manifest)} episodes are faults ({counts}), "
            f"above the allowed share of {self._max_fault_share:g}; the first is {first.id}, "
            f"{text}. Mend what broke and run the same command: they are played again. Or allow "
            "more with run.max_fault_share"
        )

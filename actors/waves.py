"""One wave: play it into a journal, then seal it into the store.

Resumable at any moment: a sealed wave is read back; an unsealed one goes on with
the episodes that its journal does not hold. Cancelled episodes are played again,
faulted ones are not (a fault is a result, and is counted).

Invariant: the sealed wave holds the manifest's episodes in manifest order, so the
same results give the same file whatever order they arrived in.

Not here: what a wave is for (`campaign`, the command line).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from ..engine.errors import ConfigError, StoreError
from ..engine.journal import Journal, read_journal
from ..engine.store import Store
from ..engine.trajectory import Outcome, Trajectory, Wave
from ..envs.base import Task
from .dispatcher import trajectory_id
from .embedding import Engine
from .monitor import Watch
from .protocol import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class WavePlan:
    """What a wave is: its tasks, how often, and how completions are drawn."""

    number: int
    tasks: Sequence[Task]
    attempts: int = 1
    sampling: Sampling | None = None
    turn_limit: int = 0
    policy_version: int = 0

    def manifest(self) -> list[str]:
        """The trajectory ids of the wave, in order."""
        return [
            trajectory_id(self.number, task.id, attempt)
            for task in self.tasks
            for attempt in range(self.attempts)
        ]


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


def journalled(store: Store) -> dict[str, Trajectory]:
    """Finished episodes of the unsealed wave, by id; the last record of an id counts."""
    path = store.journal_path
    if not path.exists():
        return {}
    return {
        record.id: record
        for record in read_journal(path, Trajectory)
        if isinstance(record, Trajectory) and record.outcome is not Outcome.CANCELLED
    }


async def play_wave(
    engine: Engine, store: Store, plan: WavePlan, *, watch: Watch | None = None, stage: str = ""
) -> Wave:
    """Play what is missing of a wave and seal it.

    Args:
        engine: plays it.
        store: where it is journalled and sealed.
        plan: what it is.
        watch: told a snapshot for each record that arrives.
        stage: the snapshot's words for what is being done.

    Raises:
        StorageFailed: the disk refused a record; what was journalled before is kept.
        StoreError: episodes are missing at the end (cancelled under us).
    """
    if any(info.number == plan.number for info in store.waves()):
        return await trio.to_thread.run_sync(store.read, plan.number)
    manifest = plan.manifest()
    wanted = frozenset(manifest)
    found = await trio.to_thread.run_sync(journalled, store)
    finished = {id_: record for id_, record in found.items() if id_ in wanted}
    async with await Journal.open(store.journal_path) as journal:
        rollout = engine.rollout(
            plan.tasks,
            attempts=plan.attempts,
            wave=plan.number,
            sampling=plan.sampling,
            turn_limit=plan.turn_limit,
            journal=journal,
            skip=tuple(finished),
        )
        async with rollout:
            async for trajectory in rollout:
                finished[trajectory.id] = trajectory
                if watch is not None:
                    watch(rollout.snapshot(stage))
    missing = [
        id_ for id_ in manifest if id_ not in finished or finished[id_].outcome is Outcome.CANCELLED
    ]
    if missing:
        raise StoreError(
            f"wave {plan.number} misses {len(missing)} of {len(manifest)} episodes "
            f"(first: {missing[0]}); run the same command again to play them"
        )
    records = [finished[id_] for id_ in manifest]
    info = await trio.to_thread.run_sync(store.seal, plan.number, plan.policy_version, records)
    store.journal_path.unlink(missing_ok=True)  # the sealed wave holds everything it held
    return Wave(plan.number, plan.policy_version, info.digest, tuple(records))

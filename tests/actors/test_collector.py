"""Delivery: durable first, each record once, and a collector or disk that fails."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from rollwave.actors.collector import Collector
from rollwave.actors.dispatcher import Dispatcher
from rollwave.actors.embedding import Engine, EngineSettings, Rollout
from rollwave.actors.ledger import Ledger
from rollwave.actors.policy_source import policy_source
from rollwave.actors.protocol import Accepted, EpisodeEnded, TurnTaken
from rollwave.engine.codec import Message, pack_mask
from rollwave.engine.disk import Disk
from rollwave.engine.errors import (
    FaultKind,
    MessageTooLarge,
    RestartLimitExceeded,
    StorageFailed,
    StoreError,
)
from rollwave.engine.journal import Journal, read_journal
from rollwave.engine.permits import Permits
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory
from rollwave.envs.registry import resolve

MAZE = resolve("maze-grid-v1?style=terse")
TASKS = MAZE.tasks("train", limit=40)


@asynccontextmanager
async def opened(
    collector: type[Collector] = Collector, policy: str = "random"
) -> AsyncIterator[Engine]:
    """An engine with another collector in it."""
    ledger, permits = Ledger(), Permits(8)
    async with ActorSystem() as system:
        taker = await system.start(ChildSpec("collector", lambda: collector(ledger)))
        dispatcher = await system.start(
            ChildSpec("dispatcher", lambda: Dispatcher(ledger, permits, taker))
        )
        source = policy_source(policy)
        engine = Engine(EngineSettings(), source, ledger, permits, dispatcher, None, None)
        engine.use(MAZE)
        yield engine


class FullDisk(Disk):
    """Takes so many bytes, and no more until it is emptied."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        if offset + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data, offset)


async def take(rollout: Rollout, seen: list[Trajectory]) -> None:
    async for trajectory in rollout:
        seen.append(trajectory)


def stored(path: Path) -> list[Trajectory]:
    records = read_journal(path, Trajectory, TurnTaken)
    return [t for t in records if isinstance(t, Trajectory)]


def test_what_is_yielded_is_in_the_journal_already(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    async def main() -> None:
        async with opened() as engine, await Journal.open(path, threaded=False) as journal:
            seen = []
            async for trajectory in engine.rollout(TASKS, journal=journal):
                seen.append(trajectory)
                assert trajectory in stored(path)
            assert stored(path) == seen
            # Group commit: records that come together are made durable together.
            assert journal.statistics().commits < len(seen) == 40

    run_simulated(main)


def test_a_full_disk_ends_the_rollout_with_one_error_and_keeps_what_it_took(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    seen: list[Trajectory] = []

    async def main() -> None:
        async with opened() as engine:
            journal = await Journal.open(path, disk=FullDisk(60_000), threaded=False)
            with pytest.raises(StorageFailed, match="No space left on device; free some space"):
                await take(engine.rollout(TASKS, attempts=3, journal=journal), seen)
            assert engine.permits.statistics().held == 0
            # The engine is unharmed: another rollout goes to its end.
            assert len([t async for t in engine.rollout(TASKS, wave=1)]) == 40
            with pytest.raises(StorageFailed):
                await journal.close()

    run_simulated(main)
    assert 0 < len(seen) < 120
    assert stored(path)[: len(seen)] == seen


def test_other_rollouts_go_on_beside_one_whose_disk_is_full(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened() as engine:
            bad = await Journal.open(tmp_path / "bad", disk=FullDisk(1_000), threaded=False)
            good = await Journal.open(tmp_path / "good", threaded=False)
            got: list[Trajectory] = []

            async def fails() -> None:
                with pytest.raises(StorageFailed):
                    [t async for t in engine.rollout(TASKS, journal=bad)]

            async def goes_on() -> None:
                got.extend([t async for t in engine.rollout(TASKS, wave=1, journal=good)])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails)
                nursery.start_soon(goes_on)
            await good.close()
            assert stored(tmp_path / "good") == got
            assert len(got) == 40

    run_simulated(main)


def test_a_journal_that_is_closed_too_early_ends_its_rollout_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened() as engine:
            journal = await Journal.open(tmp_path / "journal", threaded=False)
            rollout = engine.rollout(TASKS, journal=journal)
            await anext(rollout)
            await journal.close()
            with pytest.raises(StoreError, match="is closed"):
                [t async for t in rollout]
            assert len([t async for t in engine.rollout(TASKS, wave=1)]) == 40

    run_simulated(main)


class Fragile(Collector):
    """Fails before it looks at the messages in `before`, and behind those in `after`."""

    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()
    seen = 0

    async def receive(self, message: EpisodeEnded) -> Accepted:  # type: ignore[override]
        type(self).seen += 1
        number = type(self).seen
        if number in self.before:
            raise KeyError(f"message {number}")
        answer = await super().receive(message)
        if number in self.after:
            raise KeyError(f"behind message {number}")
        return answer


@pytest.mark.parametrize("journalled", [False, True])
def test_a_collector_that_fails_loses_no_record_and_doubles_none(
    tmp_path: Path, journalled: bool
) -> None:
    fragile = type(
        "Fragile", (Fragile,), {"before": frozenset({1, 13}), "after": frozenset({5, 20})}
    )

    async def main() -> None:
        async with opened(fragile) as engine:
            journal = None
            if journalled:
                journal = await Journal.open(tmp_path / "journal", threaded=False)
            records = [t async for t in engine.rollout(TASKS, journal=journal)]
            assert len(records) == len({t.id for t in records}) == 40
            assert all(t.outcome.scored for t in records)
            if journal is not None:
                await journal.close()
                assert {t.id for t in stored(journal.path)} == {t.id for t in records}
                assert len(stored(journal.path)) == 40

    run_simulated(main)
    assert fragile.seen > 40


def test_a_collector_that_always_fails_ends_the_engine() -> None:
    fragile = type("Fragile", (Fragile,), {"before": frozenset(range(1000))})

    async def main() -> None:
        async with opened(fragile) as engine:
            async for _ in engine.rollout(TASKS):
                pass

    with pytest.raises(RestartLimitExceeded, match="collector"):
        run_simulated(main)


def test_a_record_that_breaks_its_rules_becomes_a_fault() -> None:
    class Breaking(Collector):
        async def receive(self, message: EpisodeEnded) -> Accepted:  # type: ignore[override]
            import msgspec

            if message.trajectory.task_id == "maze-grid_3":
                broken = msgspec.structs.replace(message.trajectory, loss_mask=pack_mask([1]))
                message = EpisodeEnded(message.rollout, broken)
            return await super().receive(message)

    async def main() -> None:
        async with opened(Breaking) as engine:
            records = {t.task_id: t async for t in engine.rollout(TASKS)}
            assert len(records) == 40
            fault = records["maze-grid_3"].fault
            assert fault is not None
            assert fault.kind is FaultKind.INTERNAL
            assert "0 tokens, 1 mask entries" in fault.text
            for record in records.values():
                record.check()

    run_simulated(main)


def test_a_record_too_large_for_the_journal_becomes_a_fault(tmp_path: Path) -> None:
    class Picky(Journal):
        def append(self, message: Message) -> None:
            named = isinstance(message, Trajectory) and message.task_id == "maze-grid_5"
            if named and message.outcome is not Outcome.FAULT:
                raise MessageTooLarge("record of 99 bytes; the limit is 9")
            super().append(message)

    async def main() -> None:
        async with opened() as engine:
            journal = await Picky.open(tmp_path / "journal", threaded=False)
            records = {t.task_id: t async for t in engine.rollout(TASKS, journal=journal)}
            await journal.close()
            fault = records["maze-grid_5"].fault
            assert fault is not None
            assert fault.kind is FaultKind.MESSAGE
            assert {t.task_id: t for t in stored(journal.path)} == records

    run_simulated(main)


def test_records_of_closed_books_and_of_strangers_are_refused_quietly() -> None:
    async def main() -> None:
        ledger = Ledger()
        async with ActorSystem() as system:
            collector = await system.start(ChildSpec("collector", lambda: Collector(ledger)))
            stray = Trajectory("w0/x_0/0", "x-v1", "x_0", "", 0, 0, 0, Outcome.CANCELLED, None)
            await collector.ask(EpisodeEnded(1, stray), Accepted)
            await collector.tell(EpisodeEnded(1, stray))
            await collector.ask(EpisodeEnded(1, stray), Accepted)
            assert collector.statistics().restarts == 0
            assert not ledger.undelivered

    run_simulated(main)

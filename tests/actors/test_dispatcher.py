"""Admission: permits, seeds, cancellation, and a dispatcher or session that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from rollwave.actors import dispatcher as module
from rollwave.actors.collector import Collector
from rollwave.actors.dispatcher import Dispatcher, episodes, trajectory_id
from rollwave.actors.embedding import Engine, EngineSettings
from rollwave.actors.ledger import Ledger, RolloutBook
from rollwave.actors.policy_source import policy_source
from rollwave.actors.protocol import (
    Accepted,
    CancelRollout,
    EpisodeEnded,
    RunEpisode,
    RunRollout,
    Sampling,
)
from rollwave.actors.session import Session
from rollwave.engine.errors import FaultKind, RestartLimitExceeded
from rollwave.engine.permits import Permits
from rollwave.engine.ref import ActorRef
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.testing import crash, run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory
from rollwave.envs.registry import resolve

MAZE = resolve("maze-grid-v1?style=terse")
Make = Callable[[Ledger, Permits, ActorRef], Dispatcher]


@asynccontextmanager
async def opened(make: Make = Dispatcher, permits: int = 4) -> AsyncIterator[Engine]:
    """An engine of experts with another dispatcher in it."""
    ledger, door = Ledger(), Permits(permits)
    async with ActorSystem() as system:
        collector = await system.start(ChildSpec("collector", lambda: Collector(ledger)))
        dispatcher = await system.start(
            ChildSpec("dispatcher", lambda: make(ledger, door, collector))
        )
        source = policy_source("random")
        engine = Engine(EngineSettings(), source, ledger, door, dispatcher, None, None)
        engine.use(MAZE)
        yield engine


def order(**changes: Any) -> RunRollout:
    fields: dict[str, Any] = {
        "rollout": 1,
        "tasks": tuple(MAZE.tasks("train", limit=3)),
        "attempts": 2,
        "wave": 5,
        "seed": 7,
        "sampling": Sampling(),
    }
    return RunRollout(**{**fields, **changes})


def test_the_seeds_form_a_tree_below_the_engines() -> None:
    plain = {e.id: e for e in episodes(order())}
    assert list(plain) == [trajectory_id(5, f"maze-grid_{n}", k) for n in range(3) for k in (0, 1)]
    assert len({e.seed for e in plain.values()}) == 6
    assert len({e.environment_seed for e in plain.values()}) == 3
    # What else is played changes nothing for an episode.
    alone = {e.id: e for e in episodes(order(tasks=tuple(MAZE.tasks("train", limit=3))[2:]))}
    assert alone["w5/maze-grid_2/1"] == plain["w5/maze-grid_2/1"]
    some = {e.id: e for e in episodes(order(skip=("w5/maze-grid_0/0", "w5/maze-grid_2/0")))}
    assert some == {k: e for k, e in plain.items() if k not in order().skip and k in some}
    assert len(some) == 4
    for changes in ({"seed": 8}, {"wave": 6}):
        others = {e.seed for e in episodes(order(**changes))}
        assert not others & {e.seed for e in plain.values()}


@pytest.mark.parametrize("permits", [1, 3, 8])
def test_no_more_sessions_live_than_permits(permits: int) -> None:
    async def main() -> None:
        async with opened(permits=permits) as engine:
            records = [t async for t in engine.rollout(MAZE.tasks("train", limit=20))]
            assert len(records) == 20
            assert engine.permits.statistics().peak_held == permits
            assert engine.permits.statistics().held == 0

    run_simulated(main)


def test_permits_may_be_resized_while_a_rollout_runs() -> None:
    async def main() -> None:
        async with opened(permits=2) as engine:
            rollout = engine.rollout(MAZE.tasks("train", limit=40))
            await anext(rollout)
            engine.permits.resize(10)
            assert len([t async for t in rollout]) == 39
            assert engine.permits.statistics().peak_held == 10

    run_simulated(main)


def test_a_session_that_crashes_leaves_a_fault_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Crashing(Session):
        async def receive(self, message: RunEpisode) -> None:  # type: ignore[override]
            if message.task.index == 1:
                raise ZeroDivisionError("a defect of ours")
            await super().receive(message)

    monkeypatch.setattr(module, "Session", Crashing)

    async def main() -> dict[str, Trajectory]:
        async with opened() as engine:
            rollout = engine.rollout(MAZE.tasks("train", limit=3))
            records = {t.task_id: t async for t in rollout}
            assert engine.permits.statistics().held == 0
            return records

    records = run_simulated(main)
    assert len(records) == 3
    crashed = records.pop("maze-grid_1")
    assert (crashed.outcome, crashed.reward) == (Outcome.FAULT, None)
    assert crashed.fault is not None
    assert crashed.fault.kind is FaultKind.INTERNAL
    assert "a defect of ours" in crashed.fault.text
    assert all(t.outcome.scored for t in records.values())


def test_a_session_that_is_stopped_before_it_began_has_a_record_too() -> None:
    async def main() -> None:
        async with opened(permits=50) as engine:
            rollout = engine.rollout(MAZE.tasks("train", limit=50))
            book = engine.ledger.books[1]
            # The cancellation lies in the mailbox right behind the order.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.begin, rollout._order)
                nursery.start_soon(engine.cancel, 1)
            rollout._begun = True
            records = [t async for t in rollout]
            assert len(records) == book.admitted == book.ended
            assert {t.outcome for t in records} <= {Outcome.CANCELLED}
            assert book.open == {}

    for seed in range(10):
        run_simulated(main, seed=seed)


def test_both_orders_may_be_repeated_and_come_too_late() -> None:
    async def main() -> None:
        async with opened() as engine:
            rollout = engine.rollout(MAZE.tasks("train", limit=5))
            await engine.begin(rollout._order)
            await engine.begin(rollout._order)
            assert len([t async for t in rollout]) == 5
            await engine.cancel(1)
            await engine.cancel(1)
            await engine.begin(order(rollout=99))
            await engine.cancel(99)
            assert engine._dispatcher.statistics().restarts == 0

    run_simulated(main)


class Fragile(Dispatcher):
    """Fails at the messages whose numbers are in `at`."""

    at: set[int]
    seen: int

    async def receive(self, message: RunRollout | CancelRollout) -> Accepted:  # type: ignore[override]
        type(self).seen += 1
        if type(self).seen in self.at:
            raise KeyError(f"message {type(self).seen}")
        return await super().receive(message)


def fragile(*at: int) -> type[Fragile]:
    return type("Fragile", (Fragile,), {"at": set(at), "seen": 0})


def test_a_dispatcher_that_fails_at_its_order_is_asked_again() -> None:
    async def main() -> None:
        async with opened(fragile(1, 2)) as engine:
            records = [t async for t in engine.rollout(MAZE.tasks("train", limit=10))]
            assert len(records) == 10
            assert all(t.outcome.scored for t in records)
            assert engine._dispatcher.statistics().restarts == 2

    run_simulated(main)


def test_a_dispatcher_that_fails_in_the_middle_goes_on_with_every_rollout() -> None:
    cut: list[int] = []

    async def main() -> None:
        async with opened(fragile(3), permits=3) as engine:
            got: dict[int, list[Trajectory]] = {}
            tasks = MAZE.tasks("train", limit=30)
            rollouts = [engine.rollout(tasks, wave=wave) for wave in (0, 1)]
            books = list(engine.ledger.books.values())

            async def play(wave: int) -> None:
                got[wave] = [t async for t in rollouts[wave]]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(play, 0)
                nursery.start_soon(play, 1)
                while min(book.ended for book in books) < 2:
                    await trio.lowlevel.checkpoint()
                await engine.begin(order(rollout=1))  # the message it fails at
            for wave, records in got.items():
                assert {t.id for t in records} == {f"w{wave}/{task.id}/0" for task in tasks}
                assert len(records) == 30
            ended = [t.outcome for records in got.values() for t in records]
            assert ended.count(Outcome.FAULT) == 0
            assert ended.count(Outcome.CANCELLED) <= 3  # those that were live
            cut.append(ended.count(Outcome.CANCELLED))
            assert engine.permits.statistics().held == 0
            assert engine.permits.statistics().peak_held == 3
            assert engine._dispatcher.statistics().restarts == 1

    for seed in range(5):
        run_simulated(main, seed=seed)
    assert any(cut)


def test_a_dispatcher_that_dies_while_it_admits_keeps_no_permit() -> None:
    async def main(steps: int) -> None:
        async with opened() as engine, trio.open_nursery() as nursery:
            records: list[Trajectory] = []

            async def consume() -> None:
                tasks = engine.tasks(MAZE.id, "train", limit=3)
                records.extend([t async for t in engine.rollout(tasks, attempts=2)])

            nursery.start_soon(consume)
            for _ in range(steps):  # until it is at its checkpoint between permit and session
                await trio.lowlevel.checkpoint()
            assert crash(engine._dispatcher)
            await trio.sleep(100)
            assert len(records) == 6
            assert engine.permits.statistics().held == 0

    for steps in range(1, 12):
        run_simulated(main, steps)


def test_a_dispatcher_that_always_fails_ends_the_engine() -> None:
    async def main() -> None:
        async with opened(fragile(*range(1, 100))) as engine:
            async for _ in engine.rollout(MAZE.tasks("train", limit=1)):
                pass

    with pytest.raises(RestartLimitExceeded, match="dispatcher"):
        run_simulated(main)


def test_a_record_in_place_waits_for_room_in_the_collectors_mailbox() -> None:
    class Narrow(Collector):
        mailbox_capacity = 1

        async def receive(self, message: EpisodeEnded) -> Accepted:  # type: ignore[override]
            await trio.sleep(0.5)
            return await super().receive(message)

    async def main() -> None:
        ledger, door = Ledger(), Permits(30)
        async with ActorSystem() as system:
            collector = await system.start(ChildSpec("collector", lambda: Narrow(ledger)))
            dispatcher = await system.start(
                ChildSpec("dispatcher", lambda: Dispatcher(ledger, door, collector))
            )
            source = policy_source("random")
            engine = Engine(EngineSettings(), source, ledger, door, dispatcher, None, None)
            engine.use(MAZE)
            rollout = engine.rollout(MAZE.tasks("train", limit=30))
            first = await anext(rollout)
            await engine.cancel(1)
            rest = [t async for t in rollout]
            assert len({first.id, *(t.id for t in rest)}) == 30
            assert Outcome.CANCELLED in {t.outcome for t in rest}

    run_simulated(main)


def test_a_book_says_when_a_rollout_is_complete() -> None:
    async def main() -> None:
        send, receive = trio.open_memory_channel[Trajectory](10)
        book = RolloutBook({}, 2, send)
        (first, second, *_) = episodes(order())
        assert not book.complete
        book.admit(first)
        book.cancel()
        assert not book.complete
        assert not book.end(Trajectory(second.id, "", "", "", 0, 0, 0, Outcome.CANCELLED, None))
        assert book.end(Trajectory(first.id, "", "", "", 0, 0, 0, Outcome.CANCELLED, None))
        assert book.complete
        book.settle()
        with pytest.raises(trio.WouldBlock):
            receive.receive_nowait()  # one is still to be delivered
        book.delivered = 1
        book.settle()
        with pytest.raises(trio.EndOfChannel):
            receive.receive_nowait()

    run_simulated(main)

"""`tell` and `ask`: backpressure, every way an ask can end, and cancellation in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.actor import Actor
from rollwave.engine.codec import Message
from rollwave.engine.envelope import Reply
from rollwave.engine.errors import (
    ActorDead,
    ActorRestarted,
    AskFailed,
    BackendError,
    DeadlineExceeded,
    MailboxFull,
    MessageError,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.restart import Restart, RestartIntensity
from rollwave.engine.supervisor import ChildSpec
from rollwave.engine.system import ActorSystem
from rollwave.engine.testing import run_simulated
from trio.testing import MockClock


class Do(Message, frozen=True):
    what: str
    seconds: float = 0.0


class Done(Message, frozen=True):
    what: str


class Other(Message, frozen=True):
    pass


class Worker(Actor):
    """Does as it is told; remembers what it did, and keeps what it is told to keep."""

    receives = (Do,)
    mailbox_capacity = 2

    def __init__(self) -> None:
        self.done: list[str] = []
        self.kept: list[Reply] = []
        self.abandoned: list[str] = []

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        if message.seconds:
            await trio.sleep(message.seconds)
        self.done.append(message.what)
        match message.what:
            case "crash":
                raise ValueError("as told")
            case "refuse":
                raise AskFailed("environment", "not today")
            case "fail":
                self.defer().fail(BackendError("no room on the device"))
            case "keep":
                reply = self.defer()
                self.kept.append(reply)
                reply.on_abandon(lambda: self.abandoned.append("keep"))
            case "end":
                self.stop()
            case "nothing":
                return None
            case "wrong":
                return Other()
        return Done(message.what)


@asynccontextmanager
async def working(
    restart: Restart = Restart.PERMANENT,
) -> AsyncIterator[tuple[ActorRef, list[Worker]]]:
    """A system with one worker: (its ref, its incarnations)."""
    workers: list[Worker] = []

    def make() -> Worker:
        workers.append(Worker())
        return workers[-1]

    async with ActorSystem() as system:
        yield await system.start(ChildSpec("worker", make, restart)), workers


async def test_an_ask_is_answered_and_a_tell_is_handled(autojump_clock: MockClock) -> None:
    async with working() as (ref, workers):
        await ref.tell(Do("first"))
        ref.tell_nowait(Do("second"))
        assert await ref.ask(Do("third"), Done) == Done("third")
        assert workers[0].done == ["first", "second", "third"]
        statistics = ref.statistics()
        assert (statistics.handled, statistics.mailbox.delivered) == (3, 3)


async def test_a_full_mailbox_holds_its_senders_back(autojump_clock: MockClock) -> None:
    async with working() as (ref, workers):
        ref.tell_nowait(Do("slow", 10))
        await trio.testing.wait_all_tasks_blocked()  # in hand
        ref.tell_nowait(Do("a"))
        ref.tell_nowait(Do("b"))
        with pytest.raises(MailboxFull):
            ref.tell_nowait(Do("c"))
        start = trio.current_time()
        await ref.tell(Do("d"))
        assert trio.current_time() - start == 10
        assert await ref.ask(Do("e"), Done) == Done("e")
        assert workers[0].done == ["slow", "a", "b", "d", "e"]
        assert ref.statistics().mailbox.peak_waiting == 1
        assert ref.statistics().busy_seconds == 10


async def test_a_failed_ask_harms_neither_the_actor_nor_others(autojump_clock: MockClock) -> None:
    async with working() as (ref, workers):
        with pytest.raises(AskFailed, match="not today") as refused:
            await ref.ask(Do("refuse"), Done)
        assert refused.value.kind == "environment"
        with pytest.raises(AskFailed, match="no room") as failed:
            await ref.ask(Do("fail"), Done)
        assert failed.value.kind == "backend"
        assert isinstance(failed.value.__cause__, BackendError)
        with pytest.raises(AskFailed, match="Worker returned no answer to Do"):
            await ref.ask(Do("nothing"), Done)
        await ref.tell(Do("refuse"))
        assert await ref.ask(Do("go on"), Done) == Done("go on")
        assert len(workers) == 1


async def test_what_an_actor_does_not_receive_is_its_senders_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as (ref, workers):
        with pytest.raises(MessageError, match=r"worker does not receive this: .*\[Do\]"):
            await ref.ask(Other(), Done)
        with pytest.raises(MessageError, match="worker does not receive"):
            await ref.ask(Do(17), Done)  # type: ignore[arg-type]
        await ref.tell(Other())
        with pytest.raises(MessageError, match="Done"):
            await ref.ask(Do("wrong"), Done)
        assert await ref.ask(Do("go on"), Done) == Done("go on")
        assert ref.statistics().malformed == 3
        assert len(workers) == 1
    assert "worker dropped a message it does not receive" in caplog.text


async def test_after_a_crash_the_ask_in_hand_is_told_so_and_the_queue_survives(
    autojump_clock: MockClock,
) -> None:
    async with working() as (ref, workers), trio.open_nursery() as nursery:
        restarted: list[str] = []

        async def ask(what: str) -> None:
            try:
                await ref.ask(Do(what), Done)
            except ActorRestarted:
                restarted.append(what)

        for what in ("keep", "crash", "queued"):
            nursery.start_soon(ask, what)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert restarted == ["keep", "crash"] or restarted == ["crash", "keep"]
        assert [w.done for w in workers] == [["keep", "crash"], ["queued"]]
        assert workers[0].abandoned == []  # it died first: there is nobody to tell
        workers[0].kept[0].answer(Done("too late"))
        assert ref.alive
        assert ref.statistics().restarts == 1


@pytest.mark.parametrize("what", ["crash", "end"])
async def test_after_the_final_end_every_ask_is_answered_with_actor_dead(
    autojump_clock: MockClock, what: str
) -> None:
    async with working(Restart.TEMPORARY) as (ref, _), trio.open_nursery() as nursery:
        ended: dict[str, type[BaseException]] = {}

        async def ask(what: str, seconds: float = 0.0) -> None:
            try:
                await ref.ask(Do(what, seconds), Done)
            except ActorDead as error:
                ended[what] = type(error)

        nursery.start_soon(ask, "keep")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, what, 1.0)
        await trio.testing.wait_all_tasks_blocked()
        for queued in ("q1", "q2", "waits1", "waits2"):
            nursery.start_soon(ask, queued)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2)
        expected = {"keep", "q1", "q2", "waits1", "waits2"} | ({"crash"} & {what})
        assert ended == dict.fromkeys(expected, ActorDead)
        assert not ref.alive
        for attempt in (ref.tell(Do("x")), ref.ask(Do("x"), Done)):
            with pytest.raises(ActorDead, match="worker has stopped"):
                await attempt
        with pytest.raises(ActorDead):
            ref.tell_nowait(Do("x"))


async def test_stopping_finishes_the_message_in_hand_and_refuses_the_rest(
    autojump_clock: MockClock,
) -> None:
    async with working() as (ref, workers), trio.open_nursery() as nursery:
        answers: list[object] = []

        async def ask(what: str) -> None:
            try:
                answers.append(await ref.ask(Do(what, 3), Done))
            except ActorDead:
                answers.append(what)

        nursery.start_soon(ask, "in hand")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "queued")
        await trio.testing.wait_all_tasks_blocked()
        ref.stop()
        ref.stop()
        await trio.sleep(5)
        assert answers == ["queued", Done("in hand")]
        assert len(workers) == 1  # permanent, but it was asked to stop


# -- cancellation, from the asker to the actor -------------------------------------


async def test_a_cancelled_asker_is_abandoned_once_and_a_late_answer_is_dropped(
    autojump_clock: MockClock,
) -> None:
    async with working() as (ref, workers):
        with trio.move_on_after(1):
            await ref.ask(Do("keep"), Done)
        worker = workers[0]
        assert worker.abandoned == ["keep"]
        worker.kept[0].answer(Done("late"))
        worker.kept[0].fail(ValueError("later"))
        worker.kept[0].on_abandon(lambda: worker.abandoned.append("asked again"))
        assert worker.abandoned == ["keep", "asked again"]  # it is abandoned: said at once
        assert await ref.ask(Do("go on"), Done) == Done("go on")


async def test_an_answered_ask_is_never_abandoned(autojump_clock: MockClock) -> None:
    async with working() as (ref, workers), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def answer_then_cancel() -> None:
                await trio.sleep(1)
                workers[0].kept[0].answer(Done("in time"))
                scope.cancel()  # the asker is runnable already: the answer has won

            nursery.start_soon(answer_then_cancel)
            assert await ref.ask(Do("keep"), Done) == Done("in time")
        assert workers[0].abandoned == []


async def test_an_ask_cancelled_in_the_queue_is_never_handled(autojump_clock: MockClock) -> None:
    async with working() as (ref, workers):
        ref.tell_nowait(Do("slow", 10))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await ref.ask(Do("changed my mind"), Done)
        assert await ref.ask(Do("next"), Done) == Done("next")
        assert workers[0].done == ["slow", "next"]


async def test_a_timeout_names_the_actor_and_withdraws_the_question(
    autojump_clock: MockClock,
) -> None:
    async with working() as (ref, workers):
        with pytest.raises(DeadlineExceeded, match=r"ask worker took longer than 2\.5 s"):
            await ref.ask(Do("keep"), Done, timeout=2.5)
        assert workers[0].abandoned == ["keep"]
        assert await ref.ask(Do("quick"), Done, timeout=2.5) == Done("quick")


async def test_a_callback_that_raises_fails_its_actor_not_the_asker(
    autojump_clock: MockClock,
) -> None:
    async with working() as (ref, workers):
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ref.ask, Do("keep"), Done)
                await trio.testing.wait_all_tasks_blocked()

                def broken() -> None:
                    raise ZeroDivisionError

                workers[0].kept[0].on_abandon(broken)
        assert scope.cancelled_caught
        assert await ref.ask(Do("after the restart"), Done) == Done("after the restart")
        assert len(workers) == 2


# -- all of it at once -------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    asks=st.lists(
        st.tuples(
            st.sampled_from(["ok", "crash", "refuse", "keep", "fail", "end"]),
            st.floats(0, 3),  # when it is asked
            st.floats(0, 2),  # how long it takes
            st.floats(0.1, 6),  # when its asker loses patience
        ),
        max_size=25,
    ),
    restart=st.sampled_from(Restart),
    seed=st.integers(0, 2**32),
)
def test_every_ask_ends_in_exactly_one_allowed_way(
    asks: list[tuple[str, float, float, float]], restart: Restart, seed: int
) -> None:
    async def scenario() -> list[str]:
        ends: list[str] = []

        async def ask(what: str, at: float, seconds: float, patience: float) -> None:
            await trio.sleep(at)
            with trio.move_on_after(patience) as scope:
                try:
                    answer = await ref.ask(Do(what, seconds), Done)
                except (ActorDead, AskFailed) as error:
                    ends.append(type(error).__name__)
                else:
                    assert answer == Done(what)
                    ends.append("answered")
            if scope.cancelled_caught:
                ends.append("cancelled")

        workers: list[Worker] = []

        def make() -> Worker:
            workers.append(Worker())
            return workers[-1]

        # With room for every restart: escalation has tests of its own.
        async with ActorSystem(intensity=RestartIntensity(100, 60)) as system:
            ref = await system.start(ChildSpec("worker", make, restart))
            async with trio.open_nursery() as nursery:
                for one in asks:
                    nursery.start_soon(ask, *one)
            statistics = ref.statistics()
        assert sum(len(worker.abandoned) for worker in workers) <= ends.count("cancelled")
        assert statistics.mailbox.waiting == 0
        return ends

    assert len(run_simulated(scenario, seed=seed)) == len(asks)

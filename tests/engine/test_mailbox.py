"""The mailbox: first in first out, bounded, fair to who waits, and never left unanswered."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.envelope import Envelope, Reply
from rollwave.engine.errors import ActorDead, ConfigError, MailboxFull
from rollwave.engine.mailbox import Mailbox
from rollwave.engine.testing import EventLog, run_simulated


def letter(text: str) -> Envelope:
    return Envelope(text.encode(), None)


# -- a random life of a mailbox ---------------------------------------------------


@dataclass
class Model:
    """What a mailbox must do: a list, a line of waiters, a bound."""

    capacity: int
    accepted: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    open: bool = True


operations = st.lists(
    st.sampled_from(["tell", "tell_nowait", "ask", "take", "take", "cancel", "close", "drain"]),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(operations=operations, capacity=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_any_life_of_a_mailbox_follows_its_model(
    operations: list[str], capacity: int, seed: int
) -> None:
    run_simulated(live_against_the_model, operations, capacity, seed=seed)


async def live_against_the_model(operations: list[str], capacity: int) -> None:
    model, mailbox = Model(capacity), Mailbox("owner", capacity)
    scopes: dict[str, trio.CancelScope] = {}
    ended: dict[str, str] = {}
    closed_by = ""

    async def tell(name: str) -> None:
        with trio.CancelScope() as scopes[name]:
            try:
                await mailbox.post_or_wait(letter(name))
                ended[name] = "accepted"
            except ActorDead:
                ended[name] = "dead"
        ended.setdefault(name, "cancelled")

    async def ask(name: str) -> None:
        reply = Reply()
        with trio.CancelScope() as scopes[name]:
            try:
                mailbox.post_or_line_up(Envelope(name.encode(), reply), None)
                await reply.wait()
            except ActorDead:
                ended[name] = "dead"
        ended.setdefault(name, "cancelled")

    async with trio.open_nursery() as nursery:
        for number, operation in enumerate(operations):
            name = f"{operation}-{number}"
            if operation in ("tell", "ask"):
                nursery.start_soon(tell if operation == "tell" else ask, name)
                if not model.open:
                    model.refused.append(name)
                elif len(model.accepted) < capacity:
                    model.accepted.append(name)
                else:
                    model.line.append(name)
            elif operation == "tell_nowait":
                fits = model.open and len(model.accepted) < capacity
                if fits:
                    mailbox.post(letter(name))
                    model.accepted.append(name)
                else:
                    with pytest.raises(MailboxFull if model.open else ActorDead):
                        mailbox.post(letter(name))
                    model.refused.append(name)
            elif operation == "take":
                envelope = mailbox.take()
                if closed_by == "close" or not model.accepted:
                    assert envelope is None
                else:
                    assert envelope is not None
                    first = model.accepted.pop(0)
                    assert envelope.payload.decode() == first
                    model.taken.append(first)
                    if model.line:  # whoever waited longest moves up at once
                        model.accepted.append(model.line.pop(0))
            elif operation == "cancel" and model.line:
                scopes[model.line.pop(0)].cancel()
            elif operation in ("close", "drain") and model.open:
                model.open, closed_by = False, operation
                mailbox.close(drain=operation == "drain")
                model.refused += model.line
                model.line = []
            await trio.testing.wait_all_tasks_blocked()
            statistics = mailbox.statistics()
            assert statistics.waiting == len(model.line)
            assert statistics.size <= capacity
            assert statistics.waiting == 0 or statistics.size == capacity
            if closed_by != "close":
                assert statistics.size == len(model.accepted)
        mailbox.close()
        for scope in scopes.values():
            scope.cancel()
    statistics = mailbox.statistics()
    assert statistics.delivered == len(model.taken)
    # Every ask and every waiting tell has ended, and only in a way that is allowed.
    assert set(ended) == set(scopes)
    for name, end in ended.items():
        if name in model.refused:
            assert end == "dead"
        if name.startswith("ask") and name in model.accepted:
            assert end == "dead"
    assert statistics.peak_size <= capacity


@settings(max_examples=40, deadline=None)
@given(
    senders=st.integers(1, 12),
    each=st.integers(1, 6),
    capacity=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_each_senders_messages_arrive_in_order_and_all_of_them(
    senders: int, each: int, capacity: int, seed: int
) -> None:
    async def scenario() -> list[tuple[int, int]]:
        mailbox = Mailbox("owner", capacity)
        got: list[tuple[int, int]] = []

        async def send(sender: int) -> None:
            for number in range(each):
                await mailbox.post_or_wait(letter(f"{sender} {number}"))

        async def receive() -> None:
            while (envelope := await mailbox.wait()) is not None:
                sender, number = envelope.payload.split()
                got.append((int(sender), int(number)))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            async with trio.open_nursery() as sending:
                for sender in range(senders):
                    sending.start_soon(send, sender)
            mailbox.close(drain=True)
        assert mailbox.statistics().peak_waiting <= senders
        return got

    got = run_simulated(scenario, seed=seed)
    for sender in range(senders):
        assert [number for s, number in got if s == sender] == list(range(each))


# -- single facts -----------------------------------------------------------------


async def test_who_waits_longest_is_accepted_first_and_a_newcomer_cannot_pass() -> None:
    mailbox, log = Mailbox("owner", 1), EventLog()

    async def send(name: str) -> None:
        await mailbox.post_or_wait(letter(name))
        log.append((name,))

    mailbox.post(letter("first"))
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(send, name)
            await trio.testing.wait_all_tasks_blocked()
        for expected in ["first", "a", "b"]:
            envelope = mailbox.take()
            assert envelope is not None
            assert envelope.payload.decode() == expected
            with pytest.raises(MailboxFull, match="owner holds 1"):
                mailbox.post(letter("newcomer"))
            await trio.testing.wait_all_tasks_blocked()
        assert log == [("a",), ("b",), ("c",)]
    statistics = mailbox.statistics()
    assert (statistics.peak_size, statistics.peak_waiting) == (1, 3)
    assert (statistics.delivered, statistics.refused) == (3, 3)


async def test_a_cancelled_sender_leaves_the_line() -> None:
    mailbox = Mailbox("owner", 1)
    mailbox.post(letter("first"))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.post_or_wait, letter("second"))
            await trio.testing.wait_all_tasks_blocked()
            assert mailbox.statistics().waiting == 1
            scope.cancel()
    assert mailbox.statistics().waiting == 0
    assert mailbox.take() is not None
    assert mailbox.take() is None


async def test_a_cancelled_ask_leaves_the_line_too() -> None:
    mailbox, reply = Mailbox("owner", 1), Reply()
    mailbox.post(letter("first"))
    mailbox.post_or_line_up(Envelope(b"second", reply), None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await reply.wait()
    assert scope.cancelled_caught
    assert mailbox.statistics().waiting == 0


async def test_a_sender_that_is_already_cancelled_sends_nothing() -> None:
    mailbox = Mailbox("owner", 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.post_or_wait(letter("late"))
    assert len(mailbox) == 0


async def test_a_cancelled_receiver_loses_nothing() -> None:
    mailbox = Mailbox("owner", 4)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    mailbox.post(letter("after"))
    envelope = await mailbox.wait()
    assert envelope is not None
    assert envelope.payload == b"after"


async def test_halting_keeps_the_queue_for_the_next_receiver() -> None:
    mailbox = Mailbox("owner", 4)
    mailbox.post(letter("kept"))
    mailbox.halt()
    assert await mailbox.wait() is None
    mailbox.post(letter("more"))
    mailbox.resume()
    first, second = await mailbox.wait(), await mailbox.wait()
    assert first is not None
    assert second is not None
    assert (first.payload, second.payload) == (b"kept", b"more")


async def test_closing_answers_every_queued_and_waiting_ask() -> None:
    mailbox = Mailbox("owner", 2)
    replies = [Reply() for _ in range(5)]
    for reply in replies:
        mailbox.post_or_line_up(Envelope(b"?", reply), None)
    mailbox.post_or_line_up(letter("told"), None)
    mailbox.close()
    mailbox.close()
    for reply in replies:
        with pytest.raises(ActorDead, match="owner has stopped"):
            await reply.wait()
    assert await mailbox.wait() is None
    statistics = mailbox.statistics()
    assert (statistics.dropped, statistics.refused, statistics.size) == (2, 4, 0)


async def test_draining_refuses_the_new_and_delivers_the_old() -> None:
    mailbox = Mailbox("owner", 2)
    mailbox.post(letter("old"))
    mailbox.close(drain=True)
    with pytest.raises(ActorDead):
        mailbox.post(letter("new"))
    with pytest.raises(ActorDead):
        await mailbox.post_or_wait(letter("new"))
    envelope = await mailbox.wait()
    assert envelope is not None
    assert envelope.payload == b"old"
    assert await mailbox.wait() is None


def test_a_mailbox_needs_room_for_one() -> None:
    with pytest.raises(ConfigError, match="capacity of owner"):
        Mailbox("owner", 0)

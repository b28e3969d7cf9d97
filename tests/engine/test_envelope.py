"""A reply leaves PENDING exactly once, whoever comes first: the answer, the end, or the asker."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import Message, decoder
from rollwave.engine.envelope import Reply
from rollwave.engine.errors import ActorDead, AskFailed, StoreError
from rollwave.engine.testing import run_simulated


class Answer(Message, frozen=True):
    n: int


moves = st.lists(st.sampled_from(["answer", "fail", "refuse", "cancel", "watch"]), max_size=6)


@settings(max_examples=200, deadline=None)
@given(before=moves, during=moves, seed=st.integers(0, 2**32))
def test_only_the_first_move_counts(before: list[str], during: list[str], seed: int) -> None:
    async def scenario() -> tuple[str, int]:
        reply, told = Reply(), [0]
        ends: list[str] = []

        def move(which: str, number: int) -> None:
            match which:
                case "answer":
                    reply.answer(Answer(number))
                case "fail":
                    reply.fail(StoreError(f"{number}"))
                case "refuse":
                    reply.refuse(ActorDead(f"{number}"))
                case "cancel":
                    scope.cancel()
                case "watch":
                    before_it = told[0]
                    reply.on_abandon(lambda: told.__setitem__(0, told[0] + 1))
                    immediate.append(told[0] - before_it)

        immediate: list[int] = []

        async def ask() -> None:
            with scope:
                try:
                    answer = decoder(Answer).decode(await reply.wait())
                    ends.append(f"answer {answer.n}")
                except AskFailed as error:
                    ends.append(f"fail {error.text}")
                except ActorDead as error:
                    ends.append(f"refuse {error}")
            if scope.cancelled_caught:
                ends.append("cancel")

        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            for number, which in enumerate(before):
                move(which, number)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            for number, which in enumerate(during, len(before)):
                move(which, number)
                await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        (end,) = ends
        assert not reply.pending
        if end == "cancel":
            # Told of it once by the asker's going, if anyone was watching by then,
            # and once by each registration that came after it.
            assert told[0] - sum(immediate) <= 1
        else:
            assert told[0] == 0
        return end, told[0]

    end, _ = run_simulated(scenario, seed=seed)
    in_order = list(enumerate([*before, *during]))
    settling = [(n, m) for n, m in in_order if m in ("answer", "fail", "refuse")]
    cancels = [n for n, m in in_order if m == "cancel"]
    if not settling:
        assert end == "cancel"
        return
    number, first = settling[0]
    # A scope cancelled while the asker sleeps wins over a later answer; one that was
    # cancelled before it slept wins over everything, at its first checkpoint.
    if cancels and (cancels[0] < number or cancels[0] < len(before)):
        assert end == "cancel"
    else:
        assert end.startswith(f"{first} ")


async def test_a_failure_tells_its_kind_and_keeps_its_cause() -> None:
    reply, cause = Reply(), StoreError("disk full")
    reply.fail(cause)
    with pytest.raises(AskFailed, match="storage: StoreError: disk full") as caught:
        await reply.wait()
    assert caught.value.__cause__ is cause


async def test_a_failure_that_is_one_already_is_kept() -> None:
    reply, own = Reply(), AskFailed("environment", "no such door")
    reply.fail(own)
    with pytest.raises(AskFailed) as caught:
        await reply.wait()
    assert caught.value is own

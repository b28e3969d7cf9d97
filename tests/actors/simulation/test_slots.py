"""Slots of replicas: full before anybody waits, in order, and exact about when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.simulation.slots import Request, Slots

SECONDS = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40)


def drained(slots: Slots[int]) -> list[tuple[float, int]]:
    """Serve what is in; (end, item) in the order of the ends."""
    ends = []
    while slots.running:
        end, request, _ = slots.pop()
        ends.append((end, request.item))
    return ends


@settings(deadline=None)
@given(SECONDS, st.integers(1, 5), st.integers(1, 4))
def test_no_slot_is_free_while_somebody_waits(
    seconds: list[float], batch: int, replicas: int
) -> None:
    slots: Slots[int] = Slots(replicas, batch)
    for item, each in enumerate(seconds):
        slots.place(item, each, 0.0)
        assert slots.running <= replicas * batch
        assert not slots.waiting or slots.running == replicas * batch
    ends = drained(slots)
    assert sorted(item for _, item in ends) == list(range(len(seconds)))
    assert [end for end, _ in ends] == sorted(end for end, _ in ends)
    assert slots.running == slots.waiting == 0
    # Nobody beats the work, and greedy service stays within its well-known factor of it.
    best = max(sum(seconds) / (replicas * batch), *seconds)
    assert ends[-1][0] >= best * (1 - 1e-9)
    if replicas == 1:
        assert ends[-1][0] <= sum(seconds) / batch + max(seconds) + 1e-9


@settings(deadline=None)
@given(SECONDS)
def test_without_a_bound_everybody_runs_at_once(seconds: list[float]) -> None:
    slots: Slots[int] = Slots(1, 0)
    for item, each in enumerate(seconds):
        slots.place(item, each, 5.0)
    assert {item: end for end, item in drained(slots)} == {
        item: 5.0 + each for item, each in enumerate(seconds)
    }


def test_one_slot_serves_in_order_and_back_to_back() -> None:
    slots: Slots[int] = Slots(1, 1)
    placed = [slots.place(item, 2.0, 0.0) for item in range(3)]
    assert [request.started for request in placed] == [0.0, -1.0, -1.0]
    assert drained(slots) == [(2.0, 0), (4.0, 1), (6.0, 2)]
    assert [request.started for request in placed] == [0.0, 2.0, 4.0]


def test_each_on_the_replica_slows_a_new_one_and_not_itself() -> None:
    slots: Slots[int] = Slots(1, 4, per_request=0.5)
    for item in range(3):
        slots.place(item, 1.0, 0.0)
    assert drained(slots) == [(1.5, 0), (2.0, 1), (2.5, 2)]


def test_a_request_goes_where_the_fewest_are() -> None:
    slots: Slots[int] = Slots(3, 2)
    placed = [slots.place(item, 1.0, 0.0) for item in range(7)]
    assert [request.replica for request in placed] == [0, 1, 2, 0, 1, 2, 0]
    assert [request.size for request in placed] == [1, 1, 1, 2, 2, 2, 0]


@settings(deadline=None)
@given(SECONDS, st.integers(1, 3), st.data())
def test_who_is_dropped_gives_its_slot_to_the_next(
    seconds: list[float], batch: int, data: st.DataObject
) -> None:
    slots: Slots[int] = Slots(1, batch)
    placed: list[Request[int]] = [slots.place(i, s, 0.0) for i, s in enumerate(seconds)]
    gone = data.draw(st.sets(st.sampled_from(range(len(placed)))))
    for number in sorted(gone):
        slots.drop(placed[number], 0.0)
        assert slots.drop(placed[number], 0.0) is None  # twice is once
        assert not slots.waiting or slots.running == batch
    slots.due()  # what was dropped is not the next to end
    left = []
    while slots.due() < float("inf"):
        left.append(slots.pop()[1].item)
    assert sorted(left) == [i for i in range(len(seconds)) if i not in gone]


def test_while_it_is_held_nothing_begins() -> None:
    slots: Slots[int] = Slots(2, 1)
    running = slots.place(0, 1.0, 0.0)
    slots.held = True
    assert slots.place(1, 1.0, 0.0).started < 0
    assert slots.pop() == (1.0, running, None)
    assert [request.item for request in slots.resume(4.0)] == [1]
    assert slots.due() == 5.0

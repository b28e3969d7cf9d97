"""Which tasks a wave draws: each once a pass, none twice a wave, the same for the same draws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rollwave.actors.batches import TaskStream
from rollwave.envs.base import Task


def pool(tasks: int) -> list[Task]:
    return [Task("e-v1", index) for index in range(tasks)]


# Waves of draws: (draws of wave 1), (draws of wave 2), …
waves = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), max_size=12)


def draws(tasks: int, seed: int, plan: list[list[int]]) -> list[list[list[Task]]]:
    stream = TaskStream(pool(tasks), seed)
    found = []
    for wave in plan:
        stream.begin()
        found.append([stream.draw(n) for n in wave])
    return found


@given(st.integers(1, 12), st.integers(0, 99), waves)
def test_no_task_twice_in_a_wave_and_all_their_turn(
    tasks: int, seed: int, plan: list[list[int]]
) -> None:
    found = draws(tasks, seed, plan)
    assert found == draws(tasks, seed, plan)
    times = dict.fromkeys((task.id for task in pool(tasks)), 0)
    for wanted, wave in zip(plan, found, strict=True):
        ids = [task.id for draw in wave for task in draw]
        assert len(ids) == len(set(ids)) == min(sum(wanted), tasks)
        for id_ in ids:
            times[id_] += 1
    # A task of one pass may wait for a wave that has not had it: never longer than that.
    assert max(times.values()) - min(times.values()) <= 1 + (len(plan) > 0)


@given(st.integers(1, 12), st.integers(0, 99), st.integers(1, 12), st.integers(1, 6))
def test_without_rounds_a_pass_has_every_task_once(
    tasks: int, seed: int, batch: int, passes: int
) -> None:
    """Where batches fill the pass exactly."""
    batch = next(n for n in range(min(batch, tasks), 0, -1) if tasks % n == 0)
    found = draws(tasks, seed, [[batch]] * (passes * tasks // batch))
    order = [task.id for wave in found for draw in wave for task in draw]
    everything = sorted(task.id for task in pool(tasks))
    for number in range(passes):
        assert sorted(order[number * tasks : (number + 1) * tasks]) == everything


def test_another_seed_and_another_pass_are_another_order() -> None:
    def order(seed: int, skip: int) -> list[int]:
        waves = draws(40, seed, [[10]] * (4 + skip))[skip:]
        return [task.index for wave in waves for draw in wave for task in draw]

    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 4)
    assert sorted(order(1, 4)) == list(range(40))

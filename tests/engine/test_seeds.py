"""The seed tree: same path, same seed; another path, another seed."""

from __future__ import annotations

import random

from hypothesis import assume, given
from hypothesis import strategies as st
from rollwave.engine.seeds import derive, generator

labels = st.integers() | st.text(max_size=8)
paths = st.lists(labels, max_size=5).map(tuple)
seeds = st.integers(0, 2**63 - 1)


@given(seeds, paths)
def test_equal_paths_give_equal_seeds_in_63_bits(seed: int, path: tuple[int | str, ...]) -> None:
    derived = derive(seed, *path)
    assert derived == derive(seed, *path)
    assert 0 <= derived < 2**63


@given(seeds, paths, paths)
def test_a_path_is_walked_one_label_at_a_time(
    seed: int, first: tuple[int | str, ...], second: tuple[int | str, ...]
) -> None:
    assert derive(seed, *first, *second) == derive(derive(seed, *first), *second)


@given(seeds, paths, paths)
def test_different_paths_give_different_seeds(
    seed: int, first: tuple[int | str, ...], second: tuple[int | str, ...]
) -> None:
    assume(first != second)
    assert derive(seed, *first) != derive(seed, *second)


@given(seeds, seeds)
def test_different_runs_give_different_seeds(first: int, second: int) -> None:
    assume(first != second)
    assert derive(first, "wave", 0) != derive(second, "wave", 0)


def test_the_kind_of_a_label_and_the_cuts_between_labels_count() -> None:
    variants: list[tuple[str | int, ...]] = [
        (1,),
        ("1",),
        ("a", "b"),
        ("ab",),
        ("b", "a"),
        ("a", "b", ""),
        (0, 1),
        ("0:1",),
    ]
    assert len({derive(7, *path) for path in variants}) == len(variants)


def test_no_collision_among_the_seeds_of_a_large_run() -> None:
    found = set()
    for wave in range(4):
        for task in range(250):
            task_seed = derive(derive(0, wave), f"maze_{task}")
            for attempt in range(8):
                attempt_seed = derive(task_seed, attempt)
                found.add(attempt_seed)
                found.update(derive(attempt_seed, turn) for turn in range(25))
    assert len(found) == 4 * 250 * 8 * 26


def test_seeds_are_spread_over_all_bits() -> None:
    drawn = [derive(0, index) for index in range(4096)]
    for bit in range(63):
        share = sum(seed >> bit & 1 for seed in drawn) / len(drawn)
        assert 0.45 < share < 0.55, bit


def test_the_tree_stays_as_it_is() -> None:
    """Stored runs are replayed from these: a change here orphans every one of them."""
    assert derive(0) == 0
    assert derive(0, "wave") == 6471953399204925122
    assert derive(0, "wave", 1, "textcraft_12", 3) == 7229305616568172246
    assert generator(42, "turn", 0).random() == 0.4271375445173279


def test_the_global_generator_is_never_touched() -> None:
    before = random.getstate()
    generator(1, "a").random()
    derive(1, "b")
    assert random.getstate() == before


def test_generators_of_siblings_are_independent_of_their_order() -> None:
    first = [generator(5, index).random() for index in range(10)]
    second = [generator(5, index).random() for index in reversed(range(10))]
    assert first == second[::-1]
    assert len(set(first)) == 10

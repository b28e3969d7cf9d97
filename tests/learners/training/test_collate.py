"""Padding, micro-batches and optimiser steps: nothing lost, nothing twice."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="batches are tensors")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import BadSample  # noqa: E402
from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.training.collate import (  # noqa: E402
    collate,
    loss_denominator,
    loss_tokens,
    micro_batches,
    steps,
)


def sample(name: int, length: int, weight: float = 1.0) -> Sample:
    return Sample(str(name), list(range(1, length + 1)), [i % 2 for i in range(length)], (), weight)


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)
samples_of = lengths.map(lambda ns: [sample(i, n) for i, n in enumerate(ns)])


def test_padding_stands_at_the_right_and_carries_no_loss():
    batch = collate([Sample("a", [5, 6, 7], [0, 1, 1], [0.0, -1.0, -2.0]), sample(1, 5, 0.5)])
    assert batch.token_ids.tolist() == [[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.attention.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 1, 0]]
    assert batch.logprobs.tolist() == [[0, -1, -2, 0, 0], [0] * 5]
    assert batch.weights.tolist() == [1.0, 0.5]
    assert (batch.token_ids.dtype, batch.logprobs.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize(
    "broken", [Sample("a", [1, 2], [1]), Sample("a", [1, 2], [0, 1], [0.5])], ids=str
)
def test_a_sample_whose_parts_differ_in_length_is_refused(broken):
    with pytest.raises(BadSample, match="2 tokens"):
        collate([broken])


def test_the_first_token_has_no_loss_to_count():
    assert loss_tokens(Sample("a", [1, 2, 3], [1, 1, 0])) == 1
    assert loss_denominator([sample(0, 5, 2.0), sample(1, 3)]) == 2 * 2.0 + 1


@settings(deadline=None)
def width(sample: Sample) -> int:
    return len(sample.token_ids)


@given(samples_of, st.integers(1, 100))
def test_micro_batches_hold_every_sample_once_within_the_budget(samples, budget):
    parts = micro_batches(samples, budget, width=width)
    assert Counter(s.id for part in parts for s in part) == Counter(s.id for s in samples)
    for part in parts:
        widest = max(len(s.token_ids) for s in part)
        assert len(part) == 1 or len(part) * widest <= budget


@settings(deadline=None)
@given(samples_of, st.integers(0, 5), st.integers(1, 9), st.integers(0, 60), st.integers(1, 3))
def test_every_epoch_holds_every_sample_once(samples, seed, size, tokens, epochs):
    dealt = list(steps(samples, seed=seed, size=size, tokens=tokens, epochs=epochs, cost=width))
    assert Counter(s.id for step in dealt for s in step) == Counter({s.id: epochs for s in samples})
    for step in dealt:
        total = sum(len(s.token_ids) for s in step)
        assert len(step) == 1 or (total <= tokens if tokens else len(step) <= size)


@settings(deadline=None)
@given(samples_of, st.integers(0, 5), st.integers(1, 9), st.integers(1, 12))
def test_without_epochs_every_step_is_full_and_samples_take_turns(samples, seed, size, count):
    dealt = list(islice(steps(samples, seed=seed, size=size, cost=width), count))
    assert [len(step) for step in dealt] == [size] * count
    seen = Counter(s.id for step in dealt for s in step)
    assert max(seen.values()) - min(seen[s.id] for s in samples) <= 1


def test_the_order_depends_on_the_seed_and_changes_every_epoch():
    samples = [sample(i, 3) for i in range(20)]
    first, second = islice(steps(samples, seed=1, size=20, cost=width), 2)
    again = next(steps(samples, seed=1, size=20, cost=width))
    other = next(steps(samples, seed=2, size=20, cost=width))
    assert first == again
    assert first != second
    assert first != other


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=9),
    st.integers(0, 5),
    st.integers(1, 5),
    st.booleans(),
    st.integers(1, 3),
)
def test_the_turns_of_an_episode_are_dealt_into_one_step_as_one(sizes, seed, size, by_name, epochs):
    items = [(e, n) for e, turns in enumerate(sizes) for n in range(turns)]
    name = (lambda item: item[0]) if by_name else (lambda _: None)
    dealt = list(steps(items, seed=seed, size=size, epochs=epochs, cost=lambda _: 1, together=name))
    assert Counter(item for step in dealt for item in step) == dict.fromkeys(items, epochs)
    if not by_name:
        assert dealt == list(steps(items, seed=seed, size=size, epochs=epochs, cost=lambda _: 1))
        return
    for step in dealt:
        whole = dict.fromkeys(e for e, _ in step)
        assert len(whole) <= size
        assert step == [(e, n) for e in whole for n in range(sizes[e])]
    # So many steps as whole episodes would take.
    plain = steps(list(range(len(sizes))), seed=seed, size=size, epochs=epochs, cost=lambda _: 1)
    assert len(dealt) == len(list(plain))

"""Sampler against trainer: weights without a gradient, masks that only take away."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="ratios are tensors")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rollwave.learners.gradients.importance import (  # noqa: E402
    divergence,
    log_ratios,
    ratio_mask,
    sequence_weights,
    token_weights,
)

KINDS = ("none", "geometric", "product", "outlier", "icepop")
rows = st.lists(
    st.tuples(st.integers(-300, 300).map(lambda n: n / 100), st.booleans()), min_size=1, max_size=6
)


def of(row):
    ratios, mask = zip(*row, strict=True)
    mask = torch.tensor([mask])
    return torch.where(mask, torch.tensor([ratios]), 0.0), mask


@given(row=rows, cap=st.integers(1, 5))
def test_weights_are_capped_ratios_without_a_gradient(row, cap):
    ratio, mask = of(row)
    ratio.requires_grad_()
    for weights in (token_weights(ratio, mask, cap), sequence_weights(ratio, mask, cap)):
        assert not weights.requires_grad
        assert (weights <= cap).all()
        assert not weights[~mask].any()
    expected = ratio.detach().exp().clamp(max=cap)[mask]
    assert torch.allclose(token_weights(ratio, mask, cap)[mask], expected)
    product = min(math.exp(max(-20.0, min(20.0, float(ratio.detach().sum())))), cap)
    assert sequence_weights(ratio, mask, cap)[mask].tolist() == pytest.approx(
        [product] * int(mask.sum()), rel=1e-4
    )


@given(row=rows, kind=st.sampled_from(KINDS))
def test_masks_only_take_away_and_keep_equal_policies_whole(row, kind):
    ratio, mask = of(row)
    kept = ratio_mask(ratio, mask, kind)
    assert not (kept & ~mask).any()
    assert torch.equal(ratio_mask(torch.zeros_like(ratio), mask, kind), mask)
    if kind not in ("none", "icepop"):  # sequences stay or go whole
        assert not kept.any() or torch.equal(kept, mask)


@pytest.mark.parametrize(
    ("kind", "ratios", "kept"),
    [
        ("geometric", [1.2, 1 / 1.2, 1.0], [True] * 3),
        ("geometric", [1.03, 1.03, 1.0], [False] * 3),
        ("geometric", [0.98, 0.98, 1.0], [False] * 3),
        ("product", [0.6, 0.7, 1.0], [False] * 3),
        ("product", [1.5, 1.3, 1.0], [True] * 3),
        ("product", [1.5, 1.5, 1.0], [False] * 3),
        ("outlier", [90.0, 0.001, 1.0], [True] * 3),
        ("outlier", [101.0, 1.0, 1.0], [False] * 3),
        ("outlier", [0.00009, 1.0, 1.0], [False] * 3),
        ("icepop", [2.1, 1.9, 0.4], [False, True, False]),
    ],
)
def test_the_usual_bounds(kind, ratios, kept):
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert ratio_mask(torch.tensor([ratios]).log(), mask, kind).tolist() == [kept]


def test_a_geometric_mean_is_one_over_action_tokens():
    """Observations do not dilute it: here half of the row."""
    mask = torch.tensor([[True, True, False, False]])
    ratio = torch.where(mask, math.log(1.015), 0.0)
    assert not ratio_mask(ratio, mask, "geometric").any()


def test_bounds_may_be_given():
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert not ratio_mask(torch.tensor([[0.1]]), mask, "icepop", (0.95, 1.05)).any()


@given(row=rows, shift=st.floats(-100, 100))
def test_ratios_are_clamped_and_blind_to_observations(row, shift):
    new, mask = of(row)
    old = torch.where(mask, 0.0, shift)
    ratio = log_ratios(new * 20, old, mask)
    assert (ratio.abs() <= 20).all()
    assert not ratio[~mask].any()


def test_divergence_counts_action_tokens_alone():
    mask = torch.tensor([[True, False, True]])
    made = divergence(torch.tensor([[-1.0, -9.0, -2.0]]), torch.tensor([[-1.5, 0.0, -2.0]]), mask)
    assert made["logprob_mismatch"] == pytest.approx(0.25)
    assert made["mismatch_k3"] == pytest.approx((math.exp(0.5) - 1 - 0.5) / 2)
    assert divergence(torch.zeros(1, 3), torch.zeros(1, 3), mask & False) == {}

"""Surrogates, value loss and reductions: what moves which way, and where it stops."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="losses are tensors")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rollwave.learners.gradients.losses import (  # noqa: E402
    clipped,
    dropped,
    spread,
    surrogate,
    total,
    value_loss,
)
from rollwave.learners.settings.policy_gradient import SurrogateSettings  # noqa: E402

REDUCTIONS = ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm")
logp = st.integers(-400, -1).map(lambda n: n / 100)
advantage = st.integers(-200, 200).map(lambda n: n / 100)


def one(value: float):
    return torch.tensor([[value]])


def gradient(new: float, old: float, a: float, **options) -> float:
    """d loss / d log π of one token."""
    logprobs = one(new).requires_grad_()
    made = surrogate(
        logprobs, one(old), one(a), torch.tensor([[True]]), SurrogateSettings(**options)
    )
    made.loss.sum().backward()
    assert logprobs.grad is not None
    return float(logprobs.grad)


@given(
    rows=st.lists(st.tuples(logp, advantage), min_size=1, max_size=6),
    kind=st.sampled_from(["clip", "drop"]),
)
def test_at_the_first_step_the_loss_is_minus_the_mean_advantage(rows, kind):
    """Ratio 1; and its gradient is REINFORCE's."""
    old, made = (torch.tensor([column]) for column in zip(*rows, strict=True))
    mask = torch.ones(old.shape, dtype=torch.bool)
    logprobs = old.clone().requires_grad_()
    result = surrogate(logprobs, old, made, mask, SurrogateSettings(kind=kind))
    loss = spread(result.loss, mask, "token_mean") / total([mask.sum()], "token_mean")
    assert result.ratio.eq(1).all()
    assert not result.stopped.any()
    assert loss.item() == pytest.approx(-float(made.mean()), abs=1e-5)
    loss.backward()
    assert torch.allclose(logprobs.grad, -made / made.numel(), atol=1e-6)


@given(new=logp, old=logp, a=advantage)
def test_the_clip_kills_the_gradient_only_on_the_harmful_side(new, old, a):
    ratio = math.exp(new - old)
    if min(abs(ratio - 0.8), abs(ratio - 1.28)) < 1e-3 or abs(a) < 1e-3:
        return
    gone = (a > 0 and ratio > 1.28) or (a < 0 and ratio < 0.8)
    expected = 0.0 if gone else -a * ratio
    assert gradient(new, old, a, dual_clip=0.0) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(new=logp, old=logp, a=advantage)
def test_the_dual_clip_bounds_the_loss_of_bad_actions_alone(new, old, a):
    options = {"low": 0.2, "high": 0.28}
    mask = torch.tensor([[True]])
    plain = clipped(one(new), one(old), one(a), mask, **options)
    dual = clipped(one(new), one(old), one(a), mask, dual=3.0, **options)
    if a < 0:
        assert float(dual.loss) == pytest.approx(min(float(plain.loss), -3 * a), abs=1e-6)
    else:
        assert torch.equal(dual.loss, plain.loss)


@given(new=logp, old=logp, a=advantage, dual=st.sampled_from([0.0, 1.5, 3.0]))
def test_a_token_counts_as_stopped_where_its_gradient_is_gone(new, old, a, dual):
    """What `clip_fraction` reports."""
    made = clipped(
        one(new), one(old), one(a), torch.tensor([[True]]), low=0.2, high=0.28, dual=dual
    )
    ratio = math.exp(new - old)
    if abs(a) < 1e-3 or min(abs(ratio - bound) for bound in (0.8, 1.28, dual)) < 1e-3:
        return
    assert bool(made.stopped) == (gradient(new, old, a, dual_clip=dual) == 0)


@pytest.mark.parametrize("kind", ["clip", "drop"])
def test_there_is_no_loss_at_observations(kind):
    """Whatever stands there: spread over a step it would count."""
    mask = torch.tensor([[True, False]])
    made = surrogate(
        torch.tensor([[-1.0, -9.0]]),
        torch.tensor([[-1.0, -0.1]]),
        torch.tensor([[2.0, 2.0]]),
        mask,
        SurrogateSettings(kind=kind),
    )
    assert made.loss.tolist() == [[-2.0, 0.0]]
    assert made.stopped.tolist() == [[False, False]]
    values = value_loss(one(3.0), one(0.0), one(0.0), torch.tensor([[False]]), 0.5)
    assert values.item() == 0


def test_clip_higher_lets_a_rare_token_rise_further():
    # ratio 1.25 lies within 1.28 and outside 1.2
    new, old = math.log(1.25) - 2, -2.0
    assert gradient(new, old, 1.0, clip_high=0.2) == 0
    assert gradient(new, old, 1.0) == pytest.approx(-1.25, rel=1e-5)


def test_drop_leaves_out_what_moved_too_far_the_way_it_was_pushed():
    mask = torch.ones(1, 4, dtype=torch.bool)
    old = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).log()
    new = torch.tensor([[0.8, 0.8, 0.2, 0.2]]).log()
    a = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    made = dropped(new, old, a, mask, above=0.2, penalty=0.0)
    assert made.stopped.tolist() == [[True, False, False, True]]
    assert made.loss[0].tolist() == pytest.approx([0.0, 1.6, -0.4, 0.0])
    # How much a token is wanted does not say how far it has moved.
    for scale in (0.1, 10.0):
        again = dropped(new, old, scale * a, mask, above=0.2, penalty=0.0)
        assert torch.equal(again.stopped, made.stopped)
    assert not dropped(new, old, a, mask, above=0.31, penalty=0.0).stopped.any()
    penalised = dropped(new, old, a, mask, above=0.2, penalty=1.0)
    squares = (new - old).square()
    assert torch.allclose(penalised.loss, made.loss + squares)


@given(new=st.floats(-1e4, 0), old=st.floats(-1e4, 0), a=advantage)
def test_extreme_log_probs_stay_finite(new, old, a):
    for kind in ("clip", "drop"):
        assert math.isfinite(gradient(new, old, a, kind=kind))


@given(v=advantage, old=advantage, target=advantage)
def test_the_value_loss_never_rewards_a_jump(v, old, target):
    mask = torch.tensor([[True]])
    clip = 0.5
    loss = float(value_loss(one(v), one(old), one(target), mask, clip))
    bounded = old + max(-clip, min(clip, v - old))
    worse = max((v - target) ** 2, (bounded - target) ** 2)
    assert loss == pytest.approx(worse / 2, abs=1e-5)
    assert loss >= (v - target) ** 2 / 2 - 1e-5
    if abs(v - old) <= clip:
        assert loss == pytest.approx((v - target) ** 2 / 2, abs=1e-5)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    reduction=st.sampled_from(REDUCTIONS),
    cut=st.integers(1, 4),
)
def test_a_step_may_be_cut_anywhere(lengths, reduction, cut):
    """The global mean, not the mean of the parts' means; rows without a token do not count."""
    lengths = [*lengths, 0]
    width = max(lengths)
    mask = torch.tensor([[t < n for t in range(width)] for n in lengths])
    losses = torch.arange(1.0, mask.numel() + 1).reshape(mask.shape)
    norm = 7.0 if reduction.endswith("norm") else 0.0
    denominator = total([int(row.sum()) for row in mask], reduction)
    whole = float(spread(losses, mask, reduction, norm)) / denominator
    parts = [slice(0, cut), slice(cut, len(lengths))]
    summed = sum(float(spread(losses[p], mask[p], reduction, norm)) / denominator for p in parts)
    assert summed == pytest.approx(whole, rel=1e-5)
    rows = [losses[i][mask[i]] for i in range(len(lengths)) if lengths[i]]
    expected = {
        "token_mean": torch.cat(rows).mean(),
        "seq_mean_token_mean": torch.stack([row.mean() for row in rows]).mean(),
        "seq_mean_token_sum_norm": torch.stack([row.sum() / 7 for row in rows]).mean(),
    }[reduction]
    assert whole == pytest.approx(float(expected), rel=1e-5)

"""Losses of pairs against closed forms, on numbers alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the losses are torch functions")

from rollwave.learners.preferences.losses import (  # noqa: E402
    Sides,
    ipo_loss,
    preference_loss,
    preference_metrics,
    sigmoid_loss,
)

LN2 = 0.6931471805599453

logprob = st.floats(-80.0, -0.01)
quadruple = st.tuples(logprob, logprob, logprob, logprob)
beta = st.floats(0.01, 2.0)


def sides(*quadruples: tuple[float, float, float, float], lengths=(4.0, 7.0)) -> Sides:
    columns = torch.tensor(quadruples, dtype=torch.float64).T
    chosen, rejected, reference_chosen, reference_rejected = columns
    n = len(quadruples)
    return Sides(
        chosen.clone().requires_grad_(),
        rejected.clone().requires_grad_(),
        reference_chosen,
        reference_rejected,
        torch.full((n,), lengths[0], dtype=torch.float64),
        torch.full((n,), lengths[1], dtype=torch.float64),
    )


def by_hand(pair, b: float, smoothing: float = 0.0) -> float:
    """-(1-eps) log sigma(beta h) - eps log sigma(-beta h), in plain floats."""
    w, v, rw, rv = pair
    z = b * ((w - v) - (rw - rv))

    def softplus(x: float) -> float:
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    return (1 - smoothing) * softplus(-z) + smoothing * softplus(z)


@given(quadruple, beta, st.floats(0.0, 0.49))
def test_dpo_is_its_formula(pair, b, smoothing):
    found = preference_loss(sides(pair), beta=b, smoothing=smoothing)
    assert found.item() == pytest.approx(by_hand(pair, b, smoothing), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("b", [0.05, 0.1, 0.5])
def test_at_the_reference_the_loss_is_ln_2_and_the_gradient_beta_over_two_b(b, smoothing):
    pairs = [(-3.0, -9.0, -3.0, -9.0), (-5.0, -1.0, -5.0, -1.0), (-2.0, -2.0, -2.0, -2.0)]
    at = sides(*pairs)
    loss = preference_loss(at, beta=b, smoothing=smoothing).mean()
    assert loss.item() == pytest.approx(LN2, abs=1e-12)
    loss.backward()
    expected = -b / (2 * len(pairs)) * (1 - 2 * smoothing)
    assert at.chosen.grad.tolist() == pytest.approx([expected] * 3, abs=1e-12)
    assert at.rejected.grad.tolist() == pytest.approx([-expected] * 3, abs=1e-12)


@given(quadruple, beta)
def test_the_gradient_is_minus_beta_sigma_of_minus_beta_h(pair, b):
    at = sides(pair)
    preference_loss(at, beta=b).mean().backward()
    h = (pair[0] - pair[1]) - (pair[2] - pair[3])
    expected = -b * float(torch.sigmoid(torch.tensor(-b * h, dtype=torch.float64)))
    assert at.chosen.grad.item() == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert at.rejected.grad.item() == -at.chosen.grad.item()


@given(quadruple)
def test_swapping_the_sides_turns_h_round(pair):
    w, v, rw, rv = pair
    assert sides((v, w, rv, rw)).advantage().item() == -sides(pair).advantage().item()


@given(quadruple, st.floats(-20, 20), beta)
def test_a_constant_on_both_sides_changes_nothing(pair, constant, b):
    w, v, rw, rv = pair
    shifted = sides((w + constant, v + constant, rw, rv))
    assert shifted.advantage().item() == pytest.approx(sides(pair).advantage().item(), abs=1e-10)
    for kind in ("sigmoid", "ipo"):
        moved = preference_loss(shifted, kind=kind, beta=b).item()
        assert moved == pytest.approx(
            preference_loss(sides(pair), kind=kind, beta=b).item(), abs=1e-6
        )


@pytest.mark.parametrize("share", [0.6, 0.75, 0.95])
@pytest.mark.parametrize("b", [0.1, 0.5])
def test_the_population_optimum_is_logit_over_beta(share, b):
    """With P(w beats l) = p the expected loss is least at h = logit(p) / beta. And what label
    smoothing assumes is just such a share."""
    h = torch.tensor([math.log(share / (1 - share)) / b], dtype=torch.float64, requires_grad=True)
    expected = share * sigmoid_loss(h, b) + (1 - share) * sigmoid_loss(-h, b)
    smoothed = sigmoid_loss(h, b, smoothing=1 - share)
    assert expected.item() == pytest.approx(smoothed.item(), abs=1e-12)
    assert torch.autograd.grad(expected.sum(), h)[0].abs().item() < 1e-12
    aside = (
        sigmoid_loss(h.detach() + 0.1, b, 1 - share),
        sigmoid_loss(h.detach() - 0.1, b, 1 - share),
    )
    assert min(aside).item() > smoothed.item()


@given(st.floats(-50, 50), beta)
def test_ipo_is_a_parabola_with_its_foot_at_half_over_beta(h, b):
    at = torch.tensor([h], dtype=torch.float64)
    assert ipo_loss(at, b).item() == pytest.approx((h - 0.5 / b) ** 2, rel=1e-9, abs=1e-9)
    assert ipo_loss(torch.tensor([0.5 / b], dtype=torch.float64), b).item() < 1e-20


def test_the_likelihood_term_is_the_chosen_sides_mean_surprise():
    pair = (-6.0, -3.0, -5.0, -4.0)
    plain = preference_loss(sides(pair), beta=0.1).item()
    at = sides(pair, lengths=(3.0, 9.0))
    found = preference_loss(at, beta=0.1, nll=0.5)
    assert found.item() == pytest.approx(plain + 0.5 * 6.0 / 3.0)
    found.backward()
    alone = sides(pair)
    preference_loss(alone, beta=0.1).backward()
    assert at.chosen.grad.item() == pytest.approx(alone.chosen.grad.item() - 0.5 / 3.0)
    assert at.rejected.grad.item() == pytest.approx(alone.rejected.grad.item())


def test_dpop_punishes_a_chosen_side_that_fell_and_no_other():
    fell, rose = (-6.0, -9.0, -5.0, -4.0), (-4.0, -9.0, -5.0, -4.0)
    for pair, displaced in ((fell, 1.0), (rose, 0.0)):
        w, v, rw, rv = pair
        h = (w - v) - (rw - rv) - 5.0 * displaced
        found = preference_loss(sides(pair), beta=0.1, dpop=5.0).item()
        assert found == pytest.approx(-math.log(1 / (1 + math.exp(-0.1 * h))))


def test_length_normalised_compares_means():
    pair = (-8.0, -21.0, -4.0, -7.0)
    at = sides(pair, lengths=(4.0, 7.0))
    h = (-2.0 + 3.0) - (-1.0 + 1.0)
    assert at.per_token().advantage().item() == h
    found = preference_loss(at, beta=0.3, length_normalised=True, nll=1.0).item()
    # The likelihood term is a mean either way.
    assert found == pytest.approx(math.log1p(math.exp(-0.3 * h)) + 2.0)


def test_dpop_is_by_the_token_too_where_the_rest_is():
    pair = (-8.0, -21.0, -4.0, -7.0)
    h = (-2.0 + 3.0) - (-1.0 + 1.0) - 0.5 * (2.0 - 1.0)
    found = preference_loss(
        sides(pair, lengths=(4.0, 7.0)), beta=0.3, length_normalised=True, dpop=0.5
    )
    assert found.item() == pytest.approx(math.log1p(math.exp(-0.3 * h)))


@pytest.mark.parametrize(("h", "right"), [(5e-4, 0.0), (2e-3, 1.0), (-1.0, 0.0)])
def test_the_rounding_of_two_passes_is_a_tie(h, right):
    """At the start of an iteration nothing is learned yet, and accuracy says so."""
    found = preference_metrics(sides((-1.0 + h, -2.0, -1.0, -2.0)), beta=0.5)
    assert found["accuracy"] == right


def test_a_tie_is_wrong_and_absolute_numbers_are_told():
    pairs = [(-1.0, -2.0, -1.0, -2.0), (-1.0, -3.0, -1.0, -2.0), (-3.0, -2.0, -1.0, -2.0)]
    found = preference_metrics(sides(*pairs), beta=0.5)
    assert found["accuracy"] == 1.0  # of three: a tie, a right one, a wrong one
    assert found["margin"] == pytest.approx(0.5 * (0 + 1 - 2))
    assert found["chosen_reward"] == pytest.approx(0.5 * (0 + 0 - 2))
    assert found["rejected_reward"] == pytest.approx(0.5 * (0 - 1 + 0))
    assert (found["chosen_logprob"], found["rejected_logprob"]) == (-5.0, -7.0)
    assert (found["chosen_tokens"], found["rejected_tokens"]) == (12.0, 21.0)


@given(st.lists(quadruple, min_size=2, max_size=6), beta)
def test_a_mean_over_a_step_does_not_depend_on_its_cut(pairs, b):
    whole = preference_loss(sides(*pairs), beta=b).sum().item()
    parts = sum(preference_loss(sides(pair), beta=b).item() for pair in pairs)
    assert whole == pytest.approx(parts, rel=1e-9)

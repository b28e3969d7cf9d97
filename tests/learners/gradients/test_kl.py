"""KL estimators: which gradient each has, and where a bandit on a leash comes to rest."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="estimators are of tensors")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rollwave.engine.errors import CheckpointCorrupt  # noqa: E402
from rollwave.learners.gradients.kl import (  # noqa: E402
    adapted,
    carried_coefficient,
    estimate,
    leave_coefficient,
    penalised,
)

REF = torch.tensor([0.7, 0.3], dtype=torch.float64)
PAYS = torch.tensor([0.2, 1.0], dtype=torch.float64)
BETA = 0.5
OPTIMUM = (REF * (PAYS / BETA).exp()) / (REF * (PAYS / BETA).exp()).sum()

logits = st.integers(-300, 300).map(lambda n: n / 100)


def expected_gradient(theta, kind):
    """Of the mean over the policy's own draws of an estimator in the loss, at one logit."""
    logps = torch.stack([theta, torch.zeros_like(theta)]).log_softmax(0)
    loss = (logps.detach().exp() * estimate(logps, REF.log(), kind)).sum()
    return torch.autograd.grad(loss, theta)[0].item()


def true_gradient(theta, forward):
    logps = torch.stack([theta, torch.zeros_like(theta)]).log_softmax(0)
    kl = (REF * (REF.log() - logps)).sum() if forward else (logps.exp() * (logps - REF.log())).sum()
    return torch.autograd.grad(kl, theta)[0].item()


@given(value=logits)
def test_what_each_estimators_gradient_is(value):
    theta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    assert expected_gradient(theta, "k1") == pytest.approx(0, abs=1e-9)
    assert expected_gradient(theta, "k2") == pytest.approx(true_gradient(theta, False), abs=1e-9)
    assert expected_gradient(theta, "k3+") == pytest.approx(true_gradient(theta, False), abs=1e-9)
    assert expected_gradient(theta, "k3") == pytest.approx(true_gradient(theta, True), abs=1e-9)


@given(value=logits)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(value):
    logps = torch.tensor([value, 0.0], dtype=torch.float64).log_softmax(0)
    kl = float((logps.exp() * (logps - REF.log())).sum())
    for kind in ("k1", "k3", "k3+"):
        mean = float((logps.exp() * estimate(logps, REF.log(), kind)).sum())
        assert mean == pytest.approx(kl, abs=1e-9)
    assert (estimate(logps, REF.log(), "k3") >= 0).all()
    assert not estimate(REF.log(), REF.log(), "k3").any()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3+"])
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_policies_far_apart_give_a_large_number_and_no_infinity(kind, far):
    logprobs = torch.tensor([far - 1e4], requires_grad=True)
    value = estimate(logprobs, torch.tensor([-1e4]), kind)
    value.sum().backward()
    assert value.isfinite().all()
    assert value.abs() >= 19
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("where", ["reward", "k2", "k3+"])
def test_a_two_armed_bandit_on_a_leash_rests_where_it_should(where):
    """π ∝ π_ref e^{r/β}, by descent along the expected gradient."""
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        logps = torch.cat([theta, torch.zeros(1)]).log_softmax(0)
        rewards = PAYS[None]
        if where == "reward":
            everywhere = torch.ones(1, 2, dtype=torch.bool)
            rewards = penalised(rewards, logps[None], REF.log()[None], everywhere, BETA)
        losses = -rewards[0] * logps
        if where != "reward":
            losses = losses + BETA * estimate(logps, REF.log(), where)
        (gradient,) = torch.autograd.grad((logps.detach().exp() * losses).sum(), theta)
        theta.data -= 2 * gradient
    probability = float(torch.cat([theta.detach(), torch.zeros(1)]).softmax(0)[0])
    assert probability == pytest.approx(float(OPTIMUM[0]), abs=1e-6)


def test_a_penalty_stands_at_action_tokens_and_carries_no_gradient():
    old = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    made = penalised(torch.tensor([[0.0, 0.0, 1.0]]), old, torch.zeros(1, 3), mask, 0.5)
    assert made.tolist() == [[0.5, 0.0, 2.5]]
    assert not made.requires_grad


@given(kl=st.floats(0, 10), count=st.integers(1, 1000))
def test_the_controller_pulls_towards_its_target(kl, count):
    after = adapted(0.1, kl, target=0.1, horizon=10_000, count=count)
    assert (after - 0.1) * (kl - 0.1) >= 0
    assert 0 <= after <= 0.1 * (1 + 0.2 * count / 10_000) + 1e-12


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.1, 1.0),
        (0.11, 1 + 0.1 * 0.05),  # a tenth too much, over 500 of 10,000 trajectories
        (0.09, 1 - 0.1 * 0.05),
        (0.12, 1 + 0.2 * 0.05),
        (5.0, 1 + 0.2 * 0.05),  # no error is answered beyond a fifth
        (0.0, 1 - 0.2 * 0.05),
    ],
)
def test_the_controller_answers_the_relative_error(kl, factor):
    found = adapted(0.3, kl, target=0.1, horizon=10_000, count=500)
    assert found == pytest.approx(0.3 * factor, rel=1e-9)


@pytest.mark.parametrize("horizon", [1.0, 100.0])
def test_a_coefficient_never_falls_to_0_where_it_would_stay(horizon):
    coefficient = 0.1
    for _ in range(1000):
        coefficient = adapted(coefficient, 0.0, target=0.1, horizon=horizon, count=1000)
        assert coefficient > 0
    assert adapted(coefficient, 1.0, target=0.1, horizon=horizon, count=1000) > coefficient


def test_a_coefficient_of_0_left_by_another_build_is_not_taken_up(tmp_path):
    leave_coefficient(tmp_path, 0.0)
    assert carried_coefficient(tmp_path, 0.3) == 0.3


def test_the_coefficient_goes_with_the_policy(tmp_path):
    assert carried_coefficient(tmp_path, 0.3) == 0.3
    leave_coefficient(tmp_path, 0.7)
    assert carried_coefficient(tmp_path, 0.3) == 0.7
    (tmp_path / "training" / "kl.json").write_bytes(b"{")
    with pytest.raises(CheckpointCorrupt, match=r"kl\.json"):
        carried_coefficient(tmp_path, 0.3)

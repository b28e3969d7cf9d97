"""Advantages: the oracles of algorithms 4.8 and the traps of 4.2, as laws."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="advantages are tensors")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rollwave.engine.errors import BadSample  # noqa: E402
from rollwave.learners.gradients.advantages import (  # noqa: E402
    gae,
    group_advantages,
    informative,
    numbered,
    returns_to_go,
    step_advantages,
    turn_gae,
    whitened,
)

ESTIMATORS = ("grpo", "dr_grpo", "rloo", "maxrl")
grid = st.integers(0, 20).map(lambda n: n / 20)
group = st.lists(grid, min_size=2, max_size=8)
number = st.integers(-300, 300).map(lambda n: n / 100)


def advantages(rewards, estimator="dr_grpo"):
    """Of one group."""
    groups = torch.zeros(len(rewards), dtype=torch.int64)
    return group_advantages(torch.tensor(rewards), groups, estimator).tolist()


@st.composite
def episodes(draw):
    """(rewards, values, mask, turn of each token) of a few sequences; rewards at actions alone."""
    shape = rows, length = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    bits = draw(st.integers(0, 2 ** (rows * length) - 1))
    mask = torch.tensor([bits >> i & 1 for i in range(rows * length)]).bool().reshape(shape)
    mask[:, -1] |= ~mask.any(dim=1)
    # Numbers as such need no shrinking.
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    rewards, values = torch.randint(-300, 301, (2, *shape), generator=random) / 100
    begins = mask & ~torch.nn.functional.pad(mask[:, :-1], (1, 0))
    turns = torch.where(mask, begins.long().cumsum(1) - 1, -1)
    return rewards * mask, values, mask, turns


@given(rewards=group, estimator=st.sampled_from(ESTIMATORS))
def test_advantages_of_a_group_sum_to_zero(rewards, estimator):
    assert sum(advantages(rewards, estimator)) == pytest.approx(0, abs=1e-4)


@given(rewards=group, shift=st.integers(0, 5), estimator=st.sampled_from(ESTIMATORS[:3]))
def test_a_shift_of_all_rewards_changes_nothing(rewards, shift, estimator):
    moved = [reward + shift for reward in rewards]
    assert advantages(moved, estimator) == pytest.approx(advantages(rewards, estimator), abs=1e-4)


@given(rewards=group, scale=st.integers(1, 10))
def test_grpo_and_maxrl_do_not_see_the_scale(rewards, scale):
    for estimator in ("grpo", "maxrl"):
        scaled = advantages([reward * scale for reward in rewards], estimator)
        assert scaled == pytest.approx(advantages(rewards, estimator), rel=1e-3, abs=1e-4)


@given(rewards=group)
def test_rloo_is_the_reward_less_the_mean_of_the_others(rewards):
    n, total = len(rewards), sum(rewards)
    expected = [reward - (total - reward) / (n - 1) for reward in rewards]
    if max(rewards) == min(rewards):
        expected = [0.0] * n
    assert advantages(rewards, "rloo") == pytest.approx(expected, abs=1e-5)
    scaled = [a * n / (n - 1) for a in advantages(rewards, "dr_grpo")]
    assert advantages(rewards, "rloo") == pytest.approx(scaled, abs=1e-5)


@given(reward=st.floats(0, 1), n=st.integers(1, 6), estimator=st.sampled_from(ESTIMATORS))
def test_equal_rewards_and_groups_of_one_give_exactly_zero(reward, n, estimator):
    """Published code gives a group of one A = r: mean 0 and std 1."""
    noise = [reward + 1e-8 * i for i in range(n)]
    assert advantages(noise, estimator) == [0.0] * n
    groups = torch.zeros(n, dtype=torch.int64)
    assert not informative(torch.tensor(noise), groups).any()


@given(groups=st.lists(group, min_size=1, max_size=4), estimator=st.sampled_from(ESTIMATORS))
def test_groups_do_not_see_each_other(groups, estimator):
    keys = [index for index, members in enumerate(groups) for _ in members]
    together = group_advantages(
        torch.tensor([r for members in groups for r in members]), numbered(keys), estimator
    )
    apart = [a for members in groups for a in advantages(members, estimator)]
    assert together.tolist() == pytest.approx(apart, abs=1e-5)


def test_grpo_divides_by_the_sample_deviation():
    # r = 1, 0, 0: mean 1/3, std (ddof 1) = sqrt(1/3)
    std = math.sqrt(1 / 3)
    assert advantages([1.0, 0.0, 0.0], "grpo") == pytest.approx(
        [2 / 3 / std, -1 / 3 / std, -1 / 3 / std], abs=1e-4
    )
    assert advantages([1.0, 0.0, 0.0], "maxrl") == pytest.approx([2.0, -1.0, -1.0])


def test_maxrl_refuses_negative_rewards():
    with pytest.raises(BadSample, match="maxrl"):
        advantages([1.0, -0.5], "maxrl")


@given(episode=episodes())
def test_without_a_critic_every_action_of_every_turn_gets_the_return(episode):
    """γ = λ = 1 and V = 0 ⇒ A = R, where the reward stands at the last action token."""
    _, values, mask, turns = episode
    rewards = torch.zeros(mask.shape)
    for row in range(len(mask)):
        rewards[row, int(mask[row].nonzero().max())] = 1.0 + row
    expected = torch.where(mask, 1.0 + torch.arange(len(mask))[:, None], 0.0)
    made, returns = gae(rewards, torch.zeros_like(values), mask, discount=1, smoothing=1)
    assert torch.equal(made, expected)
    assert torch.equal(returns, expected)
    assert torch.equal(returns_to_go(rewards, mask, 1.0), expected)
    shared, _, _ = turn_gae(rewards, torch.zeros_like(values), turns, discount=1, smoothing=1)
    assert torch.equal(shared, expected)


@given(episode=episodes(), noise=number, discount=grid, smoothing=grid)
def test_values_at_observations_change_nothing(episode, noise, discount, smoothing):
    rewards, values, mask, turns = episode
    other = torch.where(mask, values, values + noise)
    options = {"discount": discount, "smoothing": smoothing}
    for first, second in zip(
        gae(rewards, values, mask, **options), gae(rewards, other, mask, **options), strict=True
    ):
        assert torch.equal(first, second)
    for first, second in zip(
        turn_gae(rewards, values, turns, **options),
        turn_gae(rewards, other, turns, **options),
        strict=True,
    ):
        assert torch.equal(first, second)


@given(episode=episodes(), discount=grid, smoothing=grid)
def test_a_compacted_sequence_gets_the_same(episode, discount, smoothing):
    """Observations cost no discount, and nothing is bootstrapped from them."""
    rewards, values, mask, turns = (tensor[:1] for tensor in episode)
    kept = mask[0]
    full = torch.ones(1, int(kept.sum()), dtype=torch.bool)
    options = {"discount": discount, "smoothing": smoothing}
    made = gae(rewards, values, mask, **options)[0]
    compact = gae(rewards[:, kept], values[:, kept], full, **options)[0]
    assert made[:, kept].equal(compact)
    to_go = returns_to_go(rewards, mask, discount)
    assert to_go[:, kept].equal(returns_to_go(rewards[:, kept], full, discount))
    shared = turn_gae(rewards, values, turns, **options)[0]
    assert shared[:, kept].equal(
        turn_gae(rewards[:, kept], values[:, kept], turns[:, kept], **options)[0]
    )


@given(episode=episodes(), discount=grid)
def test_lambda_one_is_the_return_less_the_value(episode, discount):
    rewards, values, mask, _ = episode
    made, returns = gae(rewards, values, mask, discount=discount, smoothing=1)
    to_go = returns_to_go(rewards, mask, discount)
    assert torch.allclose(returns, to_go, atol=1e-4)
    assert torch.allclose(made, torch.where(mask, to_go - values, 0.0), atol=1e-4)


@given(episode=episodes(), discount=grid)
def test_lambda_zero_looks_one_decision_ahead(episode, discount):
    rewards, values, mask, _ = (tensor[:1] for tensor in episode)
    made, _ = gae(rewards, values, mask, discount=discount, smoothing=0)
    r, v = rewards[mask], values[mask]
    ahead = torch.cat([v[1:], torch.zeros(1)])
    assert torch.allclose(made[mask], r + discount * ahead - v, atol=1e-5)


@given(episode=episodes(), discount=grid, smoothing=grid)
def test_a_turn_is_one_decision(episode, discount, smoothing):
    """Turn by turn it is token-level GAE over one token a turn."""
    rewards, values, _, turns = (tensor[:1] for tensor in episode)
    count = int(turns.max()) + 1
    first = [int((turns[0] == k).nonzero().min()) for k in range(count)]
    options = {"discount": discount, "smoothing": smoothing}
    each = gae(
        torch.stack([rewards[0][turns[0] == k].sum() for k in range(count)])[None],
        values[:, first],
        torch.ones(1, count, dtype=torch.bool),
        **options,
    )
    made, returns, decisions = turn_gae(rewards, values, turns, **options)
    assert decisions[0].nonzero().squeeze(-1).tolist() == first
    assert torch.allclose(returns[:, first], each[1], atol=1e-4)
    for k in range(count):
        of_turn = made[0][turns[0] == k]
        assert torch.allclose(of_turn, each[0][0, k].expand_as(of_turn), atol=1e-4)


def test_reinforce_pp_with_resets_starves_all_turns_but_the_last():
    """The mechanism of E13: three turns of one token, the reward at the end."""
    mask = torch.tensor([[0, 1, 0, 1, 0, 1, 0]]).bool()
    rewards = torch.tensor([[0.0, 0, 0, 0, 0, 1, 0]])
    fixed = returns_to_go(rewards, mask, 1.0)
    broken = returns_to_go(rewards, mask, 1.0, resets=True)
    assert fixed[mask].tolist() == [1, 1, 1]
    assert broken[mask].tolist() == [0, 0, 1]
    assert returns_to_go(rewards, mask, 0.5)[mask].tolist() == [0.25, 0.5, 1]


@given(episode=episodes())
def test_a_reward_at_an_observation_is_refused(episode):
    _, values, mask, _ = episode
    wrong = torch.ones(mask.shape)
    if mask.all():
        gae(wrong, values, mask, discount=1, smoothing=1)
        return
    for call in (
        lambda: gae(wrong, values, mask, discount=1, smoothing=1),
        lambda: returns_to_go(wrong, mask, 1.0),
    ):
        with pytest.raises(BadSample, match="observation"):
            call()


@given(episode=episodes(), noise=number)
def test_whitening_sees_action_tokens_alone(episode, noise):
    _, values, mask, _ = episode
    white = whitened(values, mask)
    assert torch.equal(white, whitened(torch.where(mask, values, values + noise), mask))
    assert not white[~mask].any()
    picked = white[mask]
    if picked.any():
        assert float(picked.mean()) == pytest.approx(0, abs=1e-3)
        assert float(picked.std()) == pytest.approx(1, abs=1e-2)
    else:
        span = values[mask].max() - values[mask].min()
        assert len(picked) < 2 or float(span) <= 1e-6


def test_step_groups_are_equal_observations_of_one_task():
    rewards = [[0.0, 1.0], [0.0, 0.0], [0.0]]
    anchors = [["start", "near"], ["start", "far"], ["other"]]
    made = step_advantages(rewards, anchors, 1.0)
    # start: returns 1 and 0; the three others stand alone.
    assert made == [[0.5, 0.0], [-0.5, 0.0], [0.0]]
    discounted = step_advantages(rewards, anchors, 0.5)
    assert discounted[0][0] == pytest.approx(0.25)


@pytest.mark.parametrize("estimator", ["dr_grpo", "rloo"])
def test_the_expected_gradient_on_a_bandit(estimator):
    """Over all groups of n draws: RLOO's is the exact gradient, Dr.GRPO's (n−1)/n of it."""
    pays = torch.tensor([0.2, 0.9, 0.5])
    logits = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    probs = logits.softmax(0)
    exact = torch.autograd.grad((probs * pays).sum(), logits, retain_graph=True)[0]
    n = 3
    expected = torch.zeros(3, dtype=torch.float64)
    for draw in torch.cartesian_prod(*[torch.arange(3)] * n):
        made = group_advantages(pays[draw], torch.zeros(n, dtype=torch.int64), estimator)
        logps = logits.log_softmax(0)[draw]
        grad = torch.autograd.grad((logps * made).mean(), logits)[0]
        expected += probs[draw].prod().detach() * grad
    factor = 1.0 if estimator == "rloo" else (n - 1) / n
    assert torch.allclose(expected, factor * exact, atol=1e-6)

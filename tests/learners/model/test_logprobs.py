"""Losses against plain formulas; no gradient where the agent did not write."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="losses are tensors")
pytestmark = pytest.mark.learn

from rollwave.learners.model.logprobs import nll, shifted_logprobs, token_logprobs  # noqa: E402


def example(seed: int = 0, rows: int = 3, length: int = 7, words: int = 5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, words, generator=generator)
    ids = torch.randint(words, (rows, length), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.5
    mask[:, -1] = True
    return logits, ids, mask


def test_logprobs_are_those_of_the_softmax_one_position_earlier():
    logits, ids, mask = example()
    values = shifted_logprobs(logits, ids, mask)
    assert values.shape == ids.shape
    for b in range(3):
        for t in range(7):
            if t == 0 or not mask[b, t]:
                assert values[b, t] == 0
            else:
                row = logits[b, t - 1].tolist()
                total = math.log(sum(math.exp(x) for x in row))
                assert values[b, t].item() == pytest.approx(row[ids[b, t]] - total, abs=1e-6)


def test_gradient_is_exactly_zero_where_the_successor_carries_no_loss():
    logits, ids, mask = example()
    logits.requires_grad_()
    values = shifted_logprobs(logits, ids, mask)
    nll(values, mask, torch.ones(3), float(mask[:, 1:].sum())).backward()
    predicted = torch.zeros_like(mask)
    predicted[:, :-1] = mask[:, 1:]
    assert (logits.grad[~predicted] == 0).all()
    assert (logits.grad[predicted].abs().sum(-1) > 0).all()


def test_labels_of_observations_do_not_change_the_loss():
    logits, ids, mask = example()
    other = torch.where(mask, ids, (ids + 1) % 5)
    first = nll(shifted_logprobs(logits, ids, mask), mask, torch.ones(3), 7.0)
    second = nll(shifted_logprobs(logits, other, mask), mask, torch.ones(3), 7.0)
    assert first.item() == second.item()


def test_infinite_logits_of_observations_do_not_reach_the_loss():
    logits, ids, mask = example()
    predicted = torch.zeros_like(mask)
    predicted[:, :-1] = mask[:, 1:]
    logits[~predicted] = float("nan")
    assert torch.isfinite(nll(shifted_logprobs(logits, ids, mask), mask, torch.ones(3), 7.0))


def test_weights_and_global_denominator_follow_the_formula():
    logits, ids, mask = example(1)
    weights = torch.tensor([0.5, 0.0, 2.0])
    values = shifted_logprobs(logits, ids, mask)
    counts = mask[:, 1:].sum(1)
    denominator = float((weights * counts).sum())
    expected = sum(weights[i].item() * -values[i][mask[i]].sum().item() for i in range(3)) / sum(
        weights[i].item() * counts[i].item() for i in range(3)
    )
    assert nll(values, mask, weights, denominator).item() == pytest.approx(expected, abs=1e-6)


def test_equal_weights_give_the_token_mean_not_the_mean_of_sequence_means():
    values = torch.tensor([[0.0, -1.0, -1.0, -1.0], [0.0, -5.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    assert nll(values, mask, torch.ones(2), 4.0).item() == pytest.approx(8 / 4)


def test_temperature_divides_the_logits():
    logits, ids, mask = example()
    warm = token_logprobs(logits, ids, mask, temperature=2.0)
    assert torch.equal(warm, token_logprobs(logits / 2, ids, mask))


def test_half_precision_logits_are_normalised_in_float32():
    logits, ids, mask = example()
    values = token_logprobs(logits.bfloat16(), ids, mask)
    assert values.dtype == torch.float32
    assert torch.equal(values, token_logprobs(logits.bfloat16().float(), ids, mask))

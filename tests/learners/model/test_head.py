"""The output head in chunks: the plain computation's values and gradients, in bounded memory."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the head is a torch function")
pytestmark = pytest.mark.learn

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rollwave.learners.model.head import head_scores, logits_scores  # noqa: E402


def inputs(n: int, v: int, *, bias: bool, seed: int = 0, dtype=torch.float64):
    noise = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=noise, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, 6, generator=noise, dtype=dtype, requires_grad=True)
    offset = torch.randn(v, generator=noise, dtype=dtype, requires_grad=True) if bias else None
    targets = torch.randint(v, (n,), generator=noise)
    return hidden, weight, offset, targets


def gradients(outputs, leaves, seed: int = 1) -> list:
    noise = torch.Generator().manual_seed(seed)
    total = sum((out * torch.randn(out.shape, generator=noise)).sum() for out in outputs)
    return list(torch.autograd.grad(total, [leaf for leaf in leaves if leaf is not None]))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    v=st.integers(1, 12),
    elements=st.integers(1, 120),
    bias=st.booleans(),
    temperature=st.sampled_from([1.0, 0.5, 2.0]),
)
def test_chunks_give_the_plain_values_and_gradients(n, v, elements, bias, temperature):
    hidden, weight, offset, targets = inputs(n, v, bias=bias, dtype=torch.float32)
    leaves = (hidden, weight, offset)
    chunked = head_scores(
        hidden, weight, offset, targets, temperature=temperature, elements=elements
    )
    logits = torch.nn.functional.linear(hidden, weight, offset)
    plain = logits_scores(logits, targets, temperature=temperature)
    for ours, theirs in zip(chunked, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-5)
    for ours, theirs in zip(gradients(chunked, leaves), gradients(plain, leaves), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [0, 1], ids=["logprobs", "entropy"])
def test_one_result_alone_can_be_differentiated(which):
    hidden, weight, _, targets = inputs(5, 7, bias=False, dtype=torch.float32)
    ours = head_scores(hidden, weight, None, targets, elements=14)[which]
    plain = logits_scores(hidden @ weight.T, targets)[which]
    for a, b in zip(
        gradients([ours], (hidden, weight)), gradients([plain], (hidden, weight)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_weights_get_no_gradient_and_features_still_do():
    hidden, weight, _, targets = inputs(5, 7, bias=False, dtype=torch.float32)
    frozen = weight.detach()
    value = head_scores(hidden, frozen, None, targets, elements=14)[0].sum()
    value.backward()
    assert hidden.grad is not None
    assert frozen.grad is None


def test_entropy_is_that_of_the_distribution():
    even = head_scores(torch.zeros(1, 3), torch.zeros(8, 3), None, torch.tensor([2]))
    assert even[1].item() == pytest.approx(torch.tensor(8.0).log().item())
    assert even[0].item() == pytest.approx(-torch.tensor(8.0).log().item())
    weight = torch.zeros(3, 1)
    weight[1] = 1e4  # a certain word: entropy and its gradient are 0, not NaN
    hidden = torch.ones(1, 1, requires_grad=True)
    sure = head_scores(hidden, weight, None, torch.tensor([1]))
    (sure[0] + sure[1]).sum().backward()
    assert sure[1].item() == 0.0
    assert hidden.grad.item() == 0.0


def test_half_features_give_float32_results_and_a_float32_gradient_of_the_weights():
    hidden, weight, _, targets = inputs(6, 5, bias=False, dtype=torch.float32)
    values = head_scores(hidden, weight, None, targets, dtype=torch.bfloat16, elements=10)
    exact = head_scores(hidden, weight, None, targets)
    assert values[0].dtype == torch.float32
    assert torch.allclose(values[0], exact[0], atol=0.1)
    values[0].sum().backward()
    assert weight.grad.dtype == torch.float32


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Sees every tensor that is made, also on the way back."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return made


@pytest.mark.parametrize("v", [1000, 4000])
def test_no_tensor_grows_with_tokens_times_words(v):
    n, elements = 64, 8 * 1000
    hidden, weight, _, targets = inputs(n, v, bias=False, dtype=torch.float32)
    with LargestTensor() as seen:
        values = head_scores(hidden, weight, None, targets, elements=elements)
        (values[0] + values[1]).sum().backward()
    assert seen.largest <= max(elements, weight.numel())
    assert seen.largest < n * v

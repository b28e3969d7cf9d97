"""The output head: log-probs and entropies of tokens, without all their logits at once.

For N tokens with loss and V words the logits are N·V floats, the largest tensor of a training
step by far. Here they are made for a few tokens at a time, and made again on the way back.

Shapes: N tokens, H features, V words.

Invariants: never more than `ELEMENTS` logits (and as many gradients) exist at once, whatever
N, so long as one token's row fits; values and gradients are those of the plain computation,
whatever the number of chunks.

Not here: the features (`policy`), and losses (`logprobs`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import linear

ELEMENTS: Final = 1 << 22
"""Logits at a time: 16 MiB in float32."""


def head_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    elements: int = ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy of what could have stood there.

    Args:
        hidden: [N, H] features of the positions *before* the targets.
        weight: [V, H].
        bias: [V], or None.
        targets: [N] int64.
        temperature: divides the logits, as the sampler did. Positive.
        dtype: what the logits are multiplied in; None: that of `hidden`.
        elements: largest number of logits at a time (one row at least).

    Returns:
        [N] float32, [N] float32 in nats. Both can be differentiated.
    """
    rows = max(1, elements // weight.shape[0])
    values: tuple[Tensor, Tensor] = _Scores.apply(  # type: ignore[no-untyped-call]
        hidden.to(dtype or hidden.dtype), weight, bias, targets, temperature, rows
    )
    return values


def logits_scores(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same from logits that exist already: of models whose head is no plain product.

    Args:
        logits: [N, V] any float dtype.
    """
    normed = torch.log_softmax(logits.float() / temperature, dim=-1)
    entropy = -(normed.exp() * normed).sum(dim=-1)
    return normed.gather(-1, targets[:, None]).squeeze(-1), entropy


class _Scores(torch.autograd.Function):
    """Keeps one number a token for the way back: log of the sum of exponentials."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        matrix = weight.to(hidden.dtype)
        n = hidden.shape[0]
        norms, logprobs, entropy = (
            torch.empty(n, dtype=torch.float32, device=hidden.device) for _ in range(3)
        )
        kept: Tensor | None = None
        for part in _parts(n, rows):
            logits = _logits(hidden[part], matrix, bias, temperature)
            norm = torch.logsumexp(logits, dim=-1)
            norms[part] = norm
            logprobs[part] = logits.gather(-1, targets[part, None]).squeeze(-1) - norm
            shifted = logits - norm[:, None]
            entropy[part] = -(shifted.exp() * shifted).nan_to_num_(nan=0.0).sum(dim=-1)
            if n <= rows:
                kept = shifted
        # One chunk is kept as it is: making it again would cost a product and save nothing.
        ctx.save_for_backward(hidden, weight, bias, targets, norms, entropy, kept)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms, entropy, kept = ctx.saved_tensors
        to_logprobs, to_entropy = grads
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for part in _parts(hidden.shape[0], ctx.rows):
            if kept is None:
                shifted = _logits(hidden[part], matrix, bias, ctx.temperature)
                shifted.sub_(norms[part, None])
            else:
                shifted = kept
            grad = _to_logits(
                shifted,
                targets[part],
                None if to_logprobs is None else to_logprobs[part],
                None if to_entropy is None else to_entropy[part],
                entropy[part],
            )
            grad.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0).to(grad_bias.dtype)
            narrow = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, matrix, out=grad_hidden[part])
            if grad_weight is None:
                continue
            if grad_weight.dtype == hidden.dtype:
                grad_weight.addmm_(narrow.T, hidden[part])
            else:
                grad_weight += (narrow.T @ hidden[part]).to(grad_weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _to_logits(
    shifted: Tensor,
    targets: Tensor,
    to_logprobs: Tensor | None,
    to_entropy: Tensor | None,
    entropy: Tensor,
) -> Tensor:
    """Gradient at the logits, given that at log-probs and entropies.

    With s = log p: d log p_y / dz_j = [j = y] − p_j, and dH / dz_j = −p_j (s_j + H).
    """
    grad = shifted.exp()
    if to_entropy is None:
        if to_logprobs is None:
            return grad.zero_()
        grad.mul_(-to_logprobs[:, None])
    else:
        factor = (shifted + entropy[:, None]).mul_(-to_entropy[:, None])
        # A word of probability 0 has s = −inf: its part is 0, as its limit is.
        factor.masked_fill_(torch.isinf(shifted), 0.0)
        if to_logprobs is not None:
            factor.sub_(to_logprobs[:, None])
        grad.mul_(factor)
    if to_logprobs is not None:
        grad.scatter_add_(1, targets[:, None], to_logprobs[:, None])
    return grad


def _logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = linear(hidden, matrix, None if bias is None else bias.to(matrix.dtype)).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _parts(n: int, rows: int) -> list[slice]:
    return [slice(start, min(n, start + rows)) for start in range(0, n, rows)]

"""Log-probabilities of sampled tokens and the losses made of them: pure functions.

Shapes: B sequences, T tokens, V words. A value at position t belongs to token t, whose
probability is read from the logits at t-1; position 0 is never predicted.

Invariants: logits at positions whose successor carries no loss get a gradient of
exactly 0; a mean is always over the whole optimiser step, whatever its micro-batches
(algorithms: "token-mean"), so that cutting a batch changes nothing.

Not here: the forward pass (`policy`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor, targets: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each target where the mask is set, and 0 elsewhere.

    Only masked positions are normalised: in multi-turn data most tokens are
    observations, and a row of V logits each would be wasted on them.

    Args:
        logits: [B, T, V] any float dtype; row t predicts `targets[:, t]` (already shifted).
        targets: [B, T] int64.
        mask: [B, T] bool.
        temperature: divides the logits, as the sampler did.

    Returns:
        [B, T] float32.
    """
    picked = logits[mask].float()  # [N, V]
    if temperature != 1.0:
        picked = picked / temperature
    chosen = picked.gather(-1, targets[mask].unsqueeze(-1)).squeeze(-1)
    values = chosen - torch.logsumexp(picked, dim=-1)  # [N]
    empty = torch.zeros(mask.shape, dtype=torch.float32, device=logits.device)
    return empty.masked_scatter(mask, values)


def shifted_logprobs(
    logits: Tensor, token_ids: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each token of the sequence where the mask is set, and 0 elsewhere.

    Args:
        logits: [B, T, V]; row t predicts token t+1.
        token_ids: [B, T] int64.
        mask: [B, T] bool; position 0 is ignored.

    Returns:
        [B, T] float32; column 0 is 0.
    """
    values = token_logprobs(logits[:, :-1], token_ids[:, 1:], mask[:, 1:], temperature=temperature)
    return torch.nn.functional.pad(values, (1, 0))


def nll(logprobs: Tensor, mask: Tensor, weights: Tensor, denominator: float) -> Tensor:
    """Weighted negative log-likelihood: Σ_i w_i Σ_t −log π(x_it) / denominator.

    Args:
        logprobs: [B, T] float32.
        mask: [B, T] bool.
        weights: [B] float32, not negative.
        denominator: `loss_denominator` of the *whole* optimiser step.
    """
    per_sequence = torch.where(mask, -logprobs, 0.0).sum(dim=1)  # [B]
    return (weights * per_sequence).sum() / denominator

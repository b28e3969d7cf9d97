"""Log-probabilities of recorded tokens under a policy, without a gradient.

For what a loss compares with: the policy before a step (π_old), a reference, the sampler.

Invariant: a score depends on its sample alone, up to rounding, not on what it shares a
micro-batch with; order is kept.

Not here: log-probs that are trained through (`objective`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...engine.errors import ConfigError
from ..base import Sample
from ..training.collate import collate, micro_batches

if TYPE_CHECKING:
    from .policy import Policy

MICRO_TOKENS = 8_192
"""Padded tokens of a forward pass: no activations are kept, so it may be wide."""


def require_vocabulary(reference: Policy, vocabulary: int) -> None:
    """Refuse to compare with a model of another vocabulary.

    Args:
        vocabulary: of the policy; the reference's has to be the same size.

    Raises:
        ConfigError: it is not.
    """
    if reference.vocabulary != vocabulary:
        raise ConfigError(
            f"the reference {reference.source} has {reference.vocabulary} words and the policy "
            f"{vocabulary}: only models of one tokenizer can be compared"
        )


def score(
    policy: Policy,
    samples: Sequence[Sample],
    *,
    temperatures: Sequence[float] | None = None,
    micro_tokens: int = MICRO_TOKENS,
) -> list[Tensor]:
    """Log-probability of every token with loss, and 0 elsewhere: one [n] float32 a sample, on
    the CPU.

    Args:
        temperatures: one for each sample, not 0; they divide the logits. None: all 1.
    """
    by_temperature: dict[float, list[int]] = {}
    for index in range(len(samples)):
        temperature = temperatures[index] if temperatures is not None else 1.0
        by_temperature.setdefault(temperature, []).append(index)
    scores: dict[int, Tensor] = {}
    for temperature, members in by_temperature.items():
        for part in micro_batches(members, micro_tokens, width=lambda i: len(samples[i].token_ids)):
            batch = collate([samples[i] for i in part], device=policy.device)
            with torch.no_grad():
                rows = policy.logprobs(batch, temperature=temperature).cpu()
            for index, row in zip(part, rows, strict=True):
                scores[index] = row[: len(samples[index].token_ids)].clone()
    return [scores[index] for index in range(len(samples))]

"""Several sequences in one row, without padding: which model can, and its attention.

A packed row has restarted position ids, and attention inside each sequence alone. The
lengths travel through the model in the place of the attention mask, as a tensor of whole
numbers of shape [1, 1, 1, B], to the attention function that is registered here. Every other
mask goes to the ordinary function, so that the model can still be called in any other way.

Invariants: a token sees its own sequence up to itself; a model is packed only if it was seen
to give what it gives for each sequence alone (`pack`); no [N, N] mask is ever made.

Not here: which samples share a row (`collate`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME: Final = "rollwave_packed"
_PROBE: Final = (3, 4)
"""Lengths of the two sequences a model is tried with."""


def lengths_mask(lengths: list[int]) -> Tensor:
    """The lengths of a packed row's sequences, in the form in which attention gets them."""
    # On the CPU whatever the device: every layer reads them.
    return torch.tensor(lengths, dtype=torch.int64).view(1, 1, 1, -1)


def pack(model: Any, decoder: Any) -> bool:
    """Give a model packed attention if it then treats sequences in one row as if each stood alone.

    Args:
        model: a transformers model; unchanged where the answer is no.
        decoder: the part of it that gives features, [.., H].
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    before = model.config._attn_implementation
    if before == "eager":
        return False
    device = next(decoder.parameters()).device
    words = int(model.config.get_text_config().vocab_size)
    ids = [torch.arange(1, n + 1, device=device)[None] % words for n in _PROBE]
    functions: Any = AttentionInterface
    functions.register(NAME, attention)
    masks: Any = AttentionMaskInterface
    masks.register(NAME, sdpa_mask)
    with torch.no_grad():
        alone = [decoder(input_ids=row, use_cache=False).last_hidden_state for row in ids]
        try:
            model.set_attn_implementation(NAME)
            packed = run_packed(decoder, torch.cat(ids, dim=1), list(_PROBE))
        except (TypeError, ValueError, RuntimeError, AttributeError):
            packed = None  # it has no such attention, or does with masks as it likes
    wanted = torch.cat(alone, dim=1).float()
    coarse = wanted.dtype == torch.bfloat16 or next(decoder.parameters()).dtype != torch.float32
    tolerance = (0.05 if coarse else 1e-3) * float(wanted.abs().max())
    same = packed is not None and float((packed.float() - wanted).abs().max()) <= tolerance
    if not same:
        model.set_attn_implementation(before)
    return same


def run_packed(decoder: Any, token_ids: Tensor, lengths: list[int]) -> Tensor:
    """Features of a packed row, [1, N, H].

    Args:
        token_ids: [1, N], N the sum of the lengths.
    """
    positions = torch.cat([torch.arange(n, device=token_ids.device) for n in lengths])
    features: Tensor = decoder(
        input_ids=token_ids,
        attention_mask=lengths_mask(lengths),
        position_ids=positions[None],
        use_cache=False,
    ).last_hidden_state
    return features


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention in the form of transformers: [1, heads, N, D] each, gives [1, N, heads, D].

    Raises:
        ValueError: the model asks for something that is not offered here (soft-capped scores,
            attention sinks): `pack` then leaves it alone.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        forward: Any = sdpa_attention_forward
        output: Tensor = forward(module, query, key, value, attention_mask, **options)[0]
        return output, None
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ValueError("packed attention offers neither soft-capped scores nor sinks")
    lengths: list[int] = attention_mask.flatten().tolist()
    window = options.get("sliding_window")
    shared: dict[str, Any] = {
        "scale": options.get("scaling"),
        "dropout_p": float(options.get("dropout") or 0.0),
        "enable_gqa": key.shape[1] != query.shape[1],
    }
    parts = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    outputs = []
    for q, k, v in zip(*parts, strict=True):
        near = _window(q.shape[2], window, q.device)
        how = {"is_causal": True} if near is None else {"attn_mask": near}
        outputs.append(scaled_dot_product_attention(q, k, v, **how, **shared))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _window(n: int, window: int | None, device: torch.device) -> Tensor | None:
    """Where a token may look if it sees `window` tokens, itself included; None: all before it."""
    if window is None or n <= window:
        return None
    rows = torch.arange(n, device=device)
    back = rows[:, None] - rows[None, :]
    return (back >= 0) & (back < window)

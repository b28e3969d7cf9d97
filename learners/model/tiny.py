"""A tiny Llama with a closed vocabulary, made on the spot: for demos, tests and curves.

One word is one token. A user message costs its words and nothing else, the assistant
header is one token (`<act>`), and a completion ends with `<eos>`:

    goal 3 1 pos 0 0 walls up left right <act> up <eos> goal 3 1 pos 0 1 … <act>

Invariants: the same arguments give bit-equal weights, without touching torch's global
generator; transformers and vLLM load the directory; words outside the vocabulary become
`<unk>`; no word of an observation becomes a special token.

Not here: training (`behaviour_cloning`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...engine.errors import ConfigError
from .policy import quiet

TEMPLATE: Final = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<act>{{ m['content'] }}<eos>"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}<sys>"
    "{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<act>{% endif %}"
)
"""Keeps the prefix rule: each message is rendered the same way wherever it stands."""

UNKNOWN: Final = "<unk>"
SPECIALS: Final = ("<pad>", "<eos>", "<act>", "<sys>")


def make_tiny_model(
    out: str | Path,
    *,
    vocabulary: Sequence[str],
    width: int = 128,
    layers: int = 3,
    heads: int = 4,
    context: int = 512,
    seed: int = 0,
    tie_embeddings: bool = True,
) -> Path:
    """Write a randomly initialised model directory (float32) and return its path.

    Args:
        vocabulary: every word, without spaces; duplicates count once.
        width: hidden size; `width / heads` should be a head size of vLLM's (32, 64, …).
        context: longest sequence in tokens.

    Raises:
        ConfigError: a word has a space or is a special token, or the sizes do not fit.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if width % heads or (width // heads) % 2:
        raise ConfigError(f"width {width} must be an even multiple of heads {heads}")
    tokenizer = make_tokenizer(vocabulary, context)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=tie_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attention_dropout=0.0,
        dtype="float32",
    )
    build: Any = LlamaForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
    path = Path(out)
    with quiet():
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def make_tokenizer(vocabulary: Sequence[str], context: int = 512) -> Any:
    """Make the word-level tokenizer with its chat template.

    Special tokens stand outside the word model, so that the word "<eos>" in an
    observation stays a word (an unknown one).

    Raises:
        ConfigError: a word is empty, has a space, or is a special token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = list(dict.fromkeys(vocabulary))
    for word in words:
        if word.split() != [word] or word in SPECIALS or word == UNKNOWN:
            raise ConfigError(f"{word!r} cannot be a word: no spaces, nothing empty, no special")
    ids = {word: index for index, word in enumerate([UNKNOWN, *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    build: Any = PreTrainedTokenizerFast
    tokenizer = build(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=SPECIALS[0],
        eos_token=SPECIALS[1],
        additional_special_tokens=list(SPECIALS[2:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def closed_vocabulary(model_dir: str | Path) -> frozenset[str] | None:
    """The words of a model that knows whole words alone; None if it can spell, as most can.

    Reads the tokenizer's file, and loads nothing else.
    """
    try:
        tokenizer = json.loads((Path(model_dir) / "tokenizer.json").read_text("utf-8"))
        model = tokenizer["model"]
        return frozenset(model["vocab"]) if model["type"] == "WordLevel" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

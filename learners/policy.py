"""The model behind a learner: a Hugging Face directory in, log-probs, a directory out.

Invariants: log-probs are float32 whatever the weights are; dropout is off unless LoRA
asks for it; what is saved is always a whole, merged model with its tokenizer, so that
vLLM serves it as it is; torch's global generator is left as it was.

Not here: optimisation (`behaviour_cloning`) and resuming (`checkpoint`).
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..engine.errors import ConfigError, LearnerError
from .collate import Batch
from .losses import token_logprobs
from .settings import LoraSettings

_TOKENIZER_FILES: Final = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Copied as they are: loading and saving a tokenizer again can change it."""


def configure_threads(count: int) -> None:
    """Set torch's threads for this process, once, before the first tensor operation.

    On two busy cores two threads spin against each other and are 9 times slower than one.
    """
    torch.set_num_threads(count)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars over ours; its setting is put back after."""
    from transformers.utils import logging

    log: Any = logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def context_length(path: str | Path) -> int:
    """Longest sequence that the model of this directory takes, in tokens.

    Raises:
        ConfigError: the directory holds no model.
    """
    return int(_read_config(path).get("max_position_embeddings") or 2**31)


def _read_config(path: str | Path) -> dict[str, Any]:
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a Hugging Face model directory (config.json: {error}); give the "
            "path of a directory with config.json, weights and tokenizer"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no JSON object")
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


class Policy:
    """A causal language model with the parameters that are to be trained."""

    def __init__(self, model: Any, source: Path, *, autocast: bool = False) -> None:
        self.model = model
        self.source = source
        self._autocast = autocast
        self.device = next(model.parameters()).device
        target = inspect.signature(_unwrapped(model).forward)
        self._keeps_columns = "logits_to_keep" in target.parameters

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: LoraSettings | None = None,
        dtype: str = "float32",
        device: str = "auto",
        seed: int = 0,
    ) -> Policy:
        """Load a model directory, fully trainable or with fresh LoRA adapters.

        Args:
            dtype: "float32" or "bfloat16". Weights that are trained stay float32 in either
                case, since bfloat16 would swallow small updates; bfloat16 computes in it,
                and under LoRA also holds the frozen weights in it.
            device: "auto" takes the GPU if there is one.
            seed: of the adapters' initial values.

        Raises:
            ConfigError: the directory holds no causal language model, or a dtype is unknown.
        """
        import transformers

        factory: Any = transformers.AutoModelForCausalLM
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype {dtype!r} is not one of float32, bfloat16")
        _read_config(path)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        half = dtype == "bfloat16"
        stored = torch.bfloat16 if half and lora is not None else torch.float32
        try:
            with quiet():
                model: Any = factory.from_pretrained(path, dtype=stored, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} holds no model that can be loaded: {error}") from error
        model.eval()
        if lora is not None:
            model = _with_adapters(model, lora, seed)
        return cls(model.to(device), Path(path), autocast=half)

    def trainable(self) -> dict[str, Tensor]:
        """Trainable parameters by name, in a fixed order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log-probability of every token with loss, and 0 elsewhere: [B, T] float32.

        Logits are computed only for columns in which some sequence carries loss.
        """
        columns = batch.loss_mask[:, 1:].any(dim=0).nonzero().squeeze(-1)  # [K]
        arguments: dict[str, Any] = {"input_ids": batch.token_ids, "use_cache": False}
        if not bool(batch.attention.all()):
            arguments["attention_mask"] = batch.attention.long()
        if self._keeps_columns:
            arguments["logits_to_keep"] = columns
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            logits = self.model(**arguments).logits  # [B, K, V]
        if not self._keeps_columns:
            logits = logits[:, columns]
        positions = columns + 1
        values = token_logprobs(
            logits,
            batch.token_ids[:, positions],
            batch.loss_mask[:, positions],
            temperature=temperature,
        )
        empty = torch.zeros(batch.token_ids.shape, dtype=torch.float32, device=values.device)
        return empty.index_copy(1, positions, values)

    def save(self, out: str | Path) -> None:
        """Write the merged model and its tokenizer into a directory, which is made.

        Raises:
            LearnerError: the source directory is gone.
        """
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        model = self.model
        if hasattr(model, "merge_and_unload"):
            # On a copy: training goes on with the adapters after an evaluation.
            model = copy.deepcopy(model).merge_and_unload()
        with quiet():
            model.save_pretrained(path)
        if not self.source.is_dir():
            raise LearnerError(f"{self.source} is gone: the tokenizer cannot be copied from it")
        for name in _TOKENIZER_FILES:
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, path / name)


def _with_adapters(model: Any, lora: LoraSettings, seed: int) -> Any:
    import peft

    library: Any = peft
    config = library.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped: Any = library.get_peft_model(model, config)
    wrapped.train(lora.dropout > 0)
    return wrapped


def _unwrapped(model: Any) -> Any:
    """The transformers model inside a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

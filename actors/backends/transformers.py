"""transformers: the plain fallback, a batched sampling loop of our own.

Requests are served in blocks: up to `max_batch` prompts, padded on the left, share one
KV cache; each is answered as soon as it is complete and leaves the block, and the next
block begins when the last of them has. Own loop, because `generate` draws a whole batch
from one generator.

Invariants:

* a token depends on its request's prompt and seed alone: one uniform number a token, from
  a generator of the request's own, inverts its distribution. What else is in the block
  changes the arithmetic by float noise, never the random numbers;
* log-probs are those of the distribution that was sampled from (after temperature and
  top-p; for greedy requests the model's own at temperature 1).

Simplifications: a request waits for the block before it, nothing is cached between turns,
and models without a plain key-value cache are not served. Use vLLM where it is installed.

Not here: the thread and its queues (`threaded`).
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ...engine.codec import pack_floats, pack_tokens, unpack_tokens
from ...engine.errors import BackendError, ConfigError, MissingDependency
from ...engine.trajectory import FinishReason
from ..protocol import Completion, Generate, Sampling
from . import checkpoint
from .threaded import Engine, Finished, ThreadedBackend, share_of_cores

_GREEDY: Final = 1e-5
"""Below this temperature the most probable token is taken (vLLM's limit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSettings:
    """How the model is served."""

    max_batch: int = 64
    """Most requests in one block."""
    max_model_len: int = 0
    """Context in tokens, prompt and completion; 0 = the model's own."""
    dtype: str = "auto"
    """By default float32 on a CPU, and the model's own on a GPU."""
    device: str = ""
    """By default the GPU if there is one."""
    threads: int = 0
    """Threads of the arithmetic on a CPU; 0 = OMP_NUM_THREADS, or half the cores."""


class TransformersBackend(ThreadedBackend):
    """Serves a model directory with torch and transformers alone.

    Args:
        model_dir: Hugging Face model directory with safetensors weights.
        settings: sizes and numeric type.
        version: policy version of these weights.
        stop_ids: tokens that end a completion, beside the model's own EOS.

    Raises (from `run`):
        MissingDependency: torch or transformers is not installed.
        ConfigError: the directory cannot be served.
        BackendDied: the model failed.
    """

    def __init__(
        self,
        model_dir: str,
        settings: TransformersSettings | None = None,
        *,
        version: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> None:
        settings = settings or TransformersSettings()
        engine = _TransformersEngine(model_dir, settings, frozenset(stop_ids))
        super().__init__(engine, name="transformers", capacity=settings.max_batch, version=version)


@dataclass(slots=True, eq=False)
class _Row:
    """One request, waiting or in the block."""

    key: str
    request_id: str
    prompt: list[int]
    sampling: Sampling
    room: int
    """Tokens it may still sample."""
    generator: random.Random
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gone: bool = False
    """Answered or aborted: leaves the block before the next step."""


class _TransformersEngine(Engine):
    """The model, and the block it is working on."""

    def __init__(
        self, model_dir: str, settings: TransformersSettings, stop_ids: frozenset[int]
    ) -> None:
        self._model_dir = model_dir
        self._settings = settings
        self._stop_ids = stop_ids
        self._model: Any = None
        self._tokenizer: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._context = 0
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._cache: Any = None
        self._mask: Any = None  # [rows, tokens so far], 0 where padded

    def build(self) -> None:
        """Import torch and load the model."""
        self._shapes = checkpoint.shapes(self._model_dir)
        try:
            import torch
            import transformers  # noqa: F401 (to say what is missing before loading)
        except ImportError as error:
            raise MissingDependency(
                "torch and transformers are not installed: pip install 'rollwave[learn]'"
            ) from error
        if not self._device().startswith("cuda"):
            torch.set_num_threads(self._settings.threads or share_of_cores())
        try:
            self._model = self._load(self._model_dir)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"transformers cannot serve {self._model_dir}: {reason}") from error
        own = int(getattr(self._model.config, "max_position_embeddings", 0) or 2**31)
        self._context = min(self._settings.max_model_len or own, own)
        eos = self._model.generation_config.eos_token_id
        self._stop_ids |= set(eos) if isinstance(eos, list) else {eos} - {None}

    def add(self, key: str, request: Generate) -> None:
        """Put a request behind the block that runs."""
        prompt = unpack_tokens(request.prompt_ids).tolist()
        room = self._context - len(prompt)
        vocabulary = self._model.config.vocab_size
        sampling = request.sampling
        if not prompt or max(prompt) >= vocabulary:
            raise BackendError(f"a prompt needs token ids, all below {vocabulary}")
        if room < 1:
            raise BackendError(
                f"a prompt of {len(prompt)} tokens leaves no room for a completion in a context "
                f"of {self._context}: allow fewer turns, or serve a longer context"
            )
        if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise BackendError(f"these cannot be sampled with: {sampling}")
        self._waiting.append(
            _Row(
                key,
                request.request_id,
                prompt,
                sampling,
                min(room, sampling.max_tokens),
                random.Random(request.seed),  # noqa: S311 (simulation, not cryptography)
            )
        )

    def abort(self, key: str) -> None:
        """Drop a request, wherever it is."""
        for row in (*self._waiting, *self._rows):
            if row.key == key:
                row.gone = True

    def step(self) -> list[Finished]:
        """One token for every request of the block."""
        import torch

        with torch.inference_mode():
            self._leave()
            logits = self._continue() if self._rows else self._begin()
            if logits is None:
                return []
            tokens, logprobs = sample(
                logits,
                [row.sampling.temperature for row in self._rows],
                [row.sampling.top_p for row in self._rows],
                [row.generator.random() for row in self._rows],
            )
        finished: list[Finished] = []
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            completion = self._completion(row)
            if completion is not None:
                row.gone = True
                finished.append((row.key, completion))
        return finished

    def swap(self, path: str) -> None:
        """Load the new weights beside the old ones, then drop those."""
        checkpoint.require_same(path, self._shapes)
        self._model = self._load(path)

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._cache = self._mask = None
        gc.collect()

    def _device(self) -> str:
        import torch

        return self._settings.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def _load(self, path: str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        device, name = self._device(), self._settings.dtype
        dtype: Any = name
        if name == "auto" and not device.startswith("cuda"):
            dtype = torch.float32
        with _no_progress_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True
            )
        return model.to(device).eval()

    def _leave(self) -> None:
        """Take finished and aborted requests out of the block."""
        stay = [index for index, row in enumerate(self._rows) if not row.gone]
        if len(stay) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in stay]
        if not stay:
            self._cache = self._mask = None
            return
        import torch

        indices = torch.tensor(stay, device=self._mask.device)
        self._cache.batch_select_indices(indices)
        self._mask = self._mask[indices]

    def _begin(self) -> Any:
        """Start the next block; gives the logits [rows, vocabulary] after the prompts."""
        import torch
        from transformers import DynamicCache

        while self._waiting and len(self._rows) < self._settings.max_batch:
            row = self._waiting.popleft()
            if not row.gone:
                self._rows.append(row)
        if not self._rows:
            return None
        longest = max(len(row.prompt) for row in self._rows)
        padding = [longest - len(row.prompt) for row in self._rows]
        device = self._model.device
        ids = torch.tensor(
            [[0] * pad + row.prompt for row, pad in zip(self._rows, padding, strict=True)],
            device=device,
        )
        before = torch.tensor(padding, device=device).unsqueeze(1)
        self._mask = (torch.arange(longest, device=device) >= before).long()
        self._cache = DynamicCache(config=self._model.config)
        positions = (torch.arange(longest, device=device) - before).clamp(min=0)
        return self._forward(ids, positions)

    def _continue(self) -> Any:
        """Feed the last token of every request; gives the logits [rows, vocabulary]."""
        import torch

        device = self._model.device
        ids = torch.tensor([[row.ids[-1]] for row in self._rows], device=device)
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], 1)
        return self._forward(ids, positions)

    def _forward(self, ids: Any, positions: Any) -> Any:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _completion(self, row: _Row) -> Completion | None:
        """The answer, once the request is complete."""
        text = ""
        if row.ids[-1] in self._stop_ids:
            finish = FinishReason.STOP
        elif row.sampling.stop and (cut := self._stopped(row)) is not None:
            # A stop string is no closer: the session has to close the turn itself.
            finish, text = FinishReason.LENGTH, cut
        elif len(row.ids) >= row.room:
            finish = FinishReason.LENGTH
        else:
            return None
        return Completion(
            row.request_id,
            text,
            pack_tokens(row.ids),
            pack_floats(row.logprobs),
            finish,
            self.version,
        )

    def _stopped(self, row: _Row) -> str | None:
        """The text before the first stop string, if one has been written."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._model_dir, local_files_only=True)
        text = str(self._tokenizer.decode(row.ids))
        found = [text.index(stop) for stop in row.sampling.stop if stop in text]
        return text[: min(found)] if found else None


def sample(
    logits: Any,
    temperatures: Sequence[float],
    top_ps: Sequence[float],
    uniforms: Sequence[float],
) -> tuple[list[int], list[float]]:
    """Draw one token for each row by inverting its distribution at a uniform number.

    Args:
        logits: [rows, vocabulary], any float type.
        temperatures: 0 is greedy; its log-prob is the model's own at temperature 1.
        top_ps: share of the probability that is kept; 1 keeps all.
        uniforms: in [0, 1).

    Returns:
        Token ids, and their log-probs (float32) in the distribution that was drawn from.
    """
    import torch

    device = logits.device
    greedy = torch.tensor([t < _GREEDY for t in temperatures], device=device)
    scale = torch.tensor([1.0 if t < _GREEDY else t for t in temperatures], device=device)
    logprobs = (logits.float() / scale.unsqueeze(1)).log_softmax(-1)
    if any(p < 1 for p in top_ps):
        limit = torch.tensor(
            [
                torch.inf if t < _GREEDY or p >= 1 else p
                for t, p in zip(temperatures, top_ps, strict=True)
            ],
            device=device,
        )
        ordered, order = logprobs.sort(descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        # Each row keeps the tokens before which less than its share has been reached.
        drop = (before >= limit.unsqueeze(1)).scatter(1, order, before >= limit.unsqueeze(1))
        logprobs = logprobs.masked_fill(drop, -torch.inf).log_softmax(-1)
    # Sums in double precision, so that float noise moves a boundary by 1e-16 and no more.
    cumulated = logprobs.double().exp().cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=device).unsqueeze(1)
    drawn = torch.searchsorted(cumulated, points * cumulated[:, -1:], right=True).squeeze(1)
    drawn = drawn.clamp(max=logits.shape[1] - 1)
    tokens = torch.where(greedy, logprobs.argmax(-1), drawn)
    taken = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return tokens.tolist(), taken.tolist()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading weights is quiet here; the bars of the command line are not to be torn."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

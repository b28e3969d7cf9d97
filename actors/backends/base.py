"""The swap-point for inference: what every backend does, and nothing of how.

A backend accepts requests one at a time and finishes them in any order; whether
it batches continuously (vLLM), in blocks (transformers) or not at all (HTTP) is
its own affair. It lives inside the inference actor, on the trio thread; whatever
blocks, it moves to a thread of its own.

Invariants:

* every submitted request calls `done` exactly once, with a `Completion` or an
  error, unless it was cancelled first;
* after `swap_weights(v)` returns, every later completion carries version v and
  the prefix cache is empty;
* if `run` raises, the backend is dead: the inference actor dies with it, and its
  supervisor starts a new one from the same factory.

Not here: queues, deadlines and retries of sessions (`inference`, `session`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ...engine.errors import WeightSwapFailed
from ..protocol import Completion, Generate

Done = Callable[[Completion | BaseException], None]
"""Called on the trio thread. An exception is a `BackendError`, or what `classify` makes of it."""


@dataclass(slots=True)
class BackendStatistics:
    """Counters since the backend started."""

    requests: int = 0
    completions: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    batches: int = 0
    batch_capacity: int = 0
    """Most requests served at once; 0 = unbounded."""
    batch_requests: int = 0
    """Sum of batch sizes over batches: / batches / capacity = batch fill."""
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def batch_fill(self) -> float:
        """Mean share of the batch capacity in use; 0 where it is unbounded or idle."""
        full = self.batches * self.batch_capacity
        return self.batch_requests / full if full else 0.0


class Backend(ABC):
    """One inference engine behind the inference actor."""

    takes_tokens: bool = True
    """True: `Generate.prompt_ids`; False: `Generate.messages` (the server renders)."""
    gives_tokens: bool = True
    """Whether completions carry token ids and log-probs, so that one can learn from them."""

    def __init__(self) -> None:
        self.statistics = BackendStatistics()
        self.policy_version = 0

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Start, report `task_status.started()` when ready, then serve until cancelled.

        Raises:
            BackendDied: the engine behind it is gone.
        """

    @abstractmethod
    def submit(self, request: Generate, done: Done) -> None:
        """Accept a request without blocking; `done` is called exactly once, later."""

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Forget a request; its `done` will not be called. Unknown ids are ignored."""

    async def swap_weights(self, version: int, path: str) -> None:
        """Serve the weights of this Hugging Face model directory from now on.

        Requests already running finish under the old weights first.

        Raises:
            WeightSwapFailed: they could not be loaded; the backend must be restarted.
        """
        raise WeightSwapFailed(f"{type(self).__name__} serves fixed weights, it cannot load {path}")

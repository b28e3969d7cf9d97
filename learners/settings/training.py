"""How a model is trained, whatever the loss: rate, steps, batches, precision, checkpoints.

Not here: what is learned from (the settings of each algorithm), or the loop (`training.loop`).
"""

from __future__ import annotations

import math
import re
from typing import Literal

from .base import Settings, require

Schedule = Literal["constant", "linear", "cosine"]
Packing = Literal["auto", "always", "never"]
SplitTurns = Literal["auto", "never"]


class LoraSettings(Settings, frozen=True):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: every linear layer but the output head."""
    adapter: str = ""
    """Directory of adapters to go on with, made for this very start; "": fresh ones. Rank,
    alpha and targets are then the adapters' own."""

    def __post_init__(self) -> None:
        require(self.rank > 0, "lora.rank", self.rank, "positive")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")


class TrainingSettings(Settings, frozen=True):
    """The optimiser's side of every learner, and all of behaviour cloning's. The defaults suit
    cloning into a tiny model; for a 7B model the papers clone with lr 1e-5 to 2e-5, batch 32 to
    64, 1 to 3 epochs, warm-up 3 to 10 %."""

    lr: float = 1e-3
    epochs: int = 3
    max_steps: int = 0
    """0: as many steps as the epochs have. Otherwise exactly so many, over as many epochs
    as they need."""
    batch: int = 32
    """Trajectories per optimiser step."""
    batch_tokens: int = 0
    """Tokens per optimiser step instead, filled with whole trajectories; 0: by `batch`."""
    micro_tokens: int = 4_096
    """Tokens per forward pass: real ones where samples are packed, padded ones where they are
    not. Changes memory and speed, not the result."""
    packing: Packing = "auto"
    """Several samples in one row without padding, each seeing itself alone: where the model
    gives the same so ("auto"), or an error where it does not ("always"), or "never"."""
    gradient_checkpointing: bool = False
    """Compute each layer a second time on the way back instead of keeping what it made: less
    memory, more time, the same result."""
    shard: bool = False
    """Where several processes train together, hold a part of the model's layers in each, with
    their gradients and moments, instead of all: less memory, more traffic, the same result.
    With one process it means nothing."""
    schedule: Schedule = "constant"
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    carry_optimiser: bool = False
    """Go on with the moments of the evolution step before, where the start is its policy, and
    leave these for the next one. Algorithms of many small steps want it."""
    clip: float = 1.0
    """Largest gradient norm; 0: not clipped."""
    seed: int = 0
    """Of the order of samples, of adapters' initial values, and of LoRA dropout."""
    context: int = 0
    """Longer trajectories are dropped; 0: what the model takes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in. Trained weights stay float32; bfloat16 is not bit-reproducible."""
    device: str = "auto"
    """One of "cpu", "cuda", "auto" (the GPU if there is one), or a certain GPU as "cuda:1", which
    several processes cannot share."""
    lora: LoraSettings | None = None
    texts: bool = False
    """Learn also from a model's trajectories that came without token ids (API servers)."""
    keep_thoughts: bool = False
    """Accept a chat template that removes <think> blocks from earlier turns; see `chat`."""
    split_turns: SplitTurns = "auto"
    """Where a chat template renders earlier messages otherwise once a conversation goes on, make
    one sample of each turn of an episode that comes as text ("auto"), or refuse it ("never")."""
    evaluate_every: int = 0
    """Steps between evaluations on dev tasks, where a callback is given; 0: never."""
    patience: int = 3
    """Stop after so many evaluations without a better one. The best policy is kept."""
    checkpoint_every: int = 0
    """Steps between checkpoints to resume from; 0: by time alone."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints, or more: they cost a twentieth of the time at most.
    0: by steps alone. Neither of the two changes the result."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "lr", self.lr, "positive and finite")
        require(self.epochs > 0, "epochs", self.epochs, "positive")
        require(self.batch > 0, "batch", self.batch, "positive")
        require(self.micro_tokens > 0, "micro_tokens", self.micro_tokens, "positive")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "in [0, 1]")
        require(self.patience > 0, "patience", self.patience, "positive")
        for key in ("max_steps", "batch_tokens", "evaluate_every", "checkpoint_every", "context"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None
        require(known, "device", self.device, 'one of "auto", "cpu", "cuda", or a GPU as "cuda:1"')
        for key in ("weight_decay", "clip", "checkpoint_seconds"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")

"""The settings of the learners, typed and checked where they are made. Loads no torch.

Invariants: settings are values (frozen, comparable, encodable); an unknown key or an
impossible value is a `ConfigError` that names it.

Not here: where they are read from (`actors.config`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..engine.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine"]
Merge = Literal["initial", "previous", "cumulative", "none"]
Start = Literal["base_bc", "pretrained", "last"]
Weight = Literal["binary", "reward", "exp"]
Scope = Literal["expert_tasks", "all_tasks"]
Choose = Literal["first", "shortest", "random"]
"""Which attempts at a task survive a cap: in attempt order, with the fewest turns, or drawn."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings."""


def _require(holds: bool, key: str, value: object, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{key} = {value!r}: it must be {accepted}")


class LoraSettings(Settings, frozen=True):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: every linear layer but the output head."""

    def __post_init__(self) -> None:
        _require(self.rank > 0, "lora.rank", self.rank, "positive")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")


class CloningSettings(Settings, frozen=True):
    """Behaviour cloning. The defaults suit a tiny model; for a 7B model the papers use
    lr 1e-5 to 2e-5, batch 32 to 64, 1 to 3 epochs, warm-up 3 to 10 %."""

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
    """Padded tokens per forward pass. Changes memory and speed, not the result."""
    schedule: Schedule = "constant"
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm; 0: not clipped."""
    seed: int = 0
    """Of the order of samples, of adapters' initial values, and of LoRA dropout."""
    context: int = 0
    """Longer trajectories are dropped; 0: what the model takes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in. Trained weights stay float32; bfloat16 is not bit-reproducible."""
    device: str = "auto"
    """One of "cpu", "cuda" and "auto" (the GPU if there is one)."""
    lora: LoraSettings | None = None
    texts: bool = False
    """Learn also from a model's trajectories that came without token ids (API servers)."""
    keep_thoughts: bool = False
    """Accept a chat template that removes <think> blocks from earlier turns; see `chat`."""
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
        _require(self.lr > 0, "lr", self.lr, "positive")
        _require(self.epochs > 0, "epochs", self.epochs, "positive")
        _require(self.batch > 0, "batch", self.batch, "positive")
        _require(self.micro_tokens > 0, "micro_tokens", self.micro_tokens, "positive")
        _require(0 <= self.warmup <= 1, "warmup", self.warmup, "in [0, 1]")
        _require(self.patience > 0, "patience", self.patience, "positive")
        for key in ("max_steps", "batch_tokens", "evaluate_every", "checkpoint_every", "context"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key in ("weight_decay", "clip", "checkpoint_seconds"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")


class EvolSettings(Settings, frozen=True):
    """AgentEvol: which trajectories make the data of a wave, and where training starts."""

    merge: Merge = "initial"
    """With what the wave's own data D_m are merged: the experts D_s, the previous wave's
    data (D_0 = D_s), everything so far (D_s and all waves), or nothing."""
    start: Start = "base_bc"
    """Every wave is trained from the cloned base, from the pretrained model, or from the
    last wave's policy."""
    weight: Weight = "binary"
    """Weight of a trajectory in the loss: 1, its reward r, or exp(r / beta)."""
    beta: float = 1.0
    scope: Scope = "all_tasks"
    """Explore only the experts' tasks, or all training tasks."""
    thresholds: dict[str, float] = msgspec.field(default_factory=dict)
    """Environment id (or "*") → reward that must be exceeded, strictly. Default 0.99."""
    per_task_cap: int = 1
    """Successes kept of each task and wave; 0: all."""
    choose: Choose = "first"
    """Which ones. "first" is the published rule; "shortest" is a deviation from it."""
    distinct: bool = True
    """Attempts that repeat the actions of another at the same task count once. Matters only
    where more than one is kept of a task; False for the exact reward-weighted estimate."""
    max_new_ratio: float | None = None
    """Largest number of new trajectories for each expert one; None: no limit."""
    seed: int = 0
    """Of random choices among trajectories."""
    training: CloningSettings = CloningSettings()

    def __post_init__(self) -> None:
        _require(self.beta > 0, "beta", self.beta, "positive")
        _require(self.per_task_cap >= 0, "per_task_cap", self.per_task_cap, "0 or more")
        ratio = self.max_new_ratio
        _require(ratio is None or ratio > 0, "max_new_ratio", ratio, "positive")

"""The critic: what a trajectory is expected to earn, before each token is written.

    DIR/critic/head.safetensors    the linear head, [1, H]
              /config.json, …      the critic's own model, where it has one

Either a model of its own, which starts as a copy of the policy, or a head alone on the policy's
last hidden state. Through the head no gradient reaches the policy.

Invariants: the value at token t is read from what comes before it, so it knows nothing of the
token; a fresh head says 0; what one evolution step saved the next one loads.

Not here: its targets (`advantages`) and its loss (`losses`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from ...engine.errors import CheckpointCorrupt, ConfigError
from ..settings import TrainingSettings
from ..settings.policy_gradient import CriticKind
from ..training.collate import Batch

if TYPE_CHECKING:
    from ..model.policy import Policy

FOLDER: Final = "critic"
_HEAD: Final = "head.safetensors"
_PREFIX: Final = "critic."


class Critic:
    """A value for every token.

    Args:
        trunk: a model of its own; None: the policy's features.
        head: [1, H].
        fresh: it was not trained in an evolution step before this one.
    """

    def __init__(self, trunk: Policy | None, head: torch.nn.Linear, *, fresh: bool) -> None:
        self._trunk = trunk
        self._head = head
        self.fresh = fresh

    @classmethod
    def load(
        cls, kind: CriticKind, start: str, policy: Policy, settings: TrainingSettings
    ) -> Critic:
        """Take up the critic beside the policy at `start`, or make one.

        Raises:
            ConfigError: the critic there is of the other kind.
            CheckpointCorrupt: its file cannot be read, or is of another model.
        """
        folder = Path(start) / FOLDER
        fresh = not folder.exists()
        own = (folder / "config.json").exists()
        if not fresh and own != (kind == "model"):
            raise ConfigError(
                f'critic = "{kind}": {folder} holds {"a model" if own else "a head alone"}; '
                "keep the kind within a campaign, or start from a policy without a critic"
            )
        trunk: Policy | None = None
        if kind == "model":
            from ..model.policy import Policy as Model

            trunk = Model.load(
                start if fresh else folder,
                lora=settings.lora,
                dtype=settings.dtype,
                device=str(policy.device),
                seed=settings.seed,
                packing=settings.packing,
                gradient_checkpointing=settings.gradient_checkpointing,
                shard=settings.shard,
            )
        width = _width(policy)
        head = torch.nn.Linear(width, 1, bias=False, device=policy.device)
        with torch.no_grad():
            head.weight.copy_(torch.zeros(1, width) if fresh else _read(folder / _HEAD, width))
        return cls(trunk, head, fresh=fresh)

    def values(self, policy: Policy, batch: Batch) -> Tensor:
        """What is expected before each token: [B, T] float32; 0 at the first."""
        if self._trunk is not None:
            hidden = self._trunk.hidden(batch)
        else:
            with torch.no_grad():
                hidden = policy.hidden(batch)
        said = self._head(hidden.float()).squeeze(-1)
        return torch.nn.functional.pad(said[:, :-1], (1, 0))

    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters by name, in a fixed order."""
        named: dict[str, Tensor] = {f"{_PREFIX}head": self._head.weight}
        if self._trunk is not None:
            named |= {f"{_PREFIX}{name}": p for name, p in self._trunk.trainable().items()}
        return named

    def save(self, out: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write it below a model directory, where a server does not look for weights.

        Args:
            weights: its parameters among others, by name, where its layers are sharded.
        """
        from safetensors.torch import save_file

        folder = out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if self._trunk is not None:
            own = weights and {n.removeprefix(_PREFIX): p for n, p in weights.items()}
            self._trunk.save(folder, own)
        weight = self._head.weight.detach().cpu().contiguous()
        save_file({"weight": weight}, folder / _HEAD)


def _width(policy: Policy) -> int:
    """Features of the policy's last hidden state."""
    return int(policy.model.config.get_text_config().hidden_size)


def _read(path: Path, width: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weight = load_file(path)["weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{path}: {error}; start from a policy without a critic") from error
    if weight.shape != (1, width):
        raise CheckpointCorrupt(
            f"{path} has {weight.shape[-1]} features and the policy {width}: it is another's critic"
        )
    return weight

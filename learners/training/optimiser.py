"""AdamW over what is trained, in every process that trains it, with one gradient norm for all.

Parameters are whole in every process, or spread over them (`model.sharding`). Each process
moves what it holds; as all see the same gradients, whole parameters stay the same everywhere.

Invariants: gradients are those of one process, up to the rounding of sums; the norm is taken
over all parameters, each counted once, and clipping shrinks all alike; in one process this
is torch's AdamW and torch's clipping, to the bit.

Not here: the rate (`loop`), and how moments are saved (`checkpoint`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, distributed
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..model.sharding import is_sharded, part
from .processes import Processes

_FACTOR: Final = "rate_factor"
"""Key of a group: what its rate is, as a multiple of the schedule's."""


class Optimiser:
    """One optimiser step after another: `begin`, backward passes, `gather`, `move`."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        weight_decay: float,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Take up parameters, by name; those that are sharded come first from now on.

        Args:
            factors: of the rate, by name, where it is not 1.
        """
        sharded = {name: p for name, p in parameters.items() if is_sharded(p)}
        unsharded = {name: p for name, p in parameters.items() if name not in sharded}
        self.parameters: dict[str, Tensor] = {}
        """In the order in which `adam` counts them."""
        groups: list[dict[str, Any]] = []
        for kind in (sharded, unsharded):  # torch takes many at once only of one kind
            of = {name: (factors or {}).get(name, 1.0) for name in kind}
            for factor in dict.fromkeys(of.values()):
                members = {name: p for name, p in kind.items() if of[name] == factor}
                self.parameters |= members
                many = {"foreach": True} if kind is sharded else {}
                groups.append({"params": list(members.values()), _FACTOR: factor, **many})
        self.adam = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
        self._sharded = list(sharded.values())
        self._unsharded = list(unsharded.values())
        self._processes = Processes.current()

    def begin(self, rate: float) -> None:
        """Forget the gradients of the step before, and move by this rate next, times factors."""
        for group in self.adam.param_groups:
            group["lr"] = rate * group[_FACTOR]
        self.adam.zero_grad(set_to_none=True)

    def gather(self, limit: float) -> float:
        """Sum up the gradients of all processes, and clip them; gives the norm before that.

        Args:
            limit: largest norm, perhaps infinite.
        """
        self._processes.add_gradients(self._unsharded)
        norm = get_total_norm([p.grad for p in self._unsharded if p.grad is not None])
        parts = [part(p.grad) for p in self._sharded if p.grad is not None]
        if parts:
            square = get_total_norm(parts).square()
            distributed.all_reduce(square)
            norm = (norm.square() + square).sqrt()
            shrink = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as the line below does
            for gradient in parts:
                gradient.mul_(shrink)
        clip_grads_with_norm_(self._unsharded, limit, norm)
        return float(norm)

    def move(self) -> None:
        """Take the step."""
        self.adam.step()

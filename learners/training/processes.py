"""The processes that train one model together, and what they tell each other.

Each holds the whole model, or a part of its layers (`model.sharding`, which sums up their
gradients by itself). A step's micro-batches are dealt among them; gradients, losses and
metrics are *summed*, never averaged: the objective divides by the denominator of the whole
step, which every process knows, so that the sum is what one process would have computed.

Invariants: every process calls these in the same order; the first alone writes to disk; with
one process nothing is sent, and nothing depends on torch.distributed.

Not here: starting them (`distributed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")
Value = TypeVar("Value")

Sums = dict[str, tuple[float, float]]


def join(sums: Sums, name: str, share: tuple[float, float]) -> None:
    """Enter one more share of a metric: it adds up, or is the larger, if it is called `…_max`."""
    before = sums.get(name)
    if before is None:
        sums[name] = share
    elif name.endswith("_max"):
        sums[name] = max(before, share)
    else:
        sums[name] = before[0] + share[0], before[1] + share[1]


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those of torch's default process group; this one alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(
        self, parts: Sequence[Sequence[Item]], cost: Callable[[Item], int]
    ) -> list[Sequence[Item]]:
        """This process's part of a step: the largest dealt first, each to whom has least."""
        return list(parts) if self.size == 1 else self._deal(parts, cost)[self.rank]

    def passes(
        self, parts: Sequence[Sequence[Item]], cost: Callable[[Item], int], *, even: bool
    ) -> list[tuple[Sequence[Item], bool]]:
        """The same, each with whether it counts.

        Args:
            even: give every process as many, since they have to pass through the model
                together: who has fewer repeats the cheapest part, which then does not count.
        """
        mine = [(part, True) for part in self.share(parts, cost)]
        if not even or self.size == 1:
            return mine
        most = max(map(len, self._deal(parts, cost)))
        cheapest = min(parts, key=lambda part: sum(map(cost, part)))
        return mine + [(cheapest, False)] * (most - len(mine))

    def _deal(
        self, parts: Sequence[Sequence[Item]], cost: Callable[[Item], int]
    ) -> list[list[Sequence[Item]]]:
        loads = [0] * self.size
        dealt: list[list[Sequence[Item]]] = [[] for _ in loads]
        for part in sorted(parts, key=lambda part: -sum(map(cost, part))):
            least = loads.index(min(loads))
            loads[least] += sum(map(cost, part))
            dealt[least].append(part)
        return dealt

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Make every gradient the sum of those of all processes; none where nobody has one."""
        everyone = list(parameters)
        if self.size == 1 or not everyone:
            return
        reached = torch.tensor([float(p.grad is not None) for p in everyone])
        reached = reached.to(everyone[0].device)
        distributed.all_reduce(reached)
        for parameter, count in zip(everyone, reached.tolist(), strict=True):
            if not count:  # AdamW leaves alone what has no gradient, and decays what has zeros
                continue
            if parameter.grad is None:  # it had no part of this step
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def add(self, sums: Mapping[str, tuple[float, float]]) -> Sums:
        """Put together metrics as (sum, weight) by name, in the order of ranks; see `join`."""
        if self.size == 1:
            return dict(sums)
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, dict(sums))
        total: Sums = {}
        for one in everyone:
            for name, share in one.items():
                join(total, name, share)
        return total

    def told(self, value: Value) -> Value:
        """What the first process says."""
        if self.size == 1:
            return value
        said: list[Any] = [value]
        distributed.broadcast_object_list(said)
        heard: Value = said[0]
        return heard

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()

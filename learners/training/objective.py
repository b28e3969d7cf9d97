"""What an optimiser step minimises: the seam between an algorithm and the training loop.

An objective knows one kind of item (a sample, a pair of them, a rollout with advantages),
what the loss of a few of them is, and what there is to say about it. The loop (`loop`)
knows steps, rates, micro-batches and checkpoints, and nothing of rewards.

Invariants:

* a loss passes once through each model, whatever is in it, where the items are of one `kind`:
  processes that share the layers of a model pass through it together;
* a loss is a sum over its items divided by a denominator of the *whole* optimiser step, so
  that cutting the step into micro-batches, or spreading it over processes, changes nothing;
* `prepare` depends on the start alone: it is called with the start's weights, also when a
  run is resumed, so that what it settles (reference log-probs, advantages) is the same.

Not here: which items (`pairs`, `filters`), and the losses themselves (beside the algorithms).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor

from ..base import Sample
from ..model.logprobs import nll
from .collate import collate, loss_denominator, loss_tokens

if TYPE_CHECKING:
    from ..model.policy import Policy

Item = TypeVar("Item")

Shares = Mapping[str, tuple[float, float]]
"""Metrics of a part as (sum, weight): over parts and processes both add up, and their quotient
is the mean over the step. With a weight of 0 the sum itself is reported: a count. Of what is
called `…_max`, with a weight of 0, the largest is (`processes.join`)."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one micro-batch, as its share of the step's."""

    value: Tensor  # [] float32
    metrics: Shares = field(default_factory=dict)


class Objective(ABC, Generic[Item]):
    """One loss over one kind of item."""

    def prepare(self, policy: Policy, items: Sequence[Item]) -> Sequence[Item]:
        """Settle what the loss compares with, before the first step. `policy` is the start."""
        return items

    def parameters(self) -> dict[str, Tensor]:
        """What is trained beside the policy, by name: a critic, say. After `prepare`."""
        return {}

    def factors(self) -> dict[str, float]:
        """What the rate is multiplied by for some of `parameters`, by name; 1 for the others."""
        return {}

    @abstractmethod
    def tokens(self, item: Item) -> int:
        """Tokens of an item, which fill the budget of a step."""

    def width(self, item: Item) -> int:
        """Tokens that a micro-batch is padded to if this is its longest item."""
        return self.tokens(item)

    def kind(self, item: Item) -> Hashable:
        """Items of different kinds cannot pass through the model together."""
        return None

    def together(self, item: Item) -> Hashable:
        """Neighbours with the same name are dealt into one step, as one; None: by itself."""
        return None

    @abstractmethod
    def denominator(self, batch: Sequence[Item]) -> float:
        """What the loss of a whole step is divided by; 0 where there is nothing to learn."""

    @abstractmethod
    def loss(self, policy: Policy, part: Sequence[Item], denominator: float) -> Loss:
        """The loss of a micro-batch, ready for `backward`."""

    def save(self, out: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write what is trained beside the policy into the new model directory.

        Args:
            weights: all that is trained, by name, where layers are sharded.
        """


class Likelihood(Objective[Sample]):
    """Weighted negative log-likelihood of what the agent wrote."""

    def tokens(self, item: Sample) -> int:
        return len(item.token_ids)

    def together(self, item: Sample) -> Hashable:
        return item.episode or None

    def denominator(self, batch: Sequence[Sample]) -> float:
        return loss_denominator(batch)

    def loss(self, policy: Policy, part: Sequence[Sample], denominator: float) -> Loss:
        padded = collate(part, device=policy.device)
        logprobs, entropy = policy.scores(padded)
        value = nll(logprobs, padded.loss_mask, padded.weights, denominator)
        tokens = float(sum(map(loss_tokens, part)))
        said = {"loss_tokens": (tokens, 0.0), "entropy": (float(entropy.detach().sum()), tokens)}
        return Loss(value, said)

"""Preference learning as an objective: what an optimiser step over pairs minimises.

Both sides of a pair go through the model in one forward pass, and several pairs do where they
fit into the token budget, so no more is padded than a pair's own difference in length (and
nothing where the model is packed). The reference is settled before the first step.

Invariants: the loss is the mean over the pairs of the whole step; at the start of every
evolution step h = 0, so DPO's loss is ln 2, which shows that the reference is the start.

Not here: which pairs (`pairs`), and the losses (`losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...engine.errors import ConfigError
from ..base import Sample
from ..gradients.importance import mismatch
from ..settings import PreferenceSettings
from ..training.collate import collate, loss_tokens
from ..training.objective import Loss, Objective
from .losses import Sides, preference_loss, preference_metrics
from .reference import named_logprobs, summed_logprobs
from .samples import PairSample, sides

if TYPE_CHECKING:
    from ..model.policy import Policy

_COMPARED = 64
"""Sampled sequences of which the trainer's log-probs are compared with the sampler's."""


class Preference(Objective[PairSample]):
    """The loss of `settings` over pairs.

    Args:
        settings: `beta` and the loss.
        reference: model directory; empty: the start of the training.
        sampled_at: temperature of the explorations, if the start is the policy that made them;
            None: it is not, and the two cannot be compared.
        compared: the sequences that this policy sampled, where not all sides are its own; None:
            all that have log-probs.
    """

    def __init__(
        self,
        settings: PreferenceSettings,
        *,
        reference: str = "",
        sampled_at: float | None = None,
        compared: Sequence[Sample] | None = None,
    ) -> None:
        self._settings = settings
        self._reference = reference
        self._sampled_at = sampled_at
        self._compared = compared
        self.figures: dict[str, float] = {}
        """Known after `prepare`: how far sampler and trainer are apart."""

    def prepare(self, policy: Policy, items: Sequence[PairSample]) -> Sequence[PairSample]:
        """Ask the reference about both sides of every pair.

        Raises:
            BadSample: it answers with what is no finite number.
            ConfigError: it is no model of this vocabulary.
        """
        both, training = sides(items), self._settings.training
        if self._sampled_at is not None:
            sampled = both if self._compared is None else self._compared
            own = [sample for sample in sampled if len(sample.logprobs)][:_COMPARED]
            self.figures |= mismatch(policy, own, temperature=self._sampled_at or 1.0)
        if self._reference:
            values = named_logprobs(self._reference, both, training, policy.vocabulary)
        else:
            values = summed_logprobs(policy, both, training.micro_tokens)
        found = zip(items, values[::2], values[1::2], strict=True)
        return [replace(item, reference=(chosen, rejected)) for item, chosen, rejected in found]

    def tokens(self, item: PairSample) -> int:
        return len(item.chosen.token_ids) + len(item.rejected.token_ids)

    def width(self, item: PairSample) -> int:
        return 2 * max(len(item.chosen.token_ids), len(item.rejected.token_ids))

    def denominator(self, batch: Sequence[PairSample]) -> float:
        return float(len(batch))

    def loss(self, policy: Policy, part: Sequence[PairSample], denominator: float) -> Loss:
        settings = self._settings
        compared, entropy = self._compare(policy, part)
        values = preference_loss(
            compared,
            kind=settings.loss,
            beta=settings.beta,
            smoothing=settings.label_smoothing,
            length_normalised=settings.length_normalised,
            nll=settings.nll,
            dpop=settings.dpop,
        )
        n = float(len(part))
        metrics = preference_metrics(compared, settings.beta)
        tokens = float((compared.chosen_tokens + compared.rejected_tokens).sum())
        said = {name: (value, n) for name, value in metrics.items()}
        return Loss(values.sum() / denominator, said | {"entropy": (entropy, tokens)})

    def compare(self, policy: Policy, part: Sequence[PairSample]) -> Sides:
        """Both sides of pairs under the policy, beside what the reference said.

        Raises:
            ConfigError: `prepare` has not been called on them.
        """
        return self._compare(policy, part)[0]

    def _compare(self, policy: Policy, part: Sequence[PairSample]) -> tuple[Sides, float]:
        """The same, with the summed entropy of the policy at what the agent wrote, in nats."""
        references = [item.reference for item in part if item.reference is not None]
        if len(references) != len(part):
            raise ConfigError("the reference's log-probs are not known: call prepare first")
        samples: list[Sample] = sides(part)
        device = policy.device
        logprobs, entropy = policy.scores(collate(samples, device=device))
        sums = logprobs.sum(dim=1)  # [2 B]
        lengths = torch.tensor([loss_tokens(s) for s in samples], dtype=torch.float32)
        under_reference = torch.tensor(references, dtype=torch.float32, device=device)  # [B, 2]
        lengths = lengths.to(device)
        compared = Sides(
            sums[::2],
            sums[1::2],
            under_reference[:, 0],
            under_reference[:, 1],
            lengths[::2],
            lengths[1::2],
        )
        return compared, float(entropy.detach().sum())

"""The loss of policy gradients over a wave: what GRPO and PPO share.

    loss of a step = Σ (w·surrogate(π/π_old, A) + β·KL − η·entropy) / its tokens or sequences

`prepare` settles once, with the start's weights, all that the loss compares with: log π_old,
log π_ref, the critic's values, advantages, importance weights and masks. The steps after it
only compute π.

Invariants: what is settled carries no gradient and does not change during the step, also when
it is resumed; training logits are divided by the temperature that each trajectory was sampled
at; a KL stands in the reward or in the loss, never in both.

Not here: how advantages are made (`grpo`, `ppo`), and the formulas (`advantages`, `kl`,
`importance`, `losses`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor

from ...engine.errors import EmptyWave, LearnerError
from ..base import Evidence, Progress, Report
from ..model.scoring import require_vocabulary, score
from ..settings import GradientSettings
from ..training.checkpoint import hash_model
from ..training.collate import Batch, collate
from ..training.evolution_step import run_step
from ..training.objective import Loss, Objective
from ..training.processes import Sums, join
from .importance import divergence, log_ratios, ratio_mask, sequence_weights, token_weights
from .kl import adapted, carried_coefficient, estimate, leave_coefficient, penalised
from .losses import spread, surrogate, total
from .rollouts import Rollout, Rollouts, Target, hash_rollouts, padded

if TYPE_CHECKING:
    from ..model.policy import Policy


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator makes of a wave: [N, T] each, on the CPU."""

    advantages: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None
    decisions: Tensor | None = None


class PolicyGradient(Objective[Rollout]):
    """The objective of one evolution step.

    Args:
        settings: of GRPO or PPO.
        ready: what is learned from. `prepare` takes out of it what the masks leave nothing of,
            and adds to its counts and figures.
        start: model directory that is trained.
        reference: model directory of the reference policy; not read without a KL term.
    """

    def __init__(
        self, settings: GradientSettings, ready: Rollouts, *, start: str, reference: str
    ) -> None:
        self._settings = settings
        self.ready = ready
        self.start = start
        self.reference = reference
        self.coefficient = settings.kl.coefficient
        if settings.kl.target:
            self.coefficient = carried_coefficient(start, settings.kl.coefficient)
        """β of this evolution step."""
        self._next_coefficient = self.coefficient

    @abstractmethod
    def estimate(
        self, policy: Policy, items: Sequence[Rollout], rewards: Tensor, mask: Tensor
    ) -> Estimate:
        """Advantages of all action tokens.

        Args:
            rewards: [N, T] float32, penalties of a KL included.
            mask: [N, T] bool, the action tokens.
        """

    def prepare(self, policy: Policy, items: Sequence[Rollout]) -> Sequence[Rollout]:
        """Settle the targets of all rollouts.

        Raises:
            EmptyWave: the masks left nothing, or nothing differs from what was expected.
            LearnerError: the log-probs of the start, or of the reference, are not finite.
            ConfigError: the reference is of another vocabulary.
        """
        settings = self._settings
        mask = padded([item.actions for item in items])
        trainer = padded(self._scores(policy, items))
        if not bool(trainer.isfinite().all()):
            raise LearnerError(
                f"the log-probs of {self.start} are not finite: its weights are broken, or "
                "training in bfloat16 overflowed; start from another policy"
            )
        sampler = padded(
            [torch.as_tensor(item.sample.logprobs, dtype=torch.float32) for item in items]
        )
        self.ready.figures.update(divergence(trainer, sampler, mask))
        reference = self._references(policy, items, trainer)
        rewards = padded([item.rewards for item in items])
        if settings.kl.where == "reward":
            rewards = penalised(rewards, trainer, reference, mask, self.coefficient)
        if settings.kl.where != "none":
            self._adapt(trainer, reference, mask)
        made = self.estimate(policy, items, rewards, mask)
        self.ready.items[:] = self._settle(items, mask, trainer, sampler, reference, made)
        self._require_signal(self.ready.require().items)
        return self.ready.items

    def may_idle(self) -> bool:
        """Whether a step without any advantage was asked for."""
        return False

    def tokens(self, item: Rollout) -> int:
        return len(item.sample.token_ids)

    def kind(self, item: Rollout) -> float:
        return item.temperature

    def denominator(self, batch: Sequence[Rollout]) -> float:
        counts = (int(item.settled.mask.sum()) for item in batch)
        return total(counts, self._settings.loss.reduction)

    def loss(self, policy: Policy, part: Sequence[Rollout], denominator: float) -> Loss:
        value: Tensor | None = None
        sums: Sums = {}
        for temperature in dict.fromkeys(item.temperature for item in part):
            alike = [item for item in part if item.temperature == temperature]
            share = self._share(policy, alike, temperature, sums) / denominator
            value = share if value is None else value + share
        assert value is not None
        return Loss(value, sums)

    def save(self, out: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        if self._settings.kl.target:
            leave_coefficient(out, self._next_coefficient)

    def beside(
        self, policy: Policy, batch: Batch, part: Sequence[Rollout], sums: Sums
    ) -> Tensor | None:
        """What else is summed into the loss of these rollouts: a critic's. []"""
        return None

    def _share(
        self, policy: Policy, part: Sequence[Rollout], temperature: float, sums: Sums
    ) -> Tensor:
        """The undivided loss of rollouts that were sampled at one temperature."""
        settings = self._settings
        batch = collate([_masked(item) for item in part], device=policy.device)
        target = _collated([item.settled for item in part], policy.device)
        mask = target.mask
        logprobs, entropy = policy.scores(batch, temperature)
        made = surrogate(logprobs, target.old, target.advantages, mask, settings.loss)
        losses = target.weights * made.loss
        if settings.kl.where == "loss":
            kl = estimate(logprobs, target.reference, settings.kl.estimator)
            losses = losses + self.coefficient * kl
        if settings.loss.entropy:
            losses = losses - settings.loss.entropy * entropy
        with torch.no_grad():
            n = float(mask.sum())
            described = {
                "entropy": entropy,
                "ratio_mean": made.ratio,
                "clip_fraction": made.stopped.float(),
                "kl_old": estimate(logprobs, target.old, "k3"),
            }
            if settings.kl.where != "none":
                described["kl"] = estimate(logprobs, target.reference, "k3")
            for name, values in described.items():
                join(sums, name, (float(values[mask].sum()), n))
            join(sums, "ratio_max", (float(made.ratio[mask].max()), 0.0))
        value = spread(losses, mask, settings.loss.reduction, settings.loss.norm)
        more = self.beside(policy, batch, part, sums)
        return value if more is None else value + more

    def _scores(self, policy: Policy, items: Sequence[Rollout]) -> list[Tensor]:
        return score(
            policy,
            [item.sample for item in items],
            temperatures=[item.temperature for item in items],
        )

    def _references(self, policy: Policy, items: Sequence[Rollout], own: Tensor) -> Tensor:
        """log π_ref: [N, T]. The policy's own where it is the reference, or where none is used."""
        training = self._settings.training
        # With adapters to go on with, the policy is the start and more: not the reference.
        more = training.lora is not None and training.lora.adapter
        if self._settings.kl.where == "none" or (self.reference == self.start and not more):
            return own
        from ..model.policy import Policy as Model

        reference = Model.load(
            self.reference,
            dtype=training.dtype,
            device=str(policy.device),
            packing=training.packing,
            shard=training.shard,
        )
        require_vocabulary(reference, policy.vocabulary)
        scores = padded(self._scores(reference, items))
        if not bool(scores.isfinite().all()):
            raise LearnerError(
                f"the log-probs of the reference {self.reference} are not finite: its weights are "
                "damaged, or bfloat16 overflowed; compare with another (learner.kl.reference)"
            )
        return scores

    def _adapt(self, own: Tensor, reference: Tensor, mask: Tensor) -> None:
        """Measure the KL to the reference, and choose the next step's coefficient by it."""
        settings = self._settings.kl
        kl = float(estimate(own, reference, "k3")[mask].mean())
        self.ready.figures.update({"kl": kl, "kl_coefficient": self.coefficient})
        if settings.target:
            self._next_coefficient = adapted(
                self.coefficient,
                kl,
                target=settings.target,
                horizon=settings.horizon,
                count=len(mask),
            )

    def _settle(
        self,
        items: Sequence[Rollout],
        actions: Tensor,
        trainer: Tensor,
        sampler: Tensor,
        reference: Tensor,
        made: Estimate,
    ) -> list[Rollout]:
        """Make the targets, and drop rollouts that the masks left without a token."""
        settings = self._settings.importance
        ratio = log_ratios(trainer, sampler, actions)
        mask = ratio_mask(ratio, actions, settings.mask, settings.bounds)
        by_sequence = settings.correction == "sequence"
        capped = (sequence_weights if by_sequence else token_weights)(ratio, actions, settings.cap)
        self.ready.figures["weight_capped"] = float(
            (capped >= settings.cap)[actions].float().mean()
        )
        weights = torch.ones_like(trainer) if settings.correction == "none" else capped
        zero = torch.zeros_like(trainer)
        whole = Target(
            mask=mask,
            old=sampler if settings.bypass else trainer,
            advantages=made.advantages,
            weights=weights,
            reference=reference,
            values=zero if made.values is None else made.values,
            returns=zero if made.returns is None else made.returns,
            decisions=mask if made.decisions is None else made.decisions & mask,
        )
        kept: list[Rollout] = []
        dropped = self.ready.dropped
        for row, item in enumerate(items):
            if item.overlong and self._settings.reward.overlong == "mask":
                dropped["overlong"] = dropped.get("overlong", 0) + 1
            elif not bool(mask[row].any()):
                dropped["ratio_mask"] = dropped.get("ratio_mask", 0) + 1
            else:
                kept.append(replace(item, target=_row(whole, row, len(item.rewards))))
        self._describe(made.advantages[actions], mask[actions])
        return kept

    def _require_signal(self, items: Sequence[Rollout]) -> None:
        """Refuse a step that only carried moments would move."""
        settings = self._settings
        pulled = settings.kl.where == "loss" or settings.loss.entropy > 0
        if pulled or self.may_idle():
            return
        for target in (item.settled for item in items):
            errors = target.returns - target.values
            if target.advantages[target.mask].any() or errors[target.decisions].any():
                return
        raise EmptyWave(
            f"the advantages of all {len(items)} trajectories are 0, as where rewards are all "
            "equal: there is nothing to follow; explore more tasks, or more attempts at each"
        )

    def _describe(self, advantages: Tensor, kept: Tensor) -> None:
        self.ready.figures.update(
            {
                "advantage_mean": float(advantages.mean()),
                "advantage_std": float(advantages.std(correction=0)),
                "mask_fraction": 1.0 - float(kept.float().mean()),
            }
        )


def reference_of(settings: GradientSettings, evidence: Evidence) -> str:
    """The reference's model directory, or "" where no KL is taken.

    Raises:
        ConfigError: there is none of that role.
    """
    return evidence.start(settings.kl.reference) if settings.kl.where != "none" else ""


def run_gradient(
    objective: PolicyGradient, settings: GradientSettings, *, out: str, progress: Progress | None
) -> Report:
    """Run the evolution step of an objective.

    Raises:
        EmptyWave: nothing is left to learn from.
        Others: as `evolution_step.run_step`.
    """
    ready = objective.ready
    return run_step(
        ready.items,
        objective,
        settings=settings.training,
        start=objective.start,
        out=out,
        data=hash_rollouts(ready.items),
        record={
            "algorithm": settings.__struct_config__.tag,
            "evolution": msgspec.to_builtins(settings),
            "reference": hash_model(objective.reference) if objective.reference else "",
            "kl_coefficient": objective.coefficient,
        },
        dropped=ready.dropped,
        metrics=ready.figures,
        progress=progress,
    )


def _masked(item: Rollout) -> Any:
    """The sample with loss only where the target has it."""
    return replace(item.sample, loss_mask=item.settled.mask.tolist())


_FIELDS = tuple(Target.__dataclass_fields__)


def _row(whole: Target, row: int, length: int) -> Target:
    return Target(**{name: getattr(whole, name)[row, :length].clone() for name in _FIELDS})


def _collated(targets: Sequence[Target], device: torch.device) -> Target:
    return Target(
        **{name: padded([getattr(t, name) for t in targets]).to(device) for name in _FIELDS}
    )

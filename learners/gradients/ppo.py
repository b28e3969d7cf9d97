"""PPO with a critic: each decision is judged against what was expected of it.

Advantages by GAE over action tokens (or turns), whitened; the critic learns the returns beside
the policy, in the same steps. A fresh critic first learns the wave's discounted returns alone,
for `critic_warmup` steps with the policy frozen: an untrained one would only add noise.

Invariants: the values that advantages and value clipping use are those from before the step;
warming up depends on the wave and the start alone, so a resumed step repeats it; the critic is
saved beside the policy, and the next step takes it up.

Sources: PPO, arXiv 1707.06347; GAE, 1506.02438. Simplified: nothing.
Not here: the policy's loss (`objective`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...engine.errors import LearnerError
from ..base import Evidence, Progress, Report
from ..settings import PpoSettings
from ..training.collate import Batch, collate, micro_batches, steps
from ..training.optimiser import Optimiser
from ..training.processes import Processes, Sums, join
from .advantages import gae, turn_gae, whitened
from .critic import Critic
from .losses import spread, value_loss
from .objective import Estimate, PolicyGradient, reference_of, run_gradient
from .rollouts import Rollout, Rollouts, padded, rollouts_of

if TYPE_CHECKING:
    from ..model.policy import Policy


def evolve(
    settings: PpoSettings, evidence: Evidence, *, out: str, progress: Progress | None = None
) -> Report:
    """One evolution step of a campaign; see `algorithms.evolve`."""
    ready = rollouts_of(settings, evidence).require()
    start, reference = evidence.start("last"), reference_of(settings, evidence)
    objective = ActorCritic(settings, ready, start=start, reference=reference)
    return run_gradient(objective, settings, out=out, progress=progress)


class ActorCritic(PolicyGradient):
    """The objective with advantages from a critic, which learns with it."""

    def __init__(
        self, settings: PpoSettings, ready: Rollouts, *, start: str, reference: str
    ) -> None:
        super().__init__(settings, ready, start=start, reference=reference)
        self._rules = settings
        self._critic: Critic | None = None
        self._emphasis = 1.0

    @property
    def critic(self) -> Critic:
        """The critic, once `prepare` has loaded it."""
        assert self._critic is not None
        return self._critic

    def estimate(
        self, policy: Policy, items: Sequence[Rollout], rewards: Tensor, mask: Tensor
    ) -> Estimate:
        rules = self._rules
        self._critic = Critic.load(rules.critic, self.start, policy, rules.training)
        turns = torch.full(mask.shape, -1, dtype=torch.int64)
        for row, item in enumerate(items):
            turns[row, : len(item.turns)] = item.turns
        nothing = torch.zeros_like(rewards)
        _, earned, decisions = self._generalised(rewards, nothing, mask, turns, smoothing=1.0)
        # A turn is one decision however many tokens it has: its error counts for all of them,
        # lest the critic learn slower from fewer decisions.
        self._emphasis = float(mask.sum()) / float(decisions.sum())
        if self._critic.fresh:
            self._warm_up(policy, items, earned, decisions)
        values = self._values(policy, items)
        if not bool(values.isfinite().all()):
            raise LearnerError(
                f"the values of the critic of {self.start} are not finite: its weights are "
                "damaged; start from a policy without a critic"
            )
        advantages, returns, _ = self._generalised(
            rewards, values, mask, turns, smoothing=rules.gae_lambda
        )
        self.ready.figures.update(_explained(values[decisions], earned[decisions]))
        if rules.whiten:
            advantages = whitened(advantages, mask)
        return Estimate(advantages, values, returns, decisions)

    def parameters(self) -> dict[str, Tensor]:
        return self.critic.parameters()

    def factors(self) -> dict[str, float]:
        return dict.fromkeys(self.critic.parameters(), self._rate() / self._rules.training.lr)

    def _rate(self) -> float:
        """The critic's."""
        return self._rules.critic_lr or self._rules.training.lr

    def save(self, out: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        super().save(out, weights)
        self.critic.save(out, weights)

    def beside(
        self, policy: Policy, batch: Batch, part: Sequence[Rollout], sums: Sums
    ) -> Tensor | None:
        rules = self._rules
        targets = [item.settled for item in part]
        old, returns, decisions, mask = (
            padded([getattr(t, name) for t in targets]).to(policy.device)
            for name in ("values", "returns", "decisions", "mask")
        )
        values = self.critic.values(policy, batch)
        errors = value_loss(values, old, returns, decisions, rules.value_clip)
        join(sums, "value_loss", (float(errors.detach().sum()), float(decisions.sum())))
        share = spread(errors, mask, rules.loss.reduction, rules.loss.norm)
        return rules.value_weight * self._emphasis * share

    def _generalised(
        self, rewards: Tensor, values: Tensor, mask: Tensor, turns: Tensor, *, smoothing: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages, returns and decisions at the settings' level."""
        discount = self._rules.discount
        if self._rules.level == "turn":
            return turn_gae(rewards, values, turns, discount=discount, smoothing=smoothing)
        made = gae(rewards, values, mask, discount=discount, smoothing=smoothing)
        return *made, mask

    def _values(self, policy: Policy, items: Sequence[Rollout]) -> Tensor:
        """The critic's values now: [N, T], on the CPU."""
        rows: dict[int, Tensor] = {}
        for part in self._parts(range(len(items)), items):
            batch = collate([items[i].sample for i in part], device=policy.device)
            with torch.no_grad():
                values = self.critic.values(policy, batch).cpu()
            for index, row in zip(part, values, strict=True):
                rows[index] = row[: len(items[index].rewards)]
        return padded([rows[index] for index in range(len(items))])

    def _warm_up(
        self, policy: Policy, items: Sequence[Rollout], earned: Tensor, decisions: Tensor
    ) -> None:
        """Fit a fresh critic to the wave's discounted returns, the policy untouched."""
        training, lr = self._rules.training, self._rate()
        optimiser = Optimiser(self.critic.parameters(), lr=lr, weight_decay=0.0)
        processes = Processes.current()
        dealt = steps(
            range(len(items)),
            seed=training.seed,
            size=training.batch,
            tokens=training.batch_tokens,
            cost=lambda i: len(items[i].rewards),
        )
        for batch in islice(dealt, self._rules.critic_warmup):
            optimiser.begin(lr)
            count = float(decisions[batch].sum())
            for part, counts in processes.passes(
                self._parts(batch, items), lambda i: len(items[i].rewards), even=policy.sharded
            ):
                padded_part = collate([items[i].sample for i in part], device=policy.device)
                values = self.critic.values(policy, padded_part)
                width = values.shape[1]
                wanted = earned[part][:, :width].to(policy.device)
                here = decisions[part][:, :width].to(policy.device)
                error = torch.where(here, (values - wanted).square(), 0.0).sum() / (2 * count)
                torch.autograd.backward(error if counts else error * 0.0)
            norm = optimiser.gather(training.clip or torch.inf)
            if not norm < torch.inf:
                raise LearnerError(
                    f"the critic diverged while warming up (gradient norm {norm}); lower its "
                    f"rate, {lr} (learner.critic_lr, or else learner.training.lr)"
                )
            optimiser.move()

    def _parts(self, batch: Sequence[int], items: Sequence[Rollout]) -> list[list[int]]:
        return micro_batches(
            batch, self._rules.training.micro_tokens, width=lambda i: len(items[i].rewards)
        )


def _explained(values: Tensor, returns: Tensor) -> dict[str, float]:
    """The share of the returns' variance that the values explain; nothing where there is none."""
    spread = float(returns.var(correction=0))
    if not spread > 0:
        return {}
    return {"value_explained": 1.0 - float((returns - values).var(correction=0)) / spread}

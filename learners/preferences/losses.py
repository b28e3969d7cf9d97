"""Losses of preference pairs: pure functions of summed log-probabilities.

For a pair of trajectories e_w (chosen) and e_l (rejected) that begin alike,

    h = [log pi(e_w) - log pi(e_l)] - [log ref(e_w) - log ref(e_l)]

where log pi(e) is the *sum* over the tokens that the agent wrote. Whatever the environment
wrote stands in numerator and denominator of the ratio that h is made of, and cancels.

Invariants: each function maps [B] to [B], one value a pair, so that a mean over the whole
step is taken once, where the step is known; adding one constant to both sides of a policy
changes no loss but `negative_log_likelihood` and the DPOP penalty, which are there for that.

Sources: DPO, arXiv 2305.18290; label smoothing as in cDPO; IPO, 2310.12036; the likelihood
term of RPO, 2404.19733; DPOP, 2402.13228; dividing by lengths as in DMPO's motivation,
2406.14868.

Not here: the forward pass and the reference (`objective`, `reference`), which pairs (`pairs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

TIE: Final = 1e-3
"""An h below it is a tie: two passes of one policy differ by the rounding of sums."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Summed log-probabilities of B pairs under the policy and under the reference."""

    chosen: Tensor  # [B] float32, log pi(e_w); carries the gradient
    rejected: Tensor  # [B] float32, log pi(e_l)
    reference_chosen: Tensor  # [B] float32
    reference_rejected: Tensor  # [B] float32
    chosen_tokens: Tensor  # [B] float32, tokens that the agent wrote
    rejected_tokens: Tensor  # [B] float32

    def per_token(self) -> Sides:
        """The same with means over the tokens of each side in place of sums."""
        return Sides(
            self.chosen / self.chosen_tokens,
            self.rejected / self.rejected_tokens,
            self.reference_chosen / self.chosen_tokens,
            self.reference_rejected / self.rejected_tokens,
            self.chosen_tokens,
            self.rejected_tokens,
        )

    def advantage(self) -> Tensor:
        """h: by how much more than the reference the policy prefers the chosen side. [B]"""
        return (self.chosen - self.rejected) - (self.reference_chosen - self.reference_rejected)

    def displacement(self) -> Tensor:
        """By how much the chosen side fell below the reference, in nats; 0 if it did not. [B]"""
        return relu(self.reference_chosen - self.chosen)


def sigmoid_loss(h: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """DPO: -(1 - eps) log sigma(beta h) - eps log sigma(-beta h). [B] -> [B]

    At h = 0 it is ln 2 whatever eps is. If a share p of annotators prefers the chosen side,
    its expectation is least at h = logit(p) / beta.
    """
    loss = -logsigmoid(beta * h)
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * logsigmoid(-beta * h)


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """IPO: (h - 1 / (2 beta))^2. [B] -> [B]. It stops pulling at a margin; DPO never does."""
    return (h - 1 / (2 * beta)) ** 2


def negative_log_likelihood(chosen: Tensor, tokens: Tensor) -> Tensor:
    """RPO's term: mean surprise of the chosen side, in nats per token. [B], [B] -> [B]"""
    return -chosen / tokens


def preference_loss(
    sides: Sides,
    *,
    kind: str = "sigmoid",
    beta: float,
    smoothing: float = 0.0,
    length_normalised: bool = False,
    nll: float = 0.0,
    dpop: float = 0.0,
) -> Tensor:
    """Loss of each pair, of the terms that are switched on. [B]

    Args:
        kind: "sigmoid" or "ipo".
        nll: weight of `negative_log_likelihood`.
        dpop: weight of `Sides.displacement`, which is taken from h before the loss of it.
    """
    compared = sides.per_token() if length_normalised else sides
    h = compared.advantage()
    if dpop:
        h = h - dpop * compared.displacement()
    loss = ipo_loss(h, beta) if kind == "ipo" else sigmoid_loss(h, beta, smoothing)
    if nll:
        loss = loss + nll * negative_log_likelihood(sides.chosen, sides.chosen_tokens)
    return loss


def preference_metrics(sides: Sides, beta: float) -> dict[str, float]:
    """Sums over the pairs; divide by their number.

    `accuracy` counts the pairs that the policy ranks right relative to the reference; a tie
    is wrong. `chosen_logprob` is absolute: it can fall while the margin grows, since only
    the difference is learned from.
    """
    h = sides.advantage().detach()
    chosen_reward = beta * (sides.chosen - sides.reference_chosen).detach()
    rejected_reward = beta * (sides.rejected - sides.reference_rejected).detach()
    sums = {
        "margin": beta * h,
        "accuracy": (h > TIE).float(),
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
        "chosen_logprob": sides.chosen.detach(),
        "rejected_logprob": sides.rejected.detach(),
        "chosen_tokens": sides.chosen_tokens,
        "rejected_tokens": sides.rejected_tokens,
    }
    return {name: float(values.sum()) for name, values in sums.items()}

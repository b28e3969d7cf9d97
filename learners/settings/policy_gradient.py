"""Policy gradients: how a wave becomes advantages, and how a step follows them.

`GrpoSettings` compares attempts at one task with each other, `PpoSettings` asks a critic.
The defaults are what the field had settled on in 2026: advantage r − mean,
one pass, clip 0.2/0.28, no KL term, no entropy bonus, groups without a difference left out.

Invariant: a KL term stands in the reward or in the loss, never in both.

Not here: how many tasks and attempts a wave has (`actors.config`), or the formulas
(`advantages`, `losses`, `importance`, `kl`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Settings, require
from .learner import History, LearnerSettings
from .training import TrainingSettings

Estimator = Literal[
    "grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "maxrl", "gigpo"
]
Placement = Literal["last", "uniform", "segments", "turns"]
Overlong = Literal["keep", "mask", "penalty"]
Surrogate = Literal["clip", "drop"]
Reduction = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm"]
KlWhere = Literal["none", "reward", "loss"]
KlEstimator = Literal["k1", "k2", "k3", "k3+"]
ReferenceRole = Literal["base_bc", "pretrained", "last"]
Correction = Literal["none", "token", "sequence"]
RatioMask = Literal["none", "geometric", "product", "outlier", "icepop"]
CriticKind = Literal["model", "head"]
Level = Literal["token", "turn"]


class GradientTraining(TrainingSettings, frozen=True):
    """One pass over the wave in mini-batches. A 7B model wants lr 1e-6."""

    lr: float = 1e-4
    epochs: int = 1
    carry_optimiser: bool = True
    """Each step is small: moments that start from nothing would rule it."""


class RewardSettings(Settings, frozen=True):
    """Where the reward of a trajectory goes, and what is taken off it."""

    placement: Placement = "last"
    """All of it at the last action token; or, where it is positive, spread evenly over the action
    tokens; or over the turns' last tokens, falling towards the first by `segment_discount`; or
    each turn's own reward at that turn's last token."""
    segment_discount: float = 0.9
    invalid_penalty: float = 0.0
    """Taken off at the end of every turn that broke the format."""
    overlong: Overlong = "keep"
    """Of trajectories cut by the token limit: keep them; leave their tokens out of the loss; or
    take `overlong_penalty` off their reward."""
    overlong_penalty: float = 0.5

    def __post_init__(self) -> None:
        require(
            0 < self.segment_discount <= 1,
            "reward.segment_discount",
            self.segment_discount,
            "in (0, 1]",
        )
        for key in ("invalid_penalty", "overlong_penalty"):
            require(getattr(self, key) >= 0, f"reward.{key}", getattr(self, key), "0 or more")


class SurrogateSettings(Settings, frozen=True):
    """The loss of a token, and how tokens are summed up."""

    kind: Surrogate = "clip"
    """The clipped ratio; or prime-rl's: the plain ratio, without tokens that have moved by more
    than `drop_above` in probability the way they were pushed, plus a penalty on the log-ratio."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    """Cap c of the loss of a token with a negative advantage: −A·c; 0: none."""
    drop_above: float = 0.2
    ratio_penalty: float = 1e-3
    reduction: Reduction = "token_mean"
    norm: float = 0.0
    """L of seq_mean_token_sum_norm: a constant, such as the longest trajectory's tokens."""
    entropy: float = 0.0
    """Coefficient of the entropy bonus."""

    def __post_init__(self) -> None:
        require(0 < self.clip_low < 1, "loss.clip_low", self.clip_low, "in (0, 1)")
        require(self.clip_high > 0, "loss.clip_high", self.clip_high, "positive")
        c = self.dual_clip
        require(c == 0 or c > 1 + self.clip_high, "loss.dual_clip", c, "0 or above 1 + clip_high")
        require(0 < self.drop_above <= 1, "loss.drop_above", self.drop_above, "in (0, 1]")
        for key in ("ratio_penalty", "entropy"):
            require(getattr(self, key) >= 0, f"loss.{key}", getattr(self, key), "0 or more")
        summed = self.reduction == "seq_mean_token_sum_norm"
        require(
            self.norm > 0 if summed else self.norm == 0,
            "loss.norm",
            self.norm,
            "positive with seq_mean_token_sum_norm, and 0 without",
        )


class KlSettings(Settings, frozen=True):
    """A leash to a reference policy. Without it none is loaded."""

    where: KlWhere = "none"
    estimator: KlEstimator = "k3"
    """Of the term in the loss; in the reward it is always k1."""
    coefficient: float = 1e-3
    reference: ReferenceRole = "base_bc"
    """Where the campaign started, or the policy of the step before ("last": refreshed with
    every evolution step)."""
    target: float = 0.0
    """Adapt the coefficient after each evolution step towards this KL, and go on with what the
    step before left; 0: it stays as set here."""
    horizon: float = 10_000.0
    """Trajectories in which the controller answers a deviation."""

    def __post_init__(self) -> None:
        require(self.coefficient > 0, "kl.coefficient", self.coefficient, "positive")
        require(self.target >= 0, "kl.target", self.target, "0 or more")
        require(
            not (self.target > 0 and self.reference == "last"),
            "kl.target",
            self.target,
            '0 with reference = "last": the KL is taken before the step, where it is always 0',
        )
        require(self.horizon > 0, "kl.horizon", self.horizon, "positive")


class ImportanceSettings(Settings, frozen=True):
    """What is done about a sampler whose probabilities are not the trainer's."""

    correction: Correction = "none"
    """Truncated importance sampling: the loss times min(π_old/μ, cap), by token or sequence."""
    cap: float = 2.0
    mask: RatioMask = "none"
    """Leave out sequences by the geometric mean of their ratios, by their product, or by one
    outlier among them; or ("icepop") tokens by their own."""
    bounds: tuple[float, float] | None = None
    """Accepted ratios of `mask`; None: its usual ones."""
    bypass: bool = False
    """Take the sampler's log-probs for π_old: the ratio itself then corrects, and nothing else
    may."""

    def __post_init__(self) -> None:
        require(self.cap >= 1, "importance.cap", self.cap, "1 or more")
        low, high = self.bounds or (0.5, 2.0)
        require(0 < low < 1 < high, "importance.bounds", self.bounds, "[low, high] around 1")
        require(
            not (self.bypass and self.correction != "none"),
            "importance.correction",
            self.correction,
            '"none" with bypass, which corrects already',
        )


class GradientSettings(LearnerSettings, frozen=True):
    """What GRPO and PPO share."""

    history: ClassVar[History] = "last"

    training: GradientTraining = GradientTraining()
    reward: RewardSettings = RewardSettings()
    loss: SurrogateSettings = SurrogateSettings()
    kl: KlSettings = KlSettings()
    importance: ImportanceSettings = ImportanceSettings()
    max_staleness: int = 0
    """Evolution steps by which the oldest token of a trajectory may lag behind the policy that
    is trained; 0: waves and steps take turns."""
    discount: float = 1.0
    """γ of a decision: an action token, or a turn."""

    def __post_init__(self) -> None:
        require(self.max_staleness >= 0, "max_staleness", self.max_staleness, "0 or more")
        require(0 < self.discount <= 1, "discount", self.discount, "in (0, 1]")
        lora = self.training.lora
        require(
            lora is None or lora.dropout == 0,
            "training.lora.dropout",
            lora and lora.dropout,
            "0: two log-probs are compared, and dropout would move one of them",
        )


class GrpoSettings(GradientSettings, frozen=True, tag="grpo"):
    """Advantages without a critic: each attempt against the others at its task."""

    estimator: Estimator = "dr_grpo"
    zero_variance: Literal["drop", "keep"] = "drop"
    """What is done with groups whose rewards are all equal. Their advantage is 0 either way."""
    step_weight: float = 1.0
    """Of the step advantage in "gigpo"."""
    resets: bool = False
    """Start the return of "reinforce_pp" anew after each observation, as published code does.
    All turns but the last then learn nothing: for comparisons."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step_weight >= 0, "step_weight", self.step_weight, "0 or more")
        if self.estimator == "maxrl":
            negative = self.reward.invalid_penalty > 0 or self.reward.overlong == "penalty"
            require(not negative, "estimator", "maxrl", "another where rewards are penalised")
            require(self.kl.where != "reward", "kl.where", "reward", '"loss" with maxrl')


class PpoSettings(GradientSettings, frozen=True, tag="ppo"):
    """Advantages from a critic."""

    gae_lambda: float = 1.0
    level: Level = "token"
    """What a decision is: an action token, or a whole turn."""
    whiten: bool = True
    critic: CriticKind = "model"
    """A model of its own, or a linear head on the policy's last hidden state."""
    critic_lr: float = 0.0
    """Rate of the critic, which follows the schedule of the policy's; 0: the policy's. For 7B
    models 1e-5 beside a policy's 1e-6 is usual."""
    value_clip: float = 0.5
    value_weight: float = 1.0
    """Of the value loss beside the policy's."""
    critic_warmup: int = 20
    """Steps of a fresh critic alone, on its first wave, before any advantage is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(self.value_clip > 0, "value_clip", self.value_clip, "positive")
        require(self.value_weight > 0, "value_weight", self.value_weight, "positive")
        for key in ("critic_lr", "critic_warmup"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")

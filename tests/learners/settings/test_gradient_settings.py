"""The keys of GRPO and PPO: defaults, contradictions, and the way through a file."""

from __future__ import annotations

import msgspec
import pytest
from rollwave.engine.errors import ConfigError
from rollwave.learners.settings import AnyLearner, GrpoSettings, LoraSettings, PpoSettings
from rollwave.learners.settings.policy_gradient import (
    GradientTraining,
    ImportanceSettings,
    KlSettings,
    RewardSettings,
    SurrogateSettings,
)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GrpoSettings(max_staleness=-1), "max_staleness"),
        (lambda: GrpoSettings(discount=0.0), "discount"),
        (lambda: GrpoSettings(step_weight=-1.0), "step_weight"),
        (lambda: GrpoSettings(estimator="maxrl", kl=KlSettings(where="reward")), "kl.where"),
        (
            lambda: GrpoSettings(estimator="maxrl", reward=RewardSettings(invalid_penalty=0.1)),
            "estimator",
        ),
        (lambda: PpoSettings(gae_lambda=1.1), "gae_lambda"),
        (lambda: PpoSettings(value_clip=0.0), "value_clip"),
        (lambda: PpoSettings(value_weight=0.0), "value_weight"),
        (lambda: PpoSettings(critic_warmup=-1), "critic_warmup"),
        (
            lambda: PpoSettings(training=GradientTraining(lora=LoraSettings(dropout=0.1))),
            "training.lora.dropout",
        ),
        (lambda: RewardSettings(segment_discount=0.0), "reward.segment_discount"),
        (lambda: RewardSettings(invalid_penalty=-1.0), "reward.invalid_penalty"),
        (lambda: SurrogateSettings(clip_low=1.0), "loss.clip_low"),
        (lambda: SurrogateSettings(clip_high=0.0), "loss.clip_high"),
        (lambda: SurrogateSettings(dual_clip=1.1), "loss.dual_clip"),
        (lambda: SurrogateSettings(drop_above=0.0), "loss.drop_above"),
        (lambda: SurrogateSettings(entropy=-1.0), "loss.entropy"),
        (lambda: SurrogateSettings(norm=3.0), "loss.norm"),
        (lambda: SurrogateSettings(reduction="seq_mean_token_sum_norm"), "loss.norm"),
        (lambda: KlSettings(coefficient=0.0), "kl.coefficient"),
        (lambda: KlSettings(horizon=0.0), "kl.horizon"),
        (lambda: KlSettings(reference="last", target=0.1), "kl.target"),
        (lambda: ImportanceSettings(cap=0.5), "importance.cap"),
        (lambda: ImportanceSettings(bounds=(1.5, 2.0)), "importance.bounds"),
        (lambda: ImportanceSettings(bypass=True, correction="token"), "importance.correction"),
    ],
)
def test_impossible_values_are_refused_by_name(make, key):
    with pytest.raises(ConfigError, match=f"^{key} = "):
        make()


def test_the_defaults_are_the_fields():
    settings = GrpoSettings()
    assert (settings.estimator, settings.zero_variance) == ("dr_grpo", "drop")
    assert (settings.loss.clip_low, settings.loss.clip_high) == (0.2, 0.28)
    assert settings.loss.reduction == "token_mean"
    assert (settings.kl.where, settings.loss.entropy) == ("none", 0.0)
    assert (settings.importance.correction, settings.max_staleness) == ("none", 0)
    assert (settings.training.epochs, settings.training.carry_optimiser) == (1, True)
    assert (settings.history, PpoSettings().gae_lambda) == ("last", 1.0)


@pytest.mark.parametrize("tag", ["grpo", "ppo"])
def test_a_section_of_a_file_becomes_settings(tag):
    """What is left out of a subsection keeps the algorithm's default, not cloning's."""
    document = {"algorithm": tag, "training": {"lr": 0.5}, "loss": {"clip_high": 0.4}}
    settings = msgspec.convert(document, AnyLearner)
    assert isinstance(settings, GrpoSettings | PpoSettings)
    assert (settings.training.lr, settings.training.epochs) == (0.5, 1)
    assert settings.training.carry_optimiser
    assert msgspec.convert(msgspec.to_builtins(settings), AnyLearner) == settings


def test_a_critics_key_is_unknown_to_grpo():
    with pytest.raises(msgspec.ValidationError, match="critic"):
        msgspec.convert({"algorithm": "grpo", "critic": "head"}, AnyLearner)

"""What a campaign's settings must keep to, beyond the type of each: a pure rule.

Invariant: the first contradiction is told with the key that is to be changed; settings
that pass can be started, as far as a file can tell.

Not here: keys and types (`sections`), the learners' own rules (`learners.settings`), and
whether the tasks exist (`arena`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..learners.settings import GradientSettings

if TYPE_CHECKING:
    from .config import CampaignConfig


def contradiction(config: CampaignConfig) -> str:
    """Say what is wrong with these settings, naming the key; nothing if all is well."""
    rules = (_ranges, _models, _training, _processes, _experts, _splits, _exploration, _staleness)
    return next((found for rule in rules for found in rule(config)), "")


def _ranges(config: CampaignConfig) -> Iterator[str]:
    run, rollout, evaluate, stop = config.run, config.rollout, config.evaluate, config.stop
    positive = {
        "run.concurrency": run.concurrency,
        "run.threads": run.threads,
        "run.learner_processes": run.learner_processes,
        "run.turn_seconds": run.turn_seconds,
        "run.episode_seconds": run.episode_seconds,
        "run.wave_seconds": run.wave_seconds,
        "run.step_seconds": run.step_seconds,
        "run.swap_seconds": run.swap_seconds,
        "run.shutdown_seconds": run.shutdown_seconds,
        "rollout.tasks": rollout.tasks,
        "rollout.attempts": rollout.attempts,
        "rollout.max_tokens": rollout.max_tokens,
        "rollout.rounds": rollout.rounds,
        "rollout.horizon_waves": rollout.horizon_waves,
        "inference.batch": config.inference.batch,
        "evaluate.dev_tasks": evaluate.dev_tasks,
        "evaluate.every": evaluate.every,
        "stop.patience": stop.patience,
    }
    not_negative = {
        "run.workers": run.workers,
        "run.max_staleness": run.max_staleness,
        "environment.turn_limit": config.environment.turn_limit,
        "inference.context": config.inference.context,
        "experts.first": config.experts.first,
        "experts.tasks": config.experts.tasks,
        "rollout.first": rollout.first,
        "rollout.batch": rollout.batch,
        "rollout.temperature": rollout.temperature,
        "evaluate.dev_first": evaluate.dev_first,
        "evaluate.test_first": evaluate.test_first,
        "evaluate.test_tasks": evaluate.test_tasks,
        "evaluate.max_tokens": evaluate.max_tokens,
        "stop.waves": stop.waves,
        "stop.steps": stop.steps,
        "stop.episodes": stop.episodes,
        "stop.max_kl": stop.max_kl,
    }
    shares = {
        "run.max_fault_share": run.max_fault_share,
        "stop.min_entropy": stop.min_entropy,
        "stop.max_format_errors": stop.max_format_errors,
    }
    for key, value in positive.items():
        if not value > 0:
            yield f"{key} must be above 0, not {value}"
    for key, value in not_negative.items():
        if not 0 <= value < math.inf:
            yield f"{key} must be 0 or more, not {value}"
    for key, value in shares.items():
        if not 0 <= value <= 1:
            yield f"{key} is a share in [0, 1], not {value}"


def _models(config: CampaignConfig) -> Iterator[str]:
    if bool(config.model.path) == (config.model.tiny is not None):
        yield "model needs either path or a [model.tiny] section, not both"
    if tiny := config.model.tiny:
        for key in ("width", "layers", "heads", "context"):
            if getattr(tiny, key) <= 0:
                yield f"model.tiny.{key} must be above 0, not {getattr(tiny, key)}"
        if tiny.width > 0 < tiny.heads and tiny.width % (2 * tiny.heads):
            yield (
                f"model.tiny.width = {tiny.width} must be an even multiple of "
                f"model.tiny.heads = {tiny.heads}"
            )


def _training(config: CampaignConfig) -> Iterator[str]:
    for key, training in config.trainings.items():
        if training.evaluate_every:
            yield (
                f"{key}.evaluate_every must be 0: a campaign evaluates policies (evaluate.every), "
                "and nobody plays dev tasks in the middle of a training"
            )


def _processes(config: CampaignConfig) -> Iterator[str]:
    for key, training in config.trainings.items():
        if config.run.learner_processes > 1 and ":" in training.device:
            yield (
                f'{key}.device = "{training.device}" is one GPU, and each of '
                f"run.learner_processes = {config.run.learner_processes} takes its own: "
                'set it to "cuda"'
            )


def _experts(config: CampaignConfig) -> Iterator[str]:
    if config.experts.path == "":  # an unset variable of a shell, say
        yield "experts.path is empty: name a file or directory, or leave the key out"
    if config.experts.paths:
        if not all(config.experts.paths):
            yield "experts.path names a file or directory, or a list of them; one of these is empty"
        return
    if config.experts.replay:
        yield "experts.replay needs experts.path: the environment's own expert plays in any case"
    if config.experts.tasks:
        return
    if config.learner.scope == "expert_tasks":
        yield (
            "learner.scope = 'expert_tasks' needs experts.tasks above 0, or experts.path: it "
            "explores the experts' tasks"
        )
    if config.control.enabled:
        yield (
            "control.enabled needs experts.tasks above 0, or experts.path: the control learns "
            "from experts only"
        )


def _splits(config: CampaignConfig) -> Iterator[str]:
    evaluate = config.evaluate
    trained = {config.experts.split, config.rollout.split}
    for key, split in (
        ("evaluate.dev_split", evaluate.dev_split),
        ("evaluate.test_split", evaluate.test_split),
    ):
        if split in trained:
            yield f"{key} = {split!r} is also trained on; choose another split"
    if evaluate.dev_split == evaluate.test_split:
        yield (
            f"evaluate.dev_split and test_split are both {evaluate.test_split!r}; the split that "
            "chooses must not be the one that is reported"
        )


def _exploration(config: CampaignConfig) -> Iterator[str]:
    rollout, learner = config.rollout, config.learner
    of_experts = learner.scope == "expert_tasks"
    pool = config.experts.tasks if of_experts else rollout.tasks
    # How many tasks files have is seen when they are read (`arena`).
    if rollout.batch > pool and not (of_experts and config.experts.paths):
        whose = "experts.tasks" if of_experts else "rollout.tasks"
        yield f"rollout.batch = {rollout.batch} is more than the {pool} of {whose}"
    if not all(turns > 0 for turns in rollout.horizon):
        yield f"rollout.horizon must be turns above 0, not {list(rollout.horizon)}"
    if rollout.horizon and config.environment.turn_limit:
        yield "rollout.horizon and environment.turn_limit say the same twice: give one of them"
    if rollout.rounds > 1:
        if not rollout.batch:
            yield "rollout.rounds above 1 needs rollout.batch: what is to be filled up"
        if rollout.attempts < 2:
            yield "rollout.rounds above 1 needs rollout.attempts of 2 or more: it compares them"
        if learner.history != "last" or learner.exploration != "tasks":
            yield (
                "rollout.rounds above 1 needs an algorithm that learns from the groups of the "
                "last wave, such as learner.algorithm = 'grpo'"
            )
    if learner.exploration != "tasks" and not of_experts:
        yield (
            "learner.scope must be 'expert_tasks' where single turns are contrasted: it is played "
            "on behind the experts' own"
        )
    if learner.exploration == "both" and rollout.attempts != 1:
        yield (
            f"rollout.attempts must be 1, not {rollout.attempts}, where whole episodes and single "
            "turns are both explored (learner.contrast = 'mixture'): an attempt above 0 is a turn "
            "behind the expert's"
        )


def _staleness(config: CampaignConfig) -> Iterator[str]:
    if config.run.max_staleness and not isinstance(config.learner, GradientSettings):
        yield (
            "run.max_staleness above 0 needs an algorithm that knows how old a trajectory is "
            "(learner.algorithm = 'grpo' or 'ppo'): the others learn from the newest policy alone"
        )

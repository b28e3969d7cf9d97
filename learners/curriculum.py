"""ScalingInter: the longest episode of a step, in turns.

    H(step) = rounds[min(⌊(step − 1) / every⌋, n − 1)],  step counted from 1

Invariant: a pure function of the step. A counter would be one behind after a resume.

Source: AgentGym-RL, arXiv 2509.08755, and its code, whose counter is one stage behind after a
resume, or two ahead. Simplified: nothing. An episode has no budget of tokens but the model's
context, so what it may say grows with H. Not here: which turns are played (`actors.explorer`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.errors import ConfigError


def horizon(step: int, rounds: Sequence[int], every: int) -> int:
    """Largest number of turns in a step.

    Args:
        step: counted from 1: an evolution step.
        rounds: the stages' limits, in turns.
        every: steps that a stage lasts.

    Raises:
        ConfigError: there is no such step, or no stage.
    """
    if step < 1 or every < 1:
        raise ConfigError(f"horizon of step {step}, every {every}: both count from 1")
    if not rounds or min(rounds) < 1:
        raise ConfigError(f"horizon = {list(rounds)}: it must list one or more positive limits")
    return rounds[min((step - 1) // every, len(rounds) - 1)]

"""Plays the actions of a recorded episode in an environment, and takes down what it answers.

A record that comes from a file may have been made in another version of a world, under another
numbering, or with other things in sight. Whether its actions solve the task *here* can only be
tried; and who compares with it, or goes on behind its turns, needs what is observed and earned
here.

Invariant: what is given is an episode of this environment, to the end and solved: its
observations, rewards and end are the environment's own. The environment is reset with seed 0.

Not here: comparing answers with recorded ones (`replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from ..engine.errors import ConfigError, EnvironmentFault, EnvironmentLost, MissingDependency
from ..engine.trajectory import Turn
from .base import Environment, EnvSpec, StepResult, Task
from .formats import get_format

SEED: Final = 0
"""What the environment is reset with."""


def rehearse(
    spec: EnvSpec, task: Task, turns: Sequence[Turn], *, turn_limit: int = 0
) -> tuple[tuple[Turn, ...], str] | None:
    """Take the turns' actions at this task; None unless they solve it.

    Blocks, as the environment does. Turns behind the end are left out.

    Args:
        turns: with the actions that their completions spell; the rest of them is not read.
        turn_limit: 0: the environment's own.

    Returns:
        The turns with observations and rewards of this environment, and its last observation.

    Raises:
        MissingDependency: the environment needs what is not installed.
        EnvironmentLost: the server or process of the environment is gone.
    """
    session = spec.make()
    try:
        return _played(spec, session, task, turns[: turn_limit or spec.turn_limit])
    except (MissingDependency, EnvironmentLost):
        raise  # that is no fault of the record
    except (EnvironmentFault, ConfigError):
        return None  # no such task, or a world that broke on it
    finally:
        with suppress(EnvironmentFault):  # what was played is known
            session.close()


def _played(
    spec: EnvSpec, session: Environment, task: Task, turns: Sequence[Turn]
) -> tuple[tuple[Turn, ...], str] | None:
    form = get_format(spec.action_format)
    seen = session.reset(task, SEED)
    played: list[Turn] = []
    for turn in turns:
        if turn.format_error:
            result = StepResult(form.parse(turn.completion).error)
        else:
            result = session.step(turn.action)
        played.append(msgspec.structs.replace(turn, observation=seen, reward=result.reward))
        seen = result.observation
        if result.done:
            return (tuple(played), seen) if result.success else None
    return None

"""Actions of trajectories that come from files: read off the completions, where it is known how.

A file of conversations does not say which part of a completion was the action. Where the
trajectory's environment is one of ours, its action format reads it; elsewhere it stays empty.

Not here: the formats (`envs.formats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import msgspec

from ..engine.errors import ConfigError
from ..engine.trajectory import Trajectory, Turn
from ..envs.formats import ActionFormat, get_format
from ..envs.registry import resolve


def with_actions(trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
    """Fill in actions that are missing. A trajectory that has any keeps what it has."""
    for trajectory in trajectories:
        form = None
        if not any(turn.action or turn.format_error for turn in trajectory.turns):
            form = _format_of(trajectory.env)
        if form is None:
            yield trajectory
        else:
            turns = tuple(_read(turn, form) for turn in trajectory.turns)
            yield msgspec.structs.replace(trajectory, turns=turns)


def _read(turn: Turn, form: ActionFormat) -> Turn:
    action = form.parse(turn.completion).action
    return msgspec.structs.replace(turn, action=action or "", format_error=action is None)


@cache  # of a few environments; asking the registry takes longer than reading an action
def _format_of(env: str) -> ActionFormat | None:
    """Give an environment's action format; None if it is none of ours, or cannot be loaded."""
    if "://" in env:  # a server's: it would have to be asked
        return None
    try:
        return get_format(resolve(env).action_format)
    except ConfigError:
        return None

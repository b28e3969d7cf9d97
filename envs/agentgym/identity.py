"""Which of our tasks a recorded episode is of, whatever file it comes from.

A file names its world ("lmrlgym_maze", "maze", "maze-v1?loops=0.5") and its task by a number,
and published numbers do not always mean today's tasks: those of TextCraft followed the order of
files on a disk. There the goal, which the first observation tells, is the task.

Invariant: a TextCraft episode is never taken for another goal's, so that training goals and
evaluation goals cannot be mixed up by their numbers.

Not here: playing an episode again (`rehearsal`, `replay`), and reading files.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from ...engine.agenttraj import is_item_id
from ...engine.errors import ConfigError
from ..base import Task
from ..registry import resolve
from ..textcraft.tasks import goals, parse_observation
from .playback import TextCraftPlayback

_TEXTCRAFT: Final = "textcraft"


def family_of(name: str) -> str:
    """The world's name without publisher, version and options: "maze" of "lmrlgym_maze", of
    "maze-v1?loops=0.5", of "http://127.0.0.1:36001/maze?tasks=26"."""
    bare, _, options = name.partition("?")
    if "://" in bare:  # a world on a server, by its address
        said = dict(parse_qsl(options)).get("dialect", "")
        bare = said or bare.rstrip("/").rpartition("/")[2]
    bare = bare.removeprefix("lmrlgym_")
    return bare.rpartition("-v")[0] or bare


def same_world(name: str, env: str) -> bool:
    """Whether a file's name for a world means this environment.

    Args:
        name: an item id's part ("textcraft", "lmrlgym_maze"), or an id of the registry, which
            then means its very options.
        env: full id of the environment.
    """
    if name == env:
        return True
    if family_of(name) != family_of(env):
        return False
    if family_of(name) == name.removeprefix("lmrlgym_"):
        return True  # neither version nor options: as AgentGym names it
    try:
        return resolve(name).id == env
    except ConfigError:
        return False  # a version or an option that there is not


def task_index(env: str, task_id: str, first: str) -> int | None:
    """The number of the task in this environment; None if the record names none of it.

    Args:
        task_id: as the record has it: "babyai_17", or "remote_17" of a run on that server.
        first: the first observation.
    """
    family, _, number = task_id.rpartition("_")
    served = "://" in env
    if served and is_item_id(task_id) and task_id == Task(env, int(number)).id:
        return int(number)  # as a run on that server has it
    if family_of(env) == _TEXTCRAFT:
        if served:  # the server's numbers are in an order of its own
            return None
        try:
            _, goal = parse_observation(first)
        except ConfigError:
            return None
        return goals().index(goal) if goal in goals() else None
    if not is_item_id(task_id) or family_of(family) != family_of(env):
        return None
    return int(number)


def own_text(env: str, published: str) -> str:
    """An observation without what was added to it on the way into published data."""
    return TextCraftPlayback().text(published) if family_of(env) == _TEXTCRAFT else published

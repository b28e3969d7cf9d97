"""How each of AgentGym's servers spells its calls: one table, read by client and server alike.

Fifteen worlds, one idea (create, reset, step, observe, close) and four spellings of the
session's id, three of the reward, and a list of fields for each answer. A dialect says

* which field carries the id: `id` or `env_idx`, in bodies and in `?id=`;
* what each answer is made of: an object of named fields, or a bare value (`Shape`);
* where the reward is: in `reward`, in the running `score`, or in `reward` once the
  episode is `terminated`;
* what is peculiar to that server: no `/close`, one call at a time, few sessions.

Invariant: nothing here does anything; a world with another spelling is another row.

Not here: writing an answer (`answers`), reading one (`reading`), sessions (`sessions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

Bare = Literal["number", "text", "pair"]
"""A bare id, a bare observation, or the array [observation, null]."""

Shape = tuple[str, ...] | Bare
"""What an answer is: an object with these fields, or a bare value."""

_NONE: Final[Mapping[str, object]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The spelling of one server."""

    name: str
    """AgentGym's name of the world; also the path under which several worlds are served."""
    title: str
    """What `GET /` answers after "This is environment "."""
    world: str = ""
    """Our world of that kind, as the registry names it without a version; "" for none yet."""
    prefix: str = ""
    """Path before every call, where AgentGym's server has one."""
    id_field: Literal["id", "env_idx"] = "id"
    created: Shape = ("id",)
    create_body: Mapping[str, object] | None = None
    """What has to be sent; None for nothing."""
    task_field: str = "data_idx"
    """Where `/reset` carries the task's number."""
    reset_body: Mapping[str, object] = field(default_factory=lambda: _NONE)
    """What else `/reset` has to carry."""
    begun: Shape = ("observation",)
    stepped: Shape = ("observation", "reward", "done")
    observed: Shape = "text"
    facts: tuple[str, ...] = ()
    """Fields that the world tells about a task (`Environment.about`), asked for at each reset."""
    extras: Mapping[str, Shape | str] = field(default_factory=lambda: MappingProxyType({}))
    """Other calls, `GET` by path: an object of fields, or the one field whose bare value it is."""
    reward_in: Literal["reward", "score", "terminated"] = "reward"
    """`score` is the sum so far; `terminated` pays `reward` only once the episode is over."""
    full_score: float = 1.0
    """The score of a solved task on that server; our client takes it for 1."""
    success_from: float = 1.0
    """What an episode that is over has to have earned there to count as solved."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Of an episode there."""
    closes: bool = False
    """Whether AgentGym's own server has `/close`. Ours always has."""
    closed: Shape | Literal["flag"] = "flag"
    wraps: bool = False
    """Task numbers count on from 0 after the last."""
    whole_server: bool = False
    """AgentGym's server bears one call at a time, whatever the session."""
    capacity: int = 0
    """Sessions after which that server hands the same one out twice; 0 for no such number."""
    observe_first: bool = False
    """The answer of `/reset` is not the observation: ask `/observation` for it."""
    cleans: bool = False
    """Its client drops everything but letters, digits, commas and spaces from an action."""

    @property
    def error_status(self) -> int:
        """How an unusable session is answered: 200 with `error` inside, or not found.

        AgentGym's servers of the second kind answer 500 there.
        """
        return 200 if self.id_field == "id" else 404


_TOOL: Final = Dialect(
    name="tool",
    title="tool",
    id_field="env_idx",
    created="number",
    create_body=MappingProxyType({"id": 0}),
    task_field="id",
    begun="text",
)


def _tool(name: str, *, whole_server: bool = False) -> Dialect:
    return replace(_TOOL, name=name, title=name, whole_server=whole_server)


_ALL: Final = (
    Dialect(
        name="textcraft",
        title="TextCraft",
        world="textcraft",
        created=("id", "observation", "done", "reward"),
        create_body=_NONE,
        begun=("id", "observation", "done", "reward"),
        closes=True,
        wraps=True,
        cleans=True,
    ),
    Dialect(
        name="maze",
        title="LMRL-Gym",
        world="maze",
        prefix="/maze",
        task_field="game",
        reward_range=(-1.0, 1.0),
        extras=MappingProxyType({"available_actions": "available_actions"}),
    ),
    Dialect(
        name="wordle",
        title="LMRL-Gym",
        world="wordle",
        prefix="/wordle",
        task_field="seed",
        begun=("id", "observation"),
        extras=MappingProxyType({"filtered_vocab": "words"}),
        wraps=True,
    ),
    Dialect(
        name="babyai",
        title="BabyAI",
        world="babyai",
        begun=("observation", "reward", "score", "deleted", "done"),
        stepped=("observation", "reward", "score", "done"),
        observed=("observation", "reward", "score", "done", "deleted"),
        reward_in="score",
        success_from=1e-9,  # a solved task earns 1 less its time; nothing else earns anything
        reward_range=(0.0, 1e6),  # a late success is paid again and again there
        closes=True,
        cleans=True,
    ),
    Dialect(
        name="alfworld",
        title="AlfWorld",
        world="alfworld",
        task_field="game",
        reset_body=MappingProxyType({"world_type": "Text"}),
        begun=("id", "observation", "available_actions", "task_type"),
        stepped=("observation", "reward", "available_actions", "done"),
        facts=("task_type",),
        extras=MappingProxyType({"available_actions": "available_actions"}),
        whole_server=True,
    ),
    Dialect(
        name="sciworld",
        title="ScienceWorld",
        world="sciworld",
        begun=(
            *("task_name", "var_num", "task_description", "observation"),
            *("reward", "score", "deleted", "done"),
        ),
        stepped=("observation", "reward", "score", "done"),
        facts=("task_name", "var_num", "task_description"),
        extras=MappingProxyType({"task_description": ("task_description",)}),
        reward_in="score",
        full_score=100.0,
        success_from=100.0,
        reward_range=(-100.0, 100.0),
        closes=True,
    ),
    Dialect(
        name="webshop",
        title="webshop",
        id_field="env_idx",
        created="number",
        task_field="session_id",
        begun="pair",
        stepped=("state", "reward", "done", "info"),
        observe_first=True,
        capacity=8000,
    ),
    Dialect(
        name="sqlgym",
        title="sqlgym",
        id_field="env_idx",
        created="number",
        task_field="item_id",
        begun="pair",
        stepped=("state", "reward", "done", "info"),
        whole_server=True,
        capacity=8,
    ),
    _tool("weather"),
    _tool("movie"),
    _tool("academia"),
    _tool("sheet"),
    # One account behind it, which every reset wipes.
    _tool("todo", whole_server=True),
    Dialect(
        name="searchqa",
        title="SearchQA",
        id_field="env_idx",
        created="number",
        create_body=MappingProxyType({"id": 0}),
        task_field="id",
        begun="text",
        stepped=("observation", "reward", "done", "info"),
        closes=True,
    ),
    Dialect(
        name="webarena",
        title="WebArena",
        id_field="env_idx",
        created=("env_idx",),
        task_field="idx",
        reset_body=MappingProxyType({"seed": 0}),
        begun=("observation", "sites", "object"),
        stepped=("observation", "reward", "terminated", "truncated", "info"),
        reward_in="terminated",
        closes=True,
        closed=("closed",),
    ),
)

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType({row.name: row for row in _ALL})
"""Every dialect by its name."""


def plain(name: str) -> Dialect:
    """The dialect of a world that AgentGym does not have: the plainest of them, with `/close`, and
    with `success`, since no more is known about its rewards."""
    return Dialect(
        name=name,
        title=name,
        world=name,
        begun=("id", "observation", "done", "reward"),
        stepped=("observation", "reward", "done", "success"),
        extras=MappingProxyType({"available_actions": "available_actions"}),
        closes=True,
    )


def dialect_for(env: str) -> Dialect:
    """The dialect that serves an environment of ours, by its id (`maze-v1?…`)."""
    world = env.partition("?")[0].rpartition("-v")[0] or env
    return next((row for row in _ALL if world in (row.world, row.name)), None) or plain(world)

"""What a server says: a session's state in the shape that a dialect asks for.

Where AgentGym's client puts something before the world's own first observation (the
rules of the maze, the words of Wordle, the legal commands of ALFWorld), our worlds give
the whole text and its servers do not; so it is taken off here.

Invariant: an answer is made of the session's state alone; what a dialect does not name
is not told.

Not here: bytes on a connection (`listener`), errors (`server`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ..maze.prompts import DOUBLE_T_OPENING
from .dialects import Shape
from .sessions import Session, Sessions

ACTIONS_HEAD: Final = "\nAVAILABLE ACTIONS: "
"""Between ALFWorld's first observation and its commands, as AgentGym's client writes it."""

FIRST: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "maze": lambda text: text.removeprefix(DOUBLE_T_OPENING),
        "wordle": lambda _: "Let's start Wordle!",
        "alfworld": lambda text: text.partition(ACTIONS_HEAD)[0],
    }
)
"""By dialect: the first observation as that server words it."""


def _observation(session: Session) -> str:
    text = session.observation
    first = FIRST.get(session.served.dialect.name) if session.steps == 0 else None
    return first(text) if first is not None else text


def _after_description(session: Session) -> str:
    """SciWorld: its client joins description and observation with a line break."""
    if session.steps or session.served.dialect.name != "sciworld":
        return _observation(session)
    described = f"{session.facts.get('task_description', '')}\n"
    if session.observation.startswith(described):
        return session.observation.removeprefix(described)
    return session.observation.partition("\n")[2]


def _score(session: Session) -> float:
    score = session.score * session.served.score_scale
    near = round(score)
    return near if abs(score - near) < 1e-9 else score


_FIELDS: Final[Mapping[str, Callable[[Session], object]]] = MappingProxyType(
    {
        "id": lambda s: s.id,
        "env_idx": lambda s: s.id,
        "observation": _after_description,
        "state": _observation,
        "reward": lambda s: s.reward,
        "score": _score,
        "done": lambda s: s.done,
        "success": lambda s: s.success,
        "terminated": lambda s: s.terminated,
        "truncated": lambda s: s.truncated,
        "deleted": lambda _: False,
        "info": lambda _: None,  # AgentGym's tells the gold answer of a query
        "sites": lambda _: [],
        "object": lambda _: "",
        "task_type": lambda s: s.facts.get("task_type", s.served.dialect.name),
        "task_name": lambda s: s.facts.get("task_name", s.served.dialect.name),
        "var_num": lambda s: s.facts.get("var_num", s.index),
        "task_description": lambda s: s.facts.get(
            "task_description", s.observation.partition("\n")[0]
        ),
    }
)

ASKED: Final = frozenset({"available_actions", "words"})
"""Fields that the world has to be asked for."""


def _words(actions: Sequence[str]) -> list[str]:
    """Wordle's vocabulary: its actions are the words, spelled."""
    return ["".join(action.split()) for action in actions]


async def answer(sessions: Sessions, session: Session, shape: Shape) -> object:
    """Put the session into that shape, as a JSON value. For a caller that holds it."""
    if isinstance(shape, str):
        if shape == "number":
            return session.id
        text = _observation(session)
        return [text, None] if shape == "pair" else text
    return {name: await one(sessions, session, name) for name in shape}


async def one(sessions: Sessions, session: Session, name: str) -> object:
    """One field of an answer."""
    if name in ASKED:
        actions = await sessions.available_actions(session)
        return _words(actions) if name == "words" else list(actions)
    return _FIELDS[name](session)

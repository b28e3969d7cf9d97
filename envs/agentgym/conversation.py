"""The client's side of AgentGym's protocol, without a connection: what to ask, how to read it.

    talk = Talk(DIALECTS["textcraft"])
    flow = talk.step("inventory")       # yields a Call, wants its answer, returns a StepResult

Each operation is a generator, so that the asynchronous client and the synchronous one
(`client`, `facade`) share every decision.

Invariants:

* an answer is an observation with a finite reward, or an error of ours: what a server
  hides in a 200 (`{"error": …}`, "TimeoutError" for an observation) is found;
* a call says whether it may be sent again; a step may not, because it may have acted;
* where a server pays a running score, the rewards of the steps sum up to its share of the
  full one.

Not here: sending, retries, and which ids are used (`client`).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ...engine.errors import ConfigError, EnvironmentFault, EnvironmentLost
from ..answers import require_result, require_text
from ..base import StepResult
from ..maze.prompts import DOUBLE_T_OPENING
from ..wordle.prompts import opening
from ..wordle.vocabulary import vocabulary
from .answers import ACTIONS_HEAD
from .dialects import Dialect

_JUNK: Final = re.compile(r"[^A-Za-z0-9, ]+")
_GONE: Final = re.compile(r"The id -?[0-9]+ is not valid|has been deleted")
_encode: Final = msgspec.json.Encoder().encode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Call(NamedTuple):
    """One request: `GET` where there is no body to send."""

    path: str
    """With its query, behind the server's address."""
    body: bytes | None
    repeatable: bool
    """Sending it twice does no harm."""
    post: bool = True


Flow = Generator[Call, Any, Any]


class Talk:
    """One session on a server."""

    def __init__(self, dialect: Dialect, id: int | None = None) -> None:
        """`id` is that of a session which exists already and is used again."""
        self.dialect: Final = dialect
        self.id = id
        self.done = True
        self.actions: Sequence[str] = ()
        """Legal actions, where the last answer listed them."""
        self.facts: Mapping[str, str | int] = {}
        """What the server told about the task, as far as its dialect names it."""
        self._score = 0.0
        self._words: tuple[str, ...] = ()

    def open(self) -> Generator[Call, Any, None]:
        """Make the session."""
        dialect = self.dialect
        body = None if dialect.create_body is None else _encode(dict(dialect.create_body))
        # Twice made is one session too many, which nobody acts in.
        answer = yield Call("/create", body, True)
        id = answer.get(dialect.id_field) if isinstance(answer, dict) else answer
        if type(id) is not int:
            raise EnvironmentFault(f"/create answered no session: {_short(answer)}")
        self.id = id

    def reset(self, index: int) -> Generator[Call, Any, str]:
        """Start a task and give its first observation, as AgentGym's client words it."""
        dialect = self.dialect
        self.done, self._score, self.actions, self.facts = True, 0.0, (), {}
        body = {dialect.id_field: self.id, dialect.task_field: index, **dialect.reset_body}
        answer = yield Call("/reset", _encode(body), True)
        if dialect.observe_first:
            text = yield self._get("/observation")
        else:
            text = _first(answer)
        if isinstance(answer, dict):
            self.actions = _texts(answer.get("available_actions", ()))
            told = ((name, answer.get(name)) for name in dialect.facts)
            self.facts = {name: one for name, one in told if isinstance(one, str | int)}
        if dialect.name == "webarena" and text == "TimeoutError":
            raise EnvironmentFault("/reset answered TimeoutError: the site was not reached")
        if dialect.name == "wordle":  # each task may have its own
            words = yield self._get("/filtered_vocab")
            self._words = tuple(_texts(words))
        require_text("/reset", text)
        self.done = False
        return self._complete(text)

    def _complete(self, text: str) -> str:
        """Put before the first observation what AgentGym's client puts there."""
        name = self.dialect.name
        if name == "maze":
            return DOUBLE_T_OPENING + text
        if name == "wordle":
            return opening(vocabulary(self._words), True)
        if name == "alfworld":
            return f"{text}{ACTIONS_HEAD}{','.join(self.actions)}"
        return text

    def step(self, action: str) -> Generator[Call, Any, StepResult]:
        """Act."""
        if self.done:
            raise EnvironmentFault("no episode is on in this session: reset it first")
        dialect = self.dialect
        body = _encode({dialect.id_field: self.id, "action": as_sent(dialect, action)})
        answer = yield Call("/step", body, False)
        if not isinstance(answer, dict):
            raise EnvironmentFault(f"/step answered no object: {_short(answer)}")
        result = self._result(answer)
        self.done = result.done
        self.actions = _texts(answer.get("available_actions", ()))
        return result

    def _result(self, answer: Mapping[str, Any]) -> StepResult:
        dialect = self.dialect
        text = answer.get("observation", answer.get("state"))
        ended = dialect.reward_in == "terminated"
        terminated = answer.get("terminated" if ended else "done")
        truncated = answer.get("truncated", False) if ended else False
        earned = answer.get("score" if dialect.reward_in == "score" else "reward")
        if not isinstance(earned, int | float) or isinstance(earned, bool):
            raise EnvironmentFault(f"/step answered the reward {_short(earned)}")
        if ended and not terminated:
            earned = 0
        reward = earned - self._score if dialect.reward_in == "score" else earned
        self._score += reward
        reward /= dialect.full_score
        told = answer.get("success")
        solved = told if isinstance(told, bool) else self._score >= dialect.success_from
        solved = solved and terminated is True
        truncated = truncated is True and not terminated
        return require_result(StepResult(text, float(reward), terminated, truncated, solved))  # type: ignore[arg-type]

    def available(self) -> Generator[Call, Any, Sequence[str]]:
        """Legal actions now, if the server tells them."""
        if self.done or self.actions or "available_actions" not in self.dialect.extras:
            return () if self.done else self.actions
        answer = yield self._get("/available_actions")
        return _texts(answer)

    def close(self) -> Generator[Call, Any, None]:
        """End the session."""
        self.done = True
        yield Call("/close", _encode({self.dialect.id_field: self.id}), True)

    def _get(self, path: str) -> Call:
        return Call(f"{path}?{self.dialect.id_field}={self.id}", None, True, False)


def as_sent(dialect: Dialect, action: str) -> str:
    """An action as it goes to that server."""
    if dialect.cleans:
        line = action.strip().partition("\n")[0]
        action = " ".join(_JUNK.sub("", line).split())
    return sendable(action)


def sendable(action: str) -> str:
    """Half a character cannot be sent: "?" stands for it, which is no part of any action either."""
    return action if action.isascii() else action.encode("utf-8", "replace").decode()


def read(dialect: Dialect, call: Call, status: int, body: bytes) -> Any:
    """Read an answer.

    Raises:
        ConfigError: the server says that there is no such task, or asks for a token.
        EnvironmentLost: it says that there is no such session.
        EnvironmentFault: it says that something else went wrong, or what it says is not JSON.
    """
    where = f"{dialect.name}: {call.path.partition('?')[0]}"
    try:
        answer = msgspec.json.decode(body)
    except _UNREADABLE:
        shown = body[:80].decode(errors="replace")
        raise EnvironmentFault(f"{where} answered {status} and no JSON: {shown!r}") from None
    if status == 200 and not (isinstance(answer, dict) and "error" in answer):
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    kind = answer.get("kind", "") if isinstance(answer, dict) else ""
    text = f"{where} answered {status}: {_short(answer if error is None else error)}"
    if status in (401, 403) or kind == "task":
        raise ConfigError(text)
    if kind in ("unknown", "deleted") or (isinstance(error, str) and _GONE.search(error)):
        raise EnvironmentLost(text)
    raise EnvironmentFault(text)


def _first(answer: Any) -> Any:
    """The observation in the answer of a reset: a text, an array that begins with it, or an
    object; SciWorld's has the task apart from what is seen."""
    if isinstance(answer, list) and answer:
        return answer[0]
    if isinstance(answer, dict):
        text = answer.get("observation")
        task = answer.get("task_description")
        return f"{task}\n{text}" if task and isinstance(text, str) else text
    return answer


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise EnvironmentFault(f"the server listed {_short(value)}, not texts")
    return list(value)


def _short(value: object) -> str:
    return repr(value)[:200]

"""A world on somebody's AgentGym server as an `EnvSpec`: what a rollout and the laws take.

    spec = remote_spec("http://127.0.0.1:36001", "textcraft", tasks=544)

Prompt, turn limit and action format are those of our world of the same kind, where there
is one; tasks are only numbers, as many as one is told.

Sessions made by `spec.make` are plain synchronous environments that block (they are for
the laws, and for threads). The engine plays thousands of them through `AgentGymHost`.

Invariant: both ways make the same calls and read the same answers (`conversation`).

Not here: what the server's task numbers mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import httpx

from ...engine.errors import (
    ConfigError,
    DeadlineExceeded,
    EnvironmentFault,
    EnvironmentLost,
    UnknownEnvironment,
)
from ...engine.trajectory import ChatMessage
from ..base import Environment, EnvSpec, StepResult, Task
from ..registry import resolve
from .client import ANSWER_SECONDS, AgentGymHost, address, dialect_named
from .conversation import Call, Talk, read
from .dialects import DIALECTS, Dialect, plain

T = TypeVar("T")

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class RemoteEnvironment(Environment):
    """One session on a server, synchronous: each call blocks until it is answered."""

    def __init__(
        self,
        url: str,
        dialect: str | Dialect,
        *,
        token: str = "",
        seconds: float = ANSWER_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Nothing is sent before the first reset. Arguments as `AgentGymHost`."""
        self._url, headers = address(url)
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._talk = Talk(dialect_named(dialect))
        self._client = httpx.Client(
            headers=headers, timeout=seconds, trust_env=False, transport=transport
        )
        self._latest: str | None = None
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._talk.id is None:
            self._drive(self._talk.open())
        self._latest = None
        self._latest = self._drive(self._talk.reset(task.index))
        return self._latest

    def step(self, action: str) -> StepResult:
        result = self._drive(self._talk.step(action))
        self._latest = result.observation
        return result

    def observation(self) -> str:
        if self._closed or self._latest is None:
            raise EnvironmentFault("this session is not on a task")
        return self._latest

    def available_actions(self) -> Sequence[str]:
        return tuple(self._drive(self._talk.available()))

    def about(self) -> Mapping[str, str | int]:
        self.observation()  # refuses before the first reset, and after the end
        return self._talk.facts

    def close(self) -> None:
        if self._closed:
            return
        try:
            if self._talk.id is not None and self._talk.dialect.closes:
                self._drive(self._talk.close())
        finally:
            self._closed = True
            self._client.close()

    def _drive(self, flow: Generator[Call, Any, T]) -> T:
        if self._closed:
            raise EnvironmentFault("this session is closed: make another")
        try:
            call = next(flow)
            while True:
                call = flow.send(self._ask(call))
        except StopIteration as end:
            value: T = end.value
            return value

    def _ask(self, call: Call) -> Any:
        method = "POST" if call.post else "GET"
        try:
            response = self._client.request(method, self._url + call.path, content=call.body)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"{self._url}{call.path} was not answered: {error}") from error
        except httpx.TransportError as error:
            raise EnvironmentLost(f"{self._url}{call.path}: {error}") from error
        return read(self._talk.dialect, call, response.status_code, response.content)


def remote_spec(
    url: str,
    dialect: str | Dialect,
    *,
    tasks: int | Sequence[int],
    dev: Sequence[int] = (),
    test: Sequence[int] = (),
    id: str = "",
    prompt: tuple[ChatMessage, ...] | None = None,
    turn_limit: int = 0,
    deterministic: bool = False,
    make: Callable[[], Environment] | None = None,
) -> EnvSpec:
    """The spec of a world on a server.

    Args:
        url: the server's, with the path of the world where it has one.
        dialect: how it spells its calls.
        tasks: how many there are, or their numbers; they are all in the split "test", unless
            some of them are named for it, or for "dev": the others are then in "train".
        dev: numbers to choose a policy by.
        test: numbers to measure it on.
        id: of the spec; by default the world's name with the address.
        prompt: what stands before the first observation; None takes our own world's.
        turn_limit: 0 takes our own world's.
        deterministic: the same actions are answered alike, so that an episode can be rebuilt.
        make: a session; None makes synchronous ones on that server.

    Raises:
        ConfigError: there is no such dialect, or no task, or a task is in two splits.
    """
    spelling = dialect_named(dialect)
    numbers = range(tasks) if isinstance(tasks, int) else tuple(tasks)
    if not numbers:
        raise ConfigError("a world on a server needs at least one task: say how many it has")
    address(url)
    like = _like(spelling)
    if prompt is None:
        prompt = like.prompt if like else ()
    least, most = spelling.reward_range
    return EnvSpec(
        id=id or f"{spelling.name}-remote-v1?url={url}",
        make=make or (lambda: RemoteEnvironment(url, spelling)),
        splits=_splits(numbers, dev, test),
        prompt=prompt,
        action_format=like.action_format if like else "react",
        turn_limit=turn_limit or (like.turn_limit if like else 20),
        reward_range=(least / spelling.full_score, most / spelling.full_score),
        cost="thread",
        deterministic=deterministic,
        expert_success=0.0,  # there is none to ask
    )


def spec_at(url: str) -> EnvSpec:
    """The spec of a world by its address alone, as a command line has it.

        http://127.0.0.1:36001/maze?tasks=26
        http://127.0.0.1:36001?dialect=textcraft&tasks=544&deterministic=true
        http://127.0.0.1:36001/webshop?tasks=500&dev=300-399&test=400-499

    `dialect` is the last part of the path where it is not given; a world that AgentGym does not
    have is taken for one of ours, which tells it in the plain spelling. `dev` and `test` name the
    first and the last task of a split; all others are then to be trained on. A token is taken from
    $ROLLWAVE_TOKEN, because the address is written into the run.

    Raises:
        ConfigError: an option is unknown or missing, or the address carries a password.
    """
    base, _, query = url.partition("?")
    base = base.rstrip("/")
    given = dict(parse_qsl(query, keep_blank_values=True))
    known = "tasks, dev, test, dialect, deterministic and turn_limit"
    unknown = sorted(given.keys() - set(known.replace(" and ", ", ").split(", ")))
    if unknown:
        raise ConfigError(f"{url}: no option {unknown[0]!r}; there are {known}")
    if "@" in base:
        raise ConfigError("the address would be written into the run: set $ROLLWAVE_TOKEN instead")
    last = base.rpartition("/")[2]
    dialect = dialect_named(given.get("dialect") or DIALECTS.get(last) or _ours(base))
    tasks, turns = given.get("tasks", ""), given.get("turn_limit", "0")
    if not (tasks.isdecimal() and turns.isdecimal() and len(tasks + turns) < 18):
        raise ConfigError(f"{url}: say how many tasks it has, as ?tasks=544")
    replayable = given.get("deterministic", "false") == "true"
    token = os.environ.get("ROLLWAVE_TOKEN", "")
    spec = remote_spec(
        base,
        dialect,
        tasks=int(tasks),
        dev=_span(url, given.get("dev", ""), int(tasks)),
        test=_span(url, given.get("test", ""), int(tasks)),
        id=url,
        turn_limit=int(turns),
        deterministic=replayable,
        make=lambda: RemoteEnvironment(base, dialect, token=token),
    )
    return replace(spec, host=lambda: AgentGymHost(base, dialect, token=token, rebuild=replayable))


def _span(url: str, text: str, tasks: int) -> range:
    """The numbers of "300-399", both ends included; none of "".

    Raises:
        ConfigError: it is no such span, or goes beyond the tasks.
    """
    first, _, last = text.partition("-")
    if not text:
        return range(0)
    if first.isdecimal() and last.isdecimal() and len(text) < 18 and int(first) <= int(last):
        if int(last) >= tasks:  # a slip of the finger is not unrolled into memory
            raise ConfigError(f"{url}: there is no task {last}: {tasks} are numbered from 0")
        return range(int(first), int(last) + 1)
    raise ConfigError(f"{url}: {text!r} is no span of tasks, such as dev=300-399")


def _splits(
    numbers: Sequence[int], dev: Sequence[int], test: Sequence[int]
) -> dict[str, Sequence[int]]:
    """The splits of a server's tasks.

    Raises:
        ConfigError: a split has a task that is in the other one, or that is not there.
    """
    if not (dev or test):
        return {"test": numbers}
    if both := set(dev) & set(test):
        raise ConfigError(f"task {min(both)} is in dev and in test: a task is in one split alone")
    if strange := {*dev, *test} - set(numbers):
        raise ConfigError(f"there is no task {min(strange)} for dev or test among {len(numbers)}")
    kept = {*dev, *test}
    found = {"train": [n for n in numbers if n not in kept], "dev": dev, "test": test}
    return {name: members for name, members in found.items() if members}


def _ours(base: str) -> Dialect | str:
    """The dialect of a world of ours by its address; "" where it has no path."""
    path = httpx.URL(base).path.strip("/")
    return plain(path) if _NAME.fullmatch(path) else ""


def _like(dialect: Dialect) -> EnvSpec | None:
    """Our own world of the same kind, where there is one here."""
    try:
        return resolve(dialect.world) if dialect.world else None
    except UnknownEnvironment:
        return None

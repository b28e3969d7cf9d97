"""Wrappers: one idea each, around any environment.

`TurnLimit` ends an episode after so many steps, `Recorder` keeps what was said,
`Flaky` injects faults at chosen or seeded steps. Put one around every session of a
spec with `wrap`:

    spec = wrap(resolve("textcraft"), lambda env: TurnLimit(env, 10))

Invariant: what a wrapper does not change, it passes through: answers, snapshots,
expert and errors of the world inside.

Not here: deadlines and turn limits of the engine (the session's own), which need
no wrapper.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from ..engine.codec import Message, decoder, encode
from ..engine.errors import ConfigError, EnvironmentFault, MessageError
from ..engine.seeds import generator
from .base import Environment, EnvSpec, StepResult, Task
from .importable import Make, importable


def wrap(spec: EnvSpec, wrapper: Callable[[Environment], Environment]) -> EnvSpec:
    """The same spec, with a wrapper around every session it makes."""
    return replace(spec, make=_Wrapped(wrapper, spec.make, importable(spec)), host=None)


class _Wrapped:
    """Makes wrapped sessions, in a worker process too if `wrapper` can be imported."""

    def __init__(
        self, wrapper: Callable[[Environment], Environment], make: Make, elsewhere: Make
    ) -> None:
        self._wrapper = wrapper
        self._make = make
        self._elsewhere = elsewhere

    def __call__(self) -> Environment:
        return self._wrapper(self._make())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Wrapped, (self._wrapper, self._elsewhere, self._elsewhere)


class Wrapper(Environment):
    """Passes everything to `inner`. Override what should differ."""

    def __init__(self, inner: Environment) -> None:
        self.inner: Final = inner

    def reset(self, task: Task, seed: int) -> str:
        return self.inner.reset(task, seed)

    def step(self, action: str) -> StepResult:
        return self.inner.step(action)

    def observation(self) -> str:
        return self.inner.observation()

    def available_actions(self) -> Sequence[str]:
        return self.inner.available_actions()

    def expert(self) -> str | None:
        return self.inner.expert()

    def about(self) -> Mapping[str, str | int]:
        return self.inner.about()

    def secrets(self) -> Sequence[str]:
        return self.inner.secrets()

    def snapshot(self) -> bytes:
        return self.inner.snapshot()

    def restore(self, state: bytes) -> None:
        self.inner.restore(state)

    def close(self) -> None:
        self.inner.close()


class LimitState(Message, frozen=True):
    """A snapshot of `TurnLimit`: its count beside the snapshot of the world inside."""

    turns: int
    cut: bool
    inner: bytes


class TurnLimit(Wrapper):
    """Truncates the episode with its `limit`-th step, unless that step ends it."""

    def __init__(self, inner: Environment, limit: int) -> None:
        """Raises ConfigError if the limit is below 1."""
        super().__init__(inner)
        if limit < 1:
            raise ConfigError(f"a turn limit is at least 1, not {limit}")
        self._limit = limit
        self._turns = 0
        self._cut = False

    def reset(self, task: Task, seed: int) -> str:
        self._turns = 0
        self._cut = False
        return self.inner.reset(task, seed)

    def step(self, action: str) -> StepResult:
        if self._cut:
            raise EnvironmentFault("the episode was cut by its turn limit; reset it first")
        result = self.inner.step(action)
        self._turns += 1
        if self._turns < self._limit or result.done:
            return result
        self._cut = True
        return StepResult(result.observation, result.reward, truncated=True)

    def available_actions(self) -> Sequence[str]:
        return () if self._cut else self.inner.available_actions()

    def expert(self) -> str | None:
        return None if self._cut else self.inner.expert()

    def snapshot(self) -> bytes:
        return encode(LimitState(self._turns, self._cut, self.inner.snapshot()))

    def restore(self, state: bytes) -> None:
        try:
            limit = decoder(LimitState).decode(state)
        except MessageError as error:
            raise EnvironmentFault(f"not a snapshot of a turn limit: {error}") from None
        self.inner.restore(limit.inner)
        self._turns, self._cut = limit.turns, limit.cut


@dataclass
class Recording:
    """One episode as the environment saw it."""

    task: Task
    seed: int
    first: str
    """The first observation."""
    steps: list[tuple[str, StepResult]] = field(default_factory=list)
    """Each action with its answer."""

    @property
    def actions(self) -> list[str]:
        """The actions alone: what a replay needs."""
        return [action for action, _ in self.steps]

    @property
    def reward(self) -> float:
        """Sum of the rewards so far."""
        return sum(result.reward for _, result in self.steps)


class Recorder(Wrapper):
    """Keeps every episode in memory, in `recordings`. For tests and debugging."""

    def __init__(self, inner: Environment) -> None:
        super().__init__(inner)
        self.recordings: list[Recording] = []

    def reset(self, task: Task, seed: int) -> str:
        first = self.inner.reset(task, seed)
        self.recordings.append(Recording(task, seed, first))
        return first

    def step(self, action: str) -> StepResult:
        result = self.inner.step(action)
        if self.recordings:  # none if the session was restored, never reset
            self.recordings[-1].steps.append((action, result))
        return result


class Trouble(StrEnum):
    """What `Flaky` does instead of answering."""

    RAISE = "raise"
    """Raises a RuntimeError, as a world with a defect does."""
    HANG = "hang"
    """Blocks the calling thread until `close`, or for `hang_seconds`, and then raises."""
    GARBAGE = "garbage"
    """Answers something that is not a step result, or not a sound one."""


_GARBAGE: Final[tuple[Any, ...]] = (
    None,
    "an observation without the rest",
    StepResult(17),  # type: ignore[arg-type]
    StepResult("reward is not a number", float("nan")),
    StepResult("reward is a word", "much"),  # type: ignore[arg-type]
    {"observation": "a dict", "reward": 1.0},
)


class Flaky(Wrapper):
    """Injects faults: at given steps of an episode, or at a seeded share of all steps.

    Step 0 is the reset, step k the k-th action. The share is drawn from the seed of
    the wrapper, the task and the seed of the episode, so that it does not depend on
    what ran before.
    """

    def __init__(
        self,
        inner: Environment,
        at: Mapping[int, Trouble] | None = None,
        *,
        rate: float = 0.0,
        kinds: Sequence[Trouble] = tuple(Trouble),
        seed: int = 0,
        hang_seconds: float = 60.0,
    ) -> None:
        """Raises ConfigError if `rate` is no share or there is no kind to draw from."""
        super().__init__(inner)
        if not 0 <= rate <= 1 or not kinds:
            raise ConfigError(f"a fault rate is a share of at least one kind, not {rate} {kinds}")
        self._at = dict(at or {})
        self._rate = rate
        self._kinds = tuple(kinds)
        self._seed = seed
        self._hang_seconds = hang_seconds
        self._released = threading.Event()
        self._chance = random.Random(seed)  # noqa: S311 (simulation, not cryptography)
        self._step = 0
        self.injected: list[tuple[int, Trouble]] = []
        """Faults so far, each with its step."""

    def reset(self, task: Task, seed: int) -> str:
        self._chance = generator(self._seed, "flaky", task.id, seed)
        self._step = 0
        trouble = self._trouble()
        return self.inner.reset(task, seed) if trouble is None else self._cause(trouble)

    def step(self, action: str) -> StepResult:
        self._step += 1
        trouble = self._trouble()
        return self.inner.step(action) if trouble is None else self._cause(trouble)

    def close(self) -> None:
        self._released.set()
        self.inner.close()

    def _trouble(self) -> Trouble | None:
        drawn = self._chance.random() < self._rate
        kind = self._chance.choice(self._kinds)
        return self._at.get(self._step, kind if drawn else None)

    def _cause(self, trouble: Trouble) -> Any:
        self.injected.append((self._step, trouble))
        if trouble is Trouble.GARBAGE:
            return self._chance.choice(_GARBAGE)
        if trouble is Trouble.HANG:
            self._released.wait(self._hang_seconds)
        raise RuntimeError(f"injected fault: {trouble} at step {self._step}")

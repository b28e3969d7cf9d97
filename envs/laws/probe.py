"""A session under inspection: every answer of an environment is checked as it comes.

A `Probe` plays one environment, notes what it did, and raises `LawBroken` as soon
as an answer is not what the contract says: not a step result, a reward that is no
finite number, success without termination, an exception where words were due. The
laws are written on top of it.

Invariant: whatever an environment raises or answers, a probe raises `LawBroken`
or nothing.

Not here: which actions are tried, and what must hold between sessions (`single`, `machine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from ...engine.codec import encode
from ...engine.errors import ConfigError, EnvironmentFault, LawBroken, MessageError, classify
from ..base import Environment, EnvSpec, StepResult, Task

T = TypeVar("T")

_SLACK: Final = 1e-6
"""Rounding allowed in sums of rewards."""


class Answer(NamedTuple):
    """What a session says after a reset or a step: all that an agent can see of it."""

    result: StepResult
    available: tuple[str, ...]


@dataclass(frozen=True)
class Move:
    """One thing to try: a legal action by number, the expert's, or any text.

    `text` has a `{}` where the legal action is to stand; a text without is said as it is.
    """

    text: str = "{}"
    number: int = 0
    expert: bool = False

    def spell(self, env: Environment) -> str:
        """The action, given what is legal now."""
        if "{}" not in self.text:
            return self.text
        action = env.expert() if self.expert else None
        if action is None:
            legal = env.available_actions()
            action = legal[self.number % len(legal)] if legal else ""
        return self.text.replace("{}", action)


@dataclass(frozen=True)
class Script:
    """One episode to try."""

    task: Task
    seed: int = 0
    moves: tuple[Move, ...] = ()


@dataclass
class Probe:
    """One session of an environment."""

    spec: EnvSpec
    again: str = "the second time"
    """When, or where, it is that this session repeats what another was answered."""
    env: Environment = field(init=False)
    task: Task | None = field(default=None, init=False)
    seed: int = field(default=0, init=False)
    actions: list[str] = field(default_factory=list, init=False)
    """Said since the reset."""
    answers: list[Answer] = field(default_factory=list, init=False)
    """The first observation, as a result without reward, and the answer to each action."""

    def __post_init__(self) -> None:
        self.env = self.call("making a session", self.spec.make)

    @property
    def done(self) -> bool:
        """Whether the environment has ended the episode."""
        return bool(self.answers) and self.answers[-1].result.done

    @property
    def reward(self) -> float:
        """Sum of the rewards so far."""
        return math.fsum(answer.result.reward for answer in self.answers)

    def reset(self, task: Task, seed: int) -> Answer:
        """Start an episode."""
        self.task, self.seed = task, seed
        self.actions.clear()
        self.answers.clear()
        first = self.call("reset", self.env.reset, task, seed)
        self._check_text("reset", first)
        return self._note(StepResult(first))

    def step(self, action: str) -> Answer:
        """Say one action."""
        self.actions.append(action)
        result = self.call("step", self.env.step, action)
        self._check(result)
        answer = self._note(result)
        low, high = self.spec.reward_range
        if not low - _SLACK <= self.reward <= high + _SLACK:
            raise self.unsound(
                f"the rewards sum to {self.reward:g}, outside reward_range {low:g} to {high:g}"
            )
        return answer

    def try_move(self, move: Move) -> Answer | None:
        """Play a move; None if the episode is over."""
        if self.done:
            return None
        return self.step(self.call("available_actions or expert", move.spell, self.env))

    def play(self, script: Script) -> Probe:
        """Reset, then play the moves until they or the episode end."""
        self.reset(script.task, script.seed)
        for move in script.moves:
            if self.try_move(move) is None:
                break
        return self

    def repeat(self, other: Probe) -> None:
        """Play the episode of another probe, and expect the same answers."""
        assert other.task is not None
        self.reset(other.task, other.seed)
        self.agree(other.answers[0])
        self.resume(other.actions, other.answers)

    def resume(self, actions: Sequence[str], answers: Sequence[Answer]) -> None:
        """Say the rest of these actions, and expect these answers to them."""
        for action in actions[len(self.actions) :]:
            self.step(action)
            self.agree(answers[len(self.actions)])

    def agree(self, known: Answer) -> None:
        """Raise `LawBroken` if the latest answer is not this one."""
        if self.answers[-1] != known:
            was, now = _difference(known, self.answers[-1])
            step = len(self.actions)
            after = f"action {step} ({_short(self.actions[-1])})" if step else "reset"
            raise self.broken(f"the answer to {after} was {was}, and is {now} {self.again}")

    def refuses(self, name: str, call: Callable[..., object], *args: object) -> None:
        """Expect an EnvironmentFault."""
        try:
            given = call(*args)
        except EnvironmentFault:
            return
        except Exception as error:
            raise self.broken(
                f"{name} raised {classify(error)[1]}, not an EnvironmentFault"
            ) from error
        raise self.broken(f"{name} answered {_short(given)}; it must raise EnvironmentFault")

    def unchanged(self, name: str) -> None:
        """Expect the latest observation from `observation()`."""
        text = self.call("observation", self.env.observation)
        last = self.answers[-1].result.observation
        if text != last:
            raise self.broken(
                f"observation() {name} is {_short(text)}, not the last {_short(last)}"
            )

    def snapshot(self) -> bytes | None:
        """A snapshot; None where the environment has none."""
        try:
            state: Any = self.env.snapshot()
        except EnvironmentFault:
            return None
        except Exception as error:
            raise self.unsound(f"snapshot raised {classify(error)[1]}") from error
        if not isinstance(state, bytes):
            raise self.unsound(f"snapshot answered {_short(state)}, not bytes")
        return state

    def restore(self, state: bytes, past: Probe, steps: int) -> None:
        """Restore a snapshot that `past` took after so many steps."""
        self.task, self.seed = past.task, past.seed
        self.actions, self.answers = past.actions[:steps], past.answers[: steps + 1]
        self.call("restore", self.env.restore, state)
        self.unchanged("after restore")

    def close(self) -> None:
        """Close the session."""
        self.call("close", self.env.close)

    def unsound(self, text: str) -> LawBroken:
        """The error to raise if one answer is at fault, whatever the law."""
        return self.broken(text, unsound=True)

    def broken(self, text: str, *, unsound: bool = False) -> LawBroken:
        """The error to raise, with the way to get there."""
        where = f"task {self.task.index} ({self.task.split}), seed {self.seed}" if self.task else ""
        lines = [text, f"  environment: {self.spec.id}"]
        if where:
            lines += [f"  episode: {where}", f"  actions: {[_cut(a) for a in self.actions]}"]
        return LawBroken("\n".join(lines), unsound=unsound)

    def _note(self, result: StepResult) -> Answer:
        legal = self.call("available_actions", self.env.available_actions)
        answer = Answer(result, tuple(legal))
        self.answers.append(answer)
        return answer

    def _check(self, result: Any) -> None:
        if not isinstance(result, StepResult):
            raise self.unsound(f"step answered {_short(result)}, not a StepResult")
        self._check_text("step", result.observation)
        reward: Any = result.reward
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise self.unsound(f"the reward is {_short(reward)}, not a number")
        if not math.isfinite(reward):
            raise self.unsound(f"the reward is {reward}")
        for name in ("terminated", "truncated", "success"):
            if not isinstance(getattr(result, name), bool):
                raise self.unsound(f"{name} is {_short(getattr(result, name))}, not a bool")
        if result.success and not result.terminated:
            raise self.unsound("success without terminated")
        if result.terminated and result.truncated:
            raise self.unsound("both terminated and truncated: an episode ends in one way")

    def _check_text(self, name: str, text: Any) -> None:
        if not isinstance(text, str):
            raise self.unsound(f"{name} answered {_short(text)}, not text")
        said = "".join(self.actions)
        if said.isascii() or said.encode("utf-8", "replace").decode("utf-8") == said:
            try:
                encode(StepResult(text))
            except MessageError as error:
                raise self.unsound(f"the observation cannot be sent: {error}") from None

    def call(self, name: str, function: Callable[..., T], *args: object) -> T:
        """Call the environment; whatever it raises is a finding."""
        try:
            return function(*args)
        except LawBroken:
            raise
        except Exception as error:
            raise self.unsound(f"{name} raised {classify(error)[1]}") from error


def refuses_index(spec: EnvSpec, index: int) -> None:
    """Expect a ConfigError from a reset to an index that is in no split."""
    probe = Probe(spec)
    try:
        probe.env.reset(Task(spec.id, index), 0)
    except ConfigError:
        return
    except Exception as error:
        raise probe.broken(
            f"reset to task {index} raised {classify(error)[1]}, not a ConfigError"
        ) from error
    raise probe.broken(f"reset accepts task {index}, which is in no split")


def _difference(one: Answer, two: Answer) -> tuple[str, str]:
    """The first field in which two answers differ, with both values."""
    for name in StepResult.__struct_fields__:
        mine, other = getattr(one.result, name), getattr(two.result, name)
        if mine != other:
            return f"{name} {_short(mine)}", _short(other)
    return f"available actions {_short(one.available)}", _short(two.available)


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _short(value: object) -> str:
    try:
        return _cut(repr(value), 120)
    except Exception:  # noqa: BLE001 (a repr of a foreign object)
        return f"a {type(value).__name__}"

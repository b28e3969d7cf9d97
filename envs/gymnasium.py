"""Wraps Gymnasium environments whose observations are text, or are made into text.

    from rollwave.envs.gymnasium import gymnasium_family
    import rollwave.envs.registry as registry

    registry.register(gymnasium_family("taxi-v1", "Taxi-v3", describe=my_words, words=MOVES))

A task's number is the seed of Gymnasium's `reset`; splits are ranges of seeds. An action
is text itself where the action space is `Text`, and otherwise the name of an action, from
`words` or else the number that the space knows it by. Text that is no action is answered
in words and does not step the environment.

Invariant: an environment is stepped only with members of its action space, and never after
its end, so that Gymnasium's own checkers are never offended.

Sessions have no snapshots: their actions are replayed instead. Rewards are passed on as
they are: say their range. What is random in the environment has to come from the generator
that Gymnasium seeds.

Not here: environments that act on several agents or in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..engine.errors import ConfigError, EnvironmentFault, MissingDependency
from ..engine.trajectory import ChatMessage
from .base import Cost, EnvFamily, Environment, EnvSpec, StepResult, Task

Make = Callable[[], Any]
"""Makes a Gymnasium environment."""
Expert = Callable[[Any], str | None]
"""The next action, from the unwrapped environment."""

_SHOWN: Final = 64
"""Most actions that a space of numbers lists."""


class GymnasiumSession(Environment):
    """A session of a Gymnasium environment."""

    def __init__(
        self,
        make: Make,
        tasks: range,
        describe: Callable[[Any], str],
        words: Sequence[str] = (),
        expert: Expert | None = None,
        solved: Callable[[float, Mapping[str, Any]], bool] | None = None,
    ) -> None:
        """See `gymnasium_family`. `make` is called with the first reset."""
        self._make = make
        self._tasks = tasks
        self._describe = describe
        self._words = tuple(words)
        self._expert = expert
        self._solved = solved or _paid
        self._env: Any = None
        self._said = ""
        self._over = True
        self._started = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this session is closed; make a new one")
        if task.index not in self._tasks:
            first, last = self._tasks[0], self._tasks[-1]
            raise ConfigError(f"{task.env} has tasks {first} to {last}, not {task.index}")
        if self._env is None:
            self._env = self._make()
        observation, _ = self._env.reset(seed=task.index)
        self._started, self._over = True, False
        self._said = self._text(observation)
        return self._said

    def step(self, action: str) -> StepResult:
        self._live()
        if self._over:
            raise EnvironmentFault("the episode is over; reset the session first")
        value = self._read(action)
        if value is None:
            self._said = f"Not an action. {self._hint()}"
            return StepResult(self._said)
        observation, reward, terminated, truncated, info = self._env.step(value)
        terminated, truncated = bool(terminated), bool(truncated)
        self._over = terminated or truncated
        self._said = self._text(observation)
        return StepResult(
            self._said,
            float(reward),
            terminated,
            truncated and not terminated,
            terminated and bool(self._solved(float(reward), info)),
        )

    def observation(self) -> str:
        self._live()
        return self._said

    def available_actions(self) -> Sequence[str]:
        self._live()
        if self._over or _is_text(self._env.action_space):
            return ()
        return self._words or tuple(str(n) for n in _numbers(self._env.action_space)[:_SHOWN])

    def expert(self) -> str | None:
        self._live()
        if self._over or self._expert is None:
            return None
        return self._expert(self._env.unwrapped)

    def close(self) -> None:
        self._closed = True
        if self._env is not None:
            self._env.close()
            self._env = None

    def _text(self, observation: Any) -> str:
        text: Any = self._describe(observation)
        if not isinstance(text, str):
            raise EnvironmentFault(
                f"the observation is {type(text).__name__}, not text: give `describe`, which "
                "puts it into words"
            )
        return text

    def _read(self, action: str) -> Any:
        """The member of the action space that the text means; None if there is none."""
        space = self._env.action_space
        if _is_text(space):
            return action if space.contains(action) else None
        named = {word.lower(): number for number, word in enumerate(self._words)}
        numbers = _numbers(space)
        text = action.strip()
        if self._words:
            place = named.get(text.lower())
            return None if place is None or place >= len(numbers) else numbers[place]
        if len(text) > 20 or not (text.isascii() and text.removeprefix("-").isdigit()):
            return None
        return int(text) if int(text) in numbers else None

    def _hint(self) -> str:
        shown = self.available_actions()
        return f"There are: {', '.join(shown)}." if shown else "Write another."

    def _live(self) -> None:
        if self._closed or not self._started:
            raise EnvironmentFault(
                "this session is closed" if self._closed else "reset the session to a task first"
            )


def _paid(reward: float, _info: Mapping[str, Any]) -> bool:
    """The default rule of success: the last step paid something."""
    return reward > 0


def _is_text(space: Any) -> bool:
    return type(space).__name__ == "Text"


def _numbers(space: Any) -> range:
    """Members of a space of numbers.

    Raises:
        ConfigError: the space is of another kind.
    """
    if type(space).__name__ != "Discrete":
        raise ConfigError(
            f"actions of kind {type(space).__name__} cannot be written as text: wrap the "
            "environment so that its action space is Discrete or Text"
        )
    return range(int(space.start), int(space.start) + int(space.n))


def gymnasium_family(
    id: str,
    name: str | Make,
    *,
    summary: str = "",
    describe: Callable[[Any], str] = lambda observation: observation,
    words: Sequence[str] = (),
    expert: Expert | None = None,
    solved: Callable[[float, Mapping[str, Any]], bool] | None = None,
    prompt: Sequence[ChatMessage] = (),
    splits: Mapping[str, range] | None = None,
    turn_limit: int = 20,
    reward_range: tuple[float, float] = (0.0, 1.0),
    action_format: str = "react",
    cost: Cost = "worker",
    deterministic: bool = True,
    expert_success: float = 1.0,
) -> EnvFamily:
    """A family for the registry around one Gymnasium environment.

    Args:
        id: `name-vN` in our registry.
        name: Gymnasium's id, or what makes the environment.
        describe: puts an observation into words; by default it is text already.
        words: names of the actions of a Discrete space, in its order.
        expert: advice, from the unwrapped environment; must change nothing in it.
        solved: the rule of success, from the last step's reward and info, asked when the
            environment has terminated; by default that step paid something.
        splits: ranges of seeds, disjoint and without gaps between the first and the last.

    The rest is as in `EnvSpec`.
    """
    tasks = dict(splits or {"train": range(1000), "dev": range(1000, 1100)})
    tasks = tasks if splits else tasks | {"test": range(1100, 1300)}
    every = [seed for part in tasks.values() for seed in part]
    within = range(min(every), max(every) + 1)
    make = _by_name(name) if isinstance(name, str) else name

    def build(*, id: str) -> EnvSpec:
        return EnvSpec(
            id=id,
            make=lambda: GymnasiumSession(make, within, describe, words, expert, solved),
            splits=tasks,
            prompt=tuple(prompt),
            action_format=action_format,
            turn_limit=turn_limit,
            reward_range=reward_range,
            cost=cost,
            deterministic=deterministic,
            expert_success=expert_success,
        )

    return EnvFamily(id=id, summary=summary or f"Gymnasium's {name}", build=build)


def _by_name(name: str) -> Make:
    def make() -> Any:
        try:
            import gymnasium
        except ImportError as error:
            raise MissingDependency(
                f"{name} needs gymnasium ({error}); install it with: "
                "pip install 'rollwave[gymnasium]'"
            ) from None
        try:
            return gymnasium.make(name)
        except gymnasium.error.Error as error:
            raise ConfigError(f"Gymnasium does not make {name!r}: {error}") from None

    return make

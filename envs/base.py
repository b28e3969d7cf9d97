"""The contract every environment keeps.

An `Environment` is one session: `reset` to a task, then `step` until the answer
is `terminated` or `truncated`. It is a plain synchronous object, so that a world
can be written in forty lines; the engine decides where it runs (`EnvSpec.cost`).

Invariants, each a law in `laws`:

* the same task, seed and actions give the same answers;
* any text is a legal argument to `step`: a bad action is answered in words;
* rewards of one episode sum to a value within `reward_range`;
* after the end nothing more is earned; after `close` nothing is answered.

Not here: how a model writes an action down (`formats`) and who plays (`actors`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from ..engine.codec import Message
from ..engine.errors import ConfigError, EnvironmentFault
from ..engine.trajectory import ChatMessage
from .worker.limits import WorkerLimits

if TYPE_CHECKING:
    from .hosting import Host

SPLITS: Final = ("train", "dev", "test", "unseen")
"""Splits are disjoint. `unseen` holds what differs in kind, not only in number."""


class Task(Message, frozen=True):
    """One thing to do: an index into an environment's own numbered list of tasks."""

    env: str
    """Environment id with options, as the registry takes it."""
    index: int
    split: str = ""
    """The split the index belongs to; "" if the user chose it by number."""

    @property
    def id(self) -> str:
        """`<family>_<index>`, AgentGym's spelling: textcraft_12; of a server, `remote_<index>`."""
        family = self.env.partition("?")[0].rpartition("-v")[0]
        return f"{family or 'remote'}_{self.index}"


class StepResult(Message, frozen=True):
    """What the environment answers to an action."""

    observation: str
    reward: float = 0.0
    """Earned by this step alone; the episode's reward is the sum."""
    terminated: bool = False
    """The task is over: solved, or lost for good."""
    truncated: bool = False
    """A limit of the environment's own ended the episode."""
    success: bool = False
    """The environment's success rule holds. Only together with `terminated`."""

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


class Environment(ABC):
    """One session of a world. Not thread-safe; one owner at a time."""

    @abstractmethod
    def reset(self, task: Task, seed: int) -> str:
        """Start the task afresh and return the first observation.

        Raises:
            ConfigError: the task's index is outside the environment's list.
        """

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Answer one action. Any text is legal.

        Raises:
            EnvironmentFault: called before `reset`, after the end, or after `close`.
        """

    @abstractmethod
    def observation(self) -> str:
        """The latest observation, unchanged by asking."""

    @abstractmethod
    def available_actions(self) -> Sequence[str]:
        """Legal actions now; a sample of them where they cannot be listed."""

    def expert(self) -> str | None:
        """The next action of the scripted expert from here; None where there is none."""
        return None

    def about(self) -> Mapping[str, str | int]:
        """Facts about the task for programs, not for the agent, by names of the world's own:
        what it is called, of which type it is. None by default.

        Raises:
            EnvironmentFault: called before `reset`, or after `close`.
        """
        return {}

    def secrets(self) -> Sequence[str]:
        """What the agent has to find out: no observation may contain it before the agent has
        said it, or the episode is over. For the laws alone; empty where nothing is hidden."""
        return ()

    def snapshot(self) -> bytes:
        """The whole state of the session as bytes.

        Raises:
            EnvironmentFault: the environment has no snapshots; replay its actions instead.
        """
        raise EnvironmentFault(f"{type(self).__name__} has no snapshots: replay its actions")

    def restore(self, state: bytes) -> None:
        """Return to the state that `snapshot` gave.

        Raises:
            EnvironmentFault: the bytes are not a snapshot of this environment.
        """
        raise EnvironmentFault(f"{type(self).__name__} has no snapshots: replay its actions")

    def close(self) -> None:  # noqa: B027 (most worlds hold nothing)
        """Free what the session holds. Afterwards only `close` may be called again."""


Option = str | int | float | bool
"""The value of an option in an environment id: `maze-grid-v1?size=7&loops=0.5`."""

Cost = Literal["inline", "thread", "worker"]
"""Where a session runs: on the loop (a step well under 1 ms), in a thread (it waits for
something), or in a worker process (it computes, may leak, or may crash the interpreter)."""


@dataclass(frozen=True)
class Origin:
    """How the registry settled a spec: what another process repeats to have it again."""

    make: Callable[[], Environment]
    """The spec's own, with nothing wrapped around it."""
    build: Callable[..., EnvSpec]
    id: str
    options: Mapping[str, Option]


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """One environment with its options settled: what the engine needs to run it."""

    id: str
    """`name-vN`, with `?option=value&…` for options that differ from their defaults."""
    make: Callable[[], Environment]
    """Makes a session."""
    splits: Mapping[str, Sequence[int]]
    """Disjoint task indices by split name."""
    prompt: tuple[ChatMessage, ...] = ()
    """System text and canned exchange that precede the first observation."""
    vocabulary: tuple[str, ...] = ()
    """Every word of observations and actions, where the environment has a closed vocabulary."""
    action_format: str = "react"
    """Name of the format in `formats` that completions follow."""
    turn_limit: int = 20
    reward_range: tuple[float, float] = (0.0, 1.0)
    cost: Cost = "inline"
    host: Callable[[], Host] | None = field(default=None, compare=False, repr=False)
    """Gives what opens its sessions, in place of what `cost` says: for worlds on a server."""
    needs: Callable[[], object] | None = field(default=None, compare=False, repr=False)
    """Raises `MissingDependency` where the machine lacks what sessions need. Called before the
    first one is opened, since in an episode it would only be a fault."""
    workers: WorkerLimits = field(default_factory=WorkerLimits)
    """What its worker processes may use, where it runs in some."""
    deterministic: bool = True
    """Replaying the same actions rebuilds the same state."""
    expert_success: float = 1.0
    """Share of tasks that the expert claims to solve within `turn_limit`; a law holds it to it."""
    origin: Origin | None = field(default=None, compare=False, repr=False)
    """Set by the registry."""

    def tasks(self, split: str, *, limit: int | None = None) -> list[Task]:
        """The tasks of a split, in order.

        Raises:
            ConfigError: no such split; the text lists those there are.
        """
        if split not in self.splits:
            names = ", ".join(self.splits)
            raise ConfigError(f"{self.id} has no split {split!r}; it has: {names}")
        return [Task(self.id, index, split) for index in self.splits[split][:limit]]

    def numbered(self, indices: Sequence[int]) -> list[Task]:
        """Tasks by number across all splits.

        Raises:
            ConfigError: an index lies in no split.
        """
        where = {index: split for split, members in self.splits.items() for index in members}
        missing = [index for index in indices if index not in where]
        if missing:
            raise ConfigError(
                f"{self.id} has no task {missing[0]}; its {len(where)} tasks are numbered "
                f"{min(where)} to {max(where)}"
            )
        return [Task(self.id, index, where[index]) for index in indices]


@dataclass(frozen=True, kw_only=True)
class EnvFamily:
    """What the registry holds: an id, its options, and how to settle them into a spec."""

    id: str
    """`name-vN`. A changed behaviour is a new version."""
    summary: str
    """One line for listings."""
    build: Callable[..., EnvSpec]
    """Takes every option as a keyword, plus `id`, the full id to put into the spec."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Accepted options with their defaults; the type of the default is the option's type."""

"""The small evolution that fault plans are played against: everything real but model and world.

    wave w: explore with policy w-1 → seal → train policy w → publish → …

The world is a corridor of rooms whose end depends on the way through it; the model's words
depend on its weights, on the seed and on every token of the prompt; its weights depend on
every token of the wave they were trained on. So whatever is lost, doubled, reordered or
played by another policy shows in all that follows.

Invariant: what an undisturbed campaign comes to depends on its seed alone.

Not here: the faults (`injection`), and what must hold (`invariants`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec
import trio

from ...engine.actor import Actor
from ...engine.clock import deadline
from ...engine.codec import encode
from ...engine.disk import Disk
from ...engine.errors import (
    AskFailed,
    RollwaveError,
    WeightSwapFailed,
    classify,
    storage_error,
)
from ...engine.seeds import derive
from ...engine.store import read_wave
from ...engine.trajectory import ChatMessage, Trajectory
from ...envs.base import Environment, EnvSpec, StepResult, Task
from ..backends.latency import UniformLatency
from ..backends.scripted import ScriptedBackend
from ..learner import stage_of
from ..policy_source import PolicySource
from ..protocol import Generate, PolicyUpdated, UpdatePolicy

WORDS: Final = ("north", "east", "south", "west")
TRAINING_STEPS: Final = 4
_STEP_SECONDS: Final = 1.0
_ORDER_SECONDS: Final = 300.0
_CLOSER, _USER, _AGENT = 256, 257, 258


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The size of a campaign. Small: thousands of plans are played against it."""

    seed: int = 0
    waves: int = 2
    tasks: int = 6
    attempts: int = 2
    concurrency: int = 4
    batch: int = 0
    """Of the scripted backend; 0 = every request alone."""


# -- the world ----------------------------------------------------------------------------


class Corridor(Environment):
    """Two to four rooms; which door is right in one depends on all doors before it."""

    def __init__(self) -> None:
        self._state = self._room = self._rooms = 0

    def reset(self, task: Task, seed: int) -> str:
        self._state = derive(seed, task.id)
        self._room = 0
        self._rooms = 2 + self._state % 3
        return self.observation()

    def step(self, action: str) -> StepResult:
        right = action == WORDS[self._state % 4]
        self._state = derive(self._state, action)
        self._room += 1
        done = self._room == self._rooms
        reward = 1.0 / self._rooms if right else 0.0
        return StepResult(self.observation(), reward, terminated=done, success=done and right)

    def observation(self) -> str:
        return f"room {self._room} of {self._rooms}, {self._state % 1000}"

    def available_actions(self) -> Sequence[str]:
        return WORDS


def corridor(scenario: Scenario) -> EnvSpec:
    """The world with as many tasks as the scenario has."""
    return EnvSpec(
        id="corridor-v1",
        make=Corridor,
        splits={"train": range(scenario.tasks)},
        action_format="raw",
        turn_limit=4,
    )


# -- the model ----------------------------------------------------------------------------


class ByteChat:
    """A chat template of one token a byte."""

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of the messages and the header of the agent's turn."""
        ids: list[int] = []
        for message in messages:
            ids += [_USER, *message.text.encode(), _CLOSER]
        return [*ids, _AGENT]

    def following(self, observation: str, *, closed: bool) -> list[int]:
        """Token ids between two completions."""
        return [*([] if closed else [_CLOSER]), _USER, *observation.encode(), _CLOSER, _AGENT]

    def completion(self, text: str) -> list[int]:
        """Token ids of what an expert wrote."""
        return [*text.encode(), _CLOSER]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids."""
        return bytes(i for i in ids if i < _CLOSER).decode()


def words(weights: int, seed: int, prompt: bytes) -> str:
    """What the model of these weights says to a prompt of packed token ids."""
    return WORDS[derive(seed, weights, crc32(prompt)) % 4]


class ScriptedModel(ScriptedBackend):
    """Answers by `words`, with the weights of its model directory."""

    def __init__(self, version: int, path: str, batch: int) -> None:
        super().__init__(
            UniformLatency(0.1, 2.0),
            batch,
            self._words,
            tokenise=lambda text: [*text.encode(), _CLOSER],
            swap_seconds=0.3,
        )
        self.policy_version = version
        self._weights = read_weights(Path(path))

    async def swap_weights(self, version: int, path: str) -> None:
        """Load the weights, then serve them.

        Raises:
            WeightSwapFailed: the directory holds none.
        """
        try:
            weights = read_weights(Path(path))
        except (OSError, ValueError) as error:
            raise WeightSwapFailed(f"{path} cannot be loaded: {error}") from error
        await super().swap_weights(version, path)
        self._weights = weights

    def _words(self, request: Generate) -> str:
        return words(self._weights, request.seed, request.prompt_ids)


def source(scenario: Scenario, model: Path) -> PolicySource:
    """Who acts: the scripted model, from that directory on."""
    return PolicySource(
        kind="model",
        name="scripted",
        path=str(model),
        make_backend=lambda version, path: ScriptedModel(version, path, scenario.batch),
        renderer=ByteChat(),
    )


# -- the learner --------------------------------------------------------------------------


class Checkpoint(msgspec.Struct, frozen=True):
    """A training in its middle."""

    step: int
    weights: int


class ScriptedLearner(Actor):
    """Takes virtual time for each step, saves a checkpoint after it, and a model at the end."""

    receives = (UpdatePolicy,)

    def __init__(self, disk: Disk, step: Callable[[], None]) -> None:
        """`step` is called before each training step; it may raise."""
        self._disk = disk
        self._step = step

    async def receive(self, message: UpdatePolicy) -> PolicyUpdated:  # type: ignore[override]
        """Train, save, answer; an error fails the order alone, as the real learner does."""
        try:
            with deadline(stage_of(message), _ORDER_SECONDS):
                return await self._train(message)
        except RollwaveError as error:
            raise AskFailed(type(error).__name__, str(error)) from error
        except Exception as error:  # the boundary to a training library
            raise AskFailed(*classify(error)) from error

    async def _train(self, order: UpdatePolicy) -> PolicyUpdated:
        records = read_wave(order.waves[-1]).trajectories
        out = Path(order.out)
        file = out.with_suffix(".training")
        state = Checkpoint(0, read_weights(Path(order.starts["last"])))
        try:
            if file.exists():
                state = msgspec.json.decode(file.read_bytes(), type=Checkpoint)
            while state.step < TRAINING_STEPS:
                self._step()
                await trio.sleep(_STEP_SECONDS)
                state = learned(state, records)
                self._disk.replace(file, msgspec.json.encode(state))
            write_model(self._disk, out, state.weights)
            file.unlink()
        except OSError as error:
            raise storage_error(error, out) from error
        return PolicyUpdated(order.out, {}, len(records), {})


def learned(state: Checkpoint, records: Sequence[Trajectory]) -> Checkpoint:
    """One training step: what is learned depends on every token, outcome and reward."""
    digest = state.weights
    for record in records:
        digest = derive(digest, crc32(encode(told(record))))
    return Checkpoint(state.step + 1, digest)


def told(t: Trajectory) -> Trajectory:
    """What happened in the episode, without when."""
    turns = tuple(
        msgspec.structs.replace(turn, generate_seconds=0.0, step_seconds=0.0) for turn in t.turns
    )
    return msgspec.structs.replace(t, turns=turns, started=0.0, seconds=0.0)


def read_weights(model: Path) -> int:
    """The weights of a model directory."""
    return int((model / "weights").read_text())


def write_model(disk: Disk, model: Path, weights: int) -> None:
    """Write a model directory; its `config.json`, written last, says that it is whole."""
    model.mkdir(parents=True, exist_ok=True)
    disk.replace(model / "weights", str(weights).encode())
    disk.replace(model / "config.json", b"{}")

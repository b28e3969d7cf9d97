"""A campaign without a model: words are drawn after a latency, a training step sleeps.

    config ─▶ run_campaign(config, out, cast=rehearsal(…)) ─▶ every stage, on trio's clock

Everything else is real: engine, store, explorer, the loop with its resume. On the virtual
clock a whole campaign takes a fraction of a second; in real time, with the real learner, it
is a sampler that costs no CPU of ours (`benchmarks.overlap`).

Invariants: a completion depends on the seed of its request alone; the learner leaves a model
directory that says which trajectories it was trained on, whole or not at all.

Not here: faults (`scenario`), and latencies (`backends.latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from ...engine.actor import Actor
from ...engine.blocking import run_blocking
from ...engine.store import read_wave
from ...learners.settings import AnyLearner, GradientSettings
from ...learners.training.directories import atomic_directory
from ..backends.base import Backend
from ..backends.latency import Latency
from ..backends.scripted import ScriptedBackend
from ..campaign import Cast
from ..policies import Renderer
from ..policy_source import PolicySource
from ..protocol import Generate, PolicyUpdated, UpdatePolicy
from .scenario import ByteChat

WORDS: Final = ("up", "down", "left", "right")
"""What a policy says in the terse mazes."""


def rehearsal(
    latency: Latency, training: Callable[[int], float], *, swap_seconds: float = 0.0
) -> Cast:
    """Nobody real: words are drawn, and wave m is trained on for `training(m)` seconds."""
    return Cast(
        learner=lambda _config, _watch: SleepingLearner(training),
        source=lambda _config, model: drawn(model, latency, ByteChat(), swap_seconds=swap_seconds),
    )


def drawn(
    model: str,
    latency: Latency,
    renderer: Renderer,
    *,
    words: Sequence[str] = WORDS,
    batch: int = 0,
    swap_seconds: float = 0.0,
) -> PolicySource:
    """Who says one of these words, whatever was asked, in the tokens of that renderer."""

    def answer(request: Generate) -> str:
        return words[request.seed % len(words)]

    def make(version: int, _path: str) -> Backend:
        backend = ScriptedBackend(
            latency, batch, answer, tokenise=renderer.completion, swap_seconds=swap_seconds
        )
        backend.policy_version = version
        return backend

    return PolicySource(
        kind="model", name="drawn", path=model, make_backend=make, renderer=renderer
    )


class Rehearsed(msgspec.Struct, frozen=True):
    """The training.json of a step that was slept through."""

    metrics: dict[str, float]
    kept: int
    dropped: dict[str, int]
    trained: tuple[str, ...]
    """Ids of the trajectories, in order."""
    ages: tuple[int, ...]
    """How many policies the oldest token of each was behind."""


class SleepingLearner(Actor):
    """Takes the wave, drops what is too old, sleeps, and leaves a model directory."""

    receives = (UpdatePolicy,)

    def __init__(self, training: Callable[[int], float]) -> None:
        """`training` gives the seconds of a wave; cloning is wave 0."""
        self._training = training

    async def receive(self, message: UpdatePolicy) -> PolicyUpdated:  # type: ignore[override]
        """Train, as far as anybody can tell."""
        oldest = _oldest(message)
        records = [t for path in message.waves for t in read_wave(path).trajectories]
        ages = [message.wave - 1 - t.versions[0] for t in records]
        kept = [(t.id, age) for t, age in zip(records, ages, strict=True) if age <= oldest]
        await trio.sleep(self._training(message.wave))
        report = Rehearsed(
            {"steps": 1.0},
            len(kept),
            {"stale": len(records) - len(kept)},
            tuple(id_ for id_, _ in kept),
            tuple(age for _, age in kept),
        )
        await run_blocking(_save, Path(message.out), report)
        return PolicyUpdated(message.out, report.metrics, report.kept, report.dropped)


def _oldest(order: UpdatePolicy) -> int:
    """How old a trajectory may be."""
    if order.algorithm == "clone":
        return 0
    settings = msgspec.json.decode(order.settings, type=AnyLearner)
    return settings.max_staleness if isinstance(settings, GradientSettings) else 0


def read_rehearsed(model: str | Path) -> Rehearsed:
    """What a step that was slept through says of itself."""
    return msgspec.json.decode((Path(model) / "training.json").read_bytes(), type=Rehearsed)


def _save(out: Path, report: Rehearsed) -> None:
    with atomic_directory(out) as draft:
        (draft / "config.json").write_text("{}")
        (draft / "training.json").write_bytes(msgspec.json.encode(report))

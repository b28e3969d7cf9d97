"""The learner actor: takes an order on sealed waves, trains off the loop, answers when saved.

Invariants: training never blocks the loop (it runs in one worker thread, which the
actor waits for); one order at a time, since the mailbox is served one message at a
time; an error of the order fails that order alone and leaves the actor alive.

A cancelled order abandons its thread. Its result is then never announced, and a
model directory is written whole or not at all, so nothing half-trained is ever used.

Not here: the algorithms (`learners`), and when to learn (`campaign`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from ..engine.actor import Actor
from ..engine.errors import AskFailed, ConfigError, RollwaveError, classify
from ..engine.store import read_wave
from ..engine.trajectory import Trajectory
from ..learners.base import Report
from ..learners.settings import CloningSettings, EvolSettings
from .monitor import Snapshot, Watch
from .protocol import PolicyUpdated, UpdatePolicy


class LearnerActor(Actor):
    """Runs evolution steps, one after the other."""

    receives = (UpdatePolicy,)

    def __init__(self, threads: int, watch: Watch) -> None:
        """`threads` are torch's; `watch` is told of every optimiser step, from the thread."""
        self._threads = threads
        self._watch = watch

    async def receive(self, message: UpdatePolicy) -> PolicyUpdated:  # type: ignore[override]
        """Train, save, answer.

        Raises:
            AskFailed: the order cannot be done; its kind is the name of our error, or the
                fault kind of a foreign one.
        """
        try:
            report = await trio.to_thread.run_sync(
                update, message, self._threads, self._watch, abandon_on_cancel=True
            )
        except RollwaveError as error:
            raise AskFailed(type(error).__name__, str(error)) from error
        except Exception as error:  # the boundary to torch, whose errors are of every kind
            raise AskFailed(*classify(error)) from error
        return PolicyUpdated(message.out, dict(report.metrics), report.kept, dict(report.dropped))


def update(order: UpdatePolicy, threads: int, watch: Watch) -> Report:
    """Run one evolution step. Blocks; deterministic on a CPU.

    Raises:
        ConfigError: no such algorithm, or a start is missing.
        LearnerError: see `learners`.
    """
    from ..learners.policy import configure_threads

    configure_threads(threads)
    stage = f"train {Path(order.out).name}"

    def progress(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        loss = metrics.get("loss", float("nan"))
        watch(Snapshot(stage=f"{stage}: step {step} of {steps}, loss {loss:.3f}"))

    watch(Snapshot(stage=stage))
    experts = _read(order.experts)
    if order.algorithm == "clone":
        from ..learners.behaviour_cloning import BehaviourCloning

        settings = msgspec.json.decode(order.settings, type=CloningSettings)
        return BehaviourCloning(settings, _start(order, "last")).update(
            [t for part in experts for t in part], out=order.out, progress=progress
        )
    if order.algorithm == "agent_evol":
        from ..learners.agent_evol import AgentEvol

        evolution = AgentEvol(
            msgspec.json.decode(order.settings, type=EvolSettings),
            base_bc=_start(order, "base_bc"),
            pretrained=_start(order, "pretrained"),
            evaluation=[(task.env, task.id) for task in order.evaluation],
        )
        evolution.last = _start(order, "last")
        waves = _read(order.waves)
        dataset = evolution.select([t for part in experts for t in part], waves)
        return evolution.update(dataset, out=order.out, progress=progress)
    raise ConfigError(f"no learner is called {order.algorithm!r}; there are clone, agent_evol")


def _start(order: UpdatePolicy, role: str) -> str:
    if role not in order.starts:
        raise ConfigError(f"{order.algorithm} needs a model directory to start from as {role!r}")
    return order.starts[role]


def _read(paths: tuple[str, ...]) -> list[tuple[Trajectory, ...]]:
    return [read_wave(path).trajectories for path in paths]

"""The learner actor: takes an order on sealed waves, trains off the loop, answers when saved.

Invariants: training never blocks the loop (it runs in one worker thread, which the actor
waits for, or in processes of its own); one order at a time, since the mailbox is served one
message at a time; an error of the order fails that order alone and leaves the actor alive; an
order has one deadline, and this actor owns it.

Processes are killed when their order is late or cancelled. A thread inside torch cannot be
stopped: such an order abandons it, behind a fence; it says nothing more, and ends after its
optimiser step. Until then it holds its working directory, so no later run works there at the
same time (`RunLocked`).
A model directory is written whole or not at all, so nothing half-trained is ever used.

Not here: the algorithms (`learners`), several processes (`learner_processes`), and when to
learn (`campaign`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any, Final

import msgspec

from ..engine.actor import Actor
from ..engine.blocking import run_blocking
from ..engine.clock import deadline
from ..engine.errors import (
    AskFailed,
    BadSample,
    CheckpointCorrupt,
    ConfigError,
    DeadlineExceeded,
    EmptyWave,
    EvaluationLeak,
    FaultKind,
    LearnerError,
    MissingDependency,
    NotARun,
    RollwaveError,
    RunLocked,
    StorageFailed,
    StoreError,
    TemplateError,
    WaveCorrupt,
    classify,
)
from ..learners.base import Progress, Report
from ..learners.distributed import Order, carry_out
from ..learners.settings import AnyLearner, TrainingSettings
from .learner_processes import train_together
from .monitor import Snapshot, TrainingStep, Watch
from .protocol import PolicyUpdated, UpdatePolicy


class Fence:
    """Between a training thread and the loop: closed, it lets nothing of the thread through."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._closed = Event()

    def close(self) -> None:
        """From now on the thread is on its own."""
        self._closed.set()

    def tell(self, stage: str, training: TrainingStep | None = None) -> None:
        """From the thread: how far it is. Ends the training where nobody waits for it.

        Raises:
            Abandoned: the fence is closed.
        """
        if self._closed.is_set():
            raise Abandoned(f"{stage}: given up")
        self._watch(Snapshot(stage=stage, training=training))


class Abandoned(Exception):
    """Ends a training thread that nobody waits for; nobody sees it either."""


class LearnerActor(Actor):
    """Runs evolution steps, one after the other."""

    receives = (UpdatePolicy,)

    def __init__(
        self, threads: int, watch: Watch, seconds: float = 86_400.0, *, processes: int = 1
    ) -> None:
        """`threads` are torch's; `watch` is told of every optimiser step, perhaps from a thread;
        `seconds` is the deadline of an order; above 1, so many `processes` do it together."""
        self._threads = threads
        self._watch = watch
        self._seconds = seconds
        self._processes = processes

    async def receive(self, message: UpdatePolicy) -> PolicyUpdated:  # type: ignore[override]
        """Train, save, answer.

        Raises:
            AskFailed: the order cannot be done; its kind is the name of our error, or the
                fault kind of a foreign one.
        """
        fence = Fence(self._watch)
        try:
            with deadline(stage_of(message), self._seconds):
                if self._processes == 1:
                    report = await run_blocking(
                        update, message, self._threads, fence, abandon_on_cancel=True
                    )
                else:
                    report = await self._together(message, fence)
        except DeadlineExceeded as error:
            raise AskFailed(
                DeadlineExceeded.__name__,
                f"{error}; the same command goes on from the last checkpoint, and run.step_seconds "
                "allows more",
            ) from error
        except AskFailed:
            raise  # of one of the processes
        except RollwaveError as error:
            raise AskFailed(type(error).__name__, str(error)) from error
        except Exception as error:  # the boundary to torch, whose errors are of every kind
            raise AskFailed(*classify(error)) from error
        finally:
            fence.close()
        return PolicyUpdated(message.out, dict(report.metrics), report.kept, dict(report.dropped))

    async def _together(self, message: UpdatePolicy, fence: Fence) -> Report:
        order = order_of(message, self._threads)
        # They wait for each other as long as we wait for them.
        order = msgspec.structs.replace(order, seconds=self._seconds)
        fence.tell(stage_of(message))
        return await train_together(order, self._processes, progress_of(message, fence))


def stage_of(order: UpdatePolicy) -> str:
    """Name an evolution step, for views and errors: "train policy-0002"."""
    return f"train {Path(order.out).name}"


_ERRORS: Final[Mapping[str, type[RollwaveError]]] = {
    error.__name__: error
    for error in (
        BadSample,
        CheckpointCorrupt,
        ConfigError,
        DeadlineExceeded,
        EmptyWave,
        EvaluationLeak,
        LearnerError,
        MissingDependency,
        NotARun,
        RunLocked,
        StorageFailed,
        StoreError,
        TemplateError,
        WaveCorrupt,
    )
} | {FaultKind.STORAGE.value: StorageFailed}


def learner_error(order: UpdatePolicy, failed: AskFailed) -> RollwaveError:
    """Turn the learner's answer back into the error that it was; names the evolution step."""
    kind = _ERRORS.get(failed.kind)
    if kind is EmptyWave:
        return EmptyWave(failed.text)  # about the wave, not about the step
    if kind is DeadlineExceeded:
        return DeadlineExceeded(failed.text)  # names the step by itself
    if kind is None:  # of torch, say
        return LearnerError(
            f"{stage_of(order)}: {failed.text}; the same command goes on from the last checkpoint"
        )
    return kind(f"{stage_of(order)}: {failed.text}")


def update(order: UpdatePolicy, threads: int, fence: Fence) -> Report:
    """Run one evolution step. Blocks; deterministic on a CPU.

    Raises:
        ConfigError: no such algorithm, or a start is missing.
        EvaluationLeak: an evaluation task is among what is learned from.
        LearnerError: see `learners`.
        Abandoned: the fence was closed meanwhile.
    """
    fence.tell(stage_of(order))
    return carry_out(order_of(order, threads), progress_of(order, fence))


def progress_of(order: UpdatePolicy, fence: Fence) -> Progress:
    """Tell a watch of the steps of an order."""

    def progress(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        training = TrainingStep(Path(order.out).name, step, steps, dict(metrics))
        fence.tell(f"{stage_of(order)}: {_words(step, steps, metrics)}", training)

    return progress


def order_of(message: UpdatePolicy, threads: int) -> Order:
    """What the learners are to do, by a message.

    Raises:
        ConfigError: no such order, or the settings are none of its kind.
    """
    learner: AnyLearner | None = None
    clone: TrainingSettings | None = None
    match message.algorithm:
        case "clone":
            clone = _settings(message, TrainingSettings)
        case "evolve":
            learner = _settings(message, AnyLearner)
        case other:
            raise ConfigError(f"no order is called {other!r}; there are clone, evolve")
    return Order(
        out=message.out,
        starts=dict(message.starts),
        learner=learner,
        clone=clone,
        experts=message.experts,
        waves=message.waves,
        number=message.wave,
        evaluation=tuple((task.env, task.id) for task in message.evaluation),
        threads=threads,
    )


def _words(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """Say how far a training is."""
    if (resumed := int(metrics.get("resumed", 0))) == step:
        return f"resumed at step {step} of {steps}"
    words = f"step {step} of {steps}, loss {metrics.get('loss', float('nan')):.3f}"
    return f"{words}, resumed at {resumed}" if resumed else words


def _settings(order: UpdatePolicy, kind: Any) -> Any:
    """Read the settings of an order.

    Raises:
        ConfigError: they are none of that kind; the text names the key.
    """
    try:
        return msgspec.json.decode(order.settings, type=kind)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"settings of {order.algorithm!r}: {error}") from error

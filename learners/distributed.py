"""One evolution step in several processes: `torchrun` starts them, an order says what to do.

    torchrun --nproc-per-node 2 -m rollwave.learners.distributed ORDER.json

ORDER.json names the algorithm's settings (as in a campaign's file, `algorithm` among them), or
those of cloning, and the waves on disk:

    {"learner": {"algorithm": "grpo", "training": {"lr": 1e-5}},
     "starts": {"last": "models/3"}, "waves": ["store/waves/0004"], "number": 4,
     "out": "models/4"}

    {"clone": {"epochs": 3}, "starts": {"last": "models/base"}, "experts": ["experts/wave"],
     "out": "models/cloned"}

Each process holds the whole model (`training.processes`), or a part of its layers where the
settings say `shard` (`model.sharding`); on GPUs each takes its own. The result is that of one
process, up to the rounding of sums in another order; the first process writes it, and prints
the report as one line of JSON. The same command goes on after a crash: on Linux the processes
also end with a torchrun that is killed.

Not here: several machines, and a campaign's own processes (`member`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from ..engine.errors import ConfigError, RollwaveError
from ..engine.lifeline import die_with
from ..engine.store import read_wave
from ..engine.trajectory import Trajectory
from .base import Evidence, Progress, Report
from .settings import AnyLearner, TrainingSettings

SECONDS: Final = 1_800.0
"""Longest wait for another process, by default: it may be writing a large model."""


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of ORDER.json. Paths are as seen from the working directory."""

    out: str
    """Model directory to write."""
    starts: dict[str, str]
    """Model directories by role: "pretrained", "base_bc", "last"."""
    learner: AnyLearner | None = None
    clone: TrainingSettings | None = None
    """Clone the experts from "last" with these settings instead."""
    experts: tuple[str, ...] = ()
    """Sealed waves of expert trajectories."""
    waves: tuple[str, ...] = ()
    """Sealed waves of the policy's own, oldest first."""
    number: int = 1
    """Of the newest wave."""
    evaluation: tuple[tuple[str, str], ...] = ()
    """(environment id, task id) of tasks that must not be learned from."""
    threads: int = 1
    """Of torch, in each process."""
    seconds: float = SECONDS
    """Longest wait for another process."""


def read_order(path: str) -> Order:
    """Read and check an order.

    Raises:
        ConfigError: it cannot be read, or is none; see `parse_order`.
    """
    try:
        return parse_order(Path(path).read_bytes(), f"order {path}")
    except OSError as error:
        raise ConfigError(f"order {path}: {error}") from error


def parse_order(text: bytes, name: str) -> Order:
    """Check an order, of that name in errors.

    Raises:
        ConfigError: it is none, says neither or both of `learner` and `clone`, or asks for
            evaluations, which nobody makes.
    """
    try:
        order = msgspec.json.decode(text, type=Order)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{name}: {error}") from error
    if (order.learner is None) == (order.clone is None):
        raise ConfigError(f"{name}: it needs either `learner` or `clone`")
    trainings = list(order.learner.trainings.values()) if order.learner is not None else []
    if any(t.evaluate_every for t in (*trainings, order.clone) if t is not None):
        raise ConfigError(
            f"{name}: evaluate_every must be 0, since nobody plays dev tasks in the middle of an "
            "order; evaluate what it made"
        )
    return order


def carry_out(order: Order, progress: Progress | None = None) -> Report:
    """Run the evolution step, in as many processes as torch's default group has.

    Args:
        progress: told of every step, in the first process.

    Raises:
        EvaluationLeak: an evaluation task is among the experts'.
        RollwaveError: see `learners.algorithms.evolve`.
    """
    from .model.policy import configure_threads

    configure_threads(order.threads)
    experts = [t for path in order.experts for t in _trajectories(path)]
    evidence = Evidence(
        starts=order.starts,
        experts=experts,
        waves=[_trajectories(path) for path in order.waves],
        number=order.number,
        evaluation=frozenset(order.evaluation),
    )
    if order.clone is not None:
        from .cloning.behaviour_cloning import clone
        from .evidence.filters import refuse_evaluation, task_key

        refuse_evaluation(evidence.evaluation, map(task_key, experts))
        return clone(
            experts,
            settings=order.clone,
            start=evidence.start("last"),
            out=order.out,
            record={"algorithm": "behaviour_cloning"},
            progress=progress,
        )
    from .algorithms import evolve

    if order.learner is None:
        raise ConfigError("the order needs either `learner` or `clone`")
    return evolve(order.learner, evidence, out=order.out, progress=progress)


@contextmanager
def joined(
    order: Order, local_rank: int, *, store: Any = None, rank: int = -1, size: int = -1
) -> Iterator[None]:
    """Be one of several processes meanwhile.

    Args:
        local_rank: of this process among those of this machine: each takes a GPU of its own,
            where the order trains on GPUs.
        store: where they find each other, with the rank of this one and their number; None:
            as the environment says.

    Raises:
        ConfigError: there are fewer GPUs than processes, or the order names one of them.
    """
    import torch
    from torch import distributed

    training = order.clone if order.learner is None else order.learner.training
    if training is not None and ":" in training.device:
        raise ConfigError(
            f'training.device = "{training.device}" is one GPU, and several processes each take '
            'their own: set it to "cuda"'
        )
    cuda = training is not None and training.device != "cpu" and torch.cuda.is_available()
    if cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank + 1} of a machine with {torch.cuda.device_count()} GPUs: start "
            'as many as there are GPUs at most, or train on the CPU (training.device = "cpu")'
        )
    if cuda:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        timeout=timedelta(seconds=order.seconds),
        store=store,
        rank=rank,
        world_size=size,
    )
    try:
        yield
    finally:
        with suppress(ValueError, RuntimeError):
            distributed.destroy_process_group()


def main() -> None:
    """Join the other processes, do the order, leave."""
    from .training.processes import Processes

    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's: its processes would go on without it
        die_with(os.getppid())
    if len(sys.argv) != 2:
        raise SystemExit("usage: torchrun … -m rollwave.learners.distributed ORDER.json")
    try:
        order = read_order(sys.argv[1])
        several = "RANK" in os.environ
        with joined(order, int(os.environ.get("LOCAL_RANK", "0"))) if several else nullcontext():
            report = carry_out(order, _say)
            if Processes.current().first:
                sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    except RollwaveError as error:
        # The others wait for this process: torchrun ends them when it sees this one gone.
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def _trajectories(path: str) -> tuple[Trajectory, ...]:
    return read_wave(path).trajectories


def _say(step: int, steps: int, metrics: Mapping[str, float]) -> None:
    sys.stderr.write(f"step {step} of {steps}, loss {metrics.get('loss', float('nan')):.4f}\n")


if __name__ == "__main__":
    main()

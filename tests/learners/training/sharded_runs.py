"""Carry out orders one after the other, in the processes that torchrun started this in.

    torchrun --nproc-per-node 2 sharded_runs.py JOBS.json    writes DIR/NAME.json for each

One start serves all: importing torch costs more than the orders.

Not here: what should come of it (`test_sharding`, which starts this).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from rollwave.learners.distributed import Order, carry_out
from rollwave.learners.model.policy import configure_threads
from rollwave.learners.model.sharding import is_sharded, part
from rollwave.learners.training.loop import Training
from torch import distributed


class Job(msgspec.Struct):
    """One order, and whether all processes die in the middle of it."""

    name: str
    order: Order
    dies: int = 0
    """The step in which they do; 0: in none."""


class Said(msgspec.Struct):
    """What one process saw."""

    steps: list[dict[str, float]]
    """Metrics of every optimiser step: the first process alone hears of them."""
    metrics: dict[str, float]
    """The report's."""
    passes: list[int]
    """Micro-batches in every optimiser step, those that did not count among them."""
    held: int
    """Bytes of the layers' parameters, gradients and moments that it held after a step."""
    total: int
    """Bytes that they have altogether."""
    spread: list[str]
    """Names of the sharded parameters."""


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


def carry_out_watched(job: Job) -> Said:
    said = Said([], {}, [], 0, 0, [])
    real_step, real_backward = Training._step, torch.autograd.backward

    def backward(*arguments: Any) -> None:
        if said.passes:
            said.passes[-1] += 1
        real_backward(*arguments)

    def step(self: Training[Any], number: int, batch: Any) -> dict[str, float]:
        if number + 1 == job.dies:
            raise Killed
        said.passes.append(0)
        metrics = real_step(self, number, batch)
        count(self, said)
        return metrics

    Training._step, torch.autograd.backward = step, backward  # type: ignore[method-assign]
    try:
        report = carry_out(job.order, lambda _n, _of, metrics: said.steps.append(dict(metrics)))
        said.metrics = dict(report.metrics)
    except Killed:
        pass
    finally:
        Training._step, torch.autograd.backward = real_step, real_backward  # type: ignore[method-assign]
    return said


def count(training: Training[Any], said: Said) -> None:
    """Count what is held of the layers, between two steps."""
    optimiser = training._optimiser
    names = [name for name, p in optimiser.parameters.items() if is_sharded(p)]
    said.held = said.total = 0
    said.spread = names
    for name in names:
        parameter = optimiser.parameters[name]
        state = optimiser.adam.state[parameter]
        assert parameter.grad is not None
        for tensor in (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"]):
            assert is_sharded(tensor), name
            said.held += part(tensor).nbytes
            said.total += tensor.numel() * tensor.element_size()


def main() -> None:
    configure_threads(1)
    distributed.init_process_group("gloo")
    rank, folder = distributed.get_rank(), Path(sys.argv[1]).parent
    for job in msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Job]):
        said = carry_out_watched(job)
        (folder / f"{job.name}-{rank}.json").write_bytes(msgspec.json.encode(said))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

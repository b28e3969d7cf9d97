"""The optimiser loop over the items of an objective: steps, schedule, dev rewards, checkpoints.

    WORK/checkpoint   to resume from
        /step-40      the best policy on dev tasks so far

Invariants: the loss of a step is normalised over the whole step, however it is cut into
micro-batches; the same samples, start and settings give bit-equal weights on a CPU, also
when the run was killed anywhere and resumed; a run never resumes from another run's
checkpoint.

Not here: which items and what loss (`objective`), where the result goes (`evolution_step`),
what several processes tell each other (`processes`), how gradients are summed and clipped
(`optimiser`), and how dev tasks are played (the caller's `evaluate`). Dev loss is no proxy for
dev reward: it is not used.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Final, Generic, TypeVar

import torch

from ...engine.errors import CheckpointCorrupt, LearnerError, storage_error
from ...engine.seeds import derive
from ..base import Progress
from ..model.adapters import carried_from
from ..model.policy import Policy
from ..settings import Schedule, TrainingSettings
from .cadence import Cadence
from .checkpoint import (
    State,
    Tensors,
    gathered,
    load_checkpoint,
    load_moments,
    read_state,
    save_checkpoint,
    save_moments,
)
from .collate import micro_batches, packed_batches, steps
from .directories import atomic_directory, emptied, mend
from .objective import Objective
from .optimiser import Optimiser
from .processes import Processes, join

Item = TypeVar("Item")

_TOTAL: Final = ""
"""Name of the loss itself among the sums of a step; no metric has it."""

Evaluate = Callable[[int, str], float]
"""Called with (step, model directory of the policy after that step); returns its dev reward."""


def rate_at(step: int, total: int, lr: float, schedule: Schedule, warmup: float) -> float:
    """Learning rate of a step, counted from 0: a pure function, so resuming cannot shift it.

    It rises linearly over the first `warmup * total` steps, then stays, or falls to 0
    just after the last step.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return lr * (step + 1) / rising
    if schedule == "constant":
        return lr
    done = (step - rising) / max(1, total - rising)
    if schedule == "linear":
        return lr * (1 - done)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


class Training(Generic[Item]):
    """One run: a policy, its optimiser, and its place in the data.

    Args:
        items: what is learned from; `objective` may settle more about them.
        start: model directory.
        work: a claimed directory for checkpoints and candidates (`directories.claimed`).
        fingerprint: says which run this is: only its own checkpoint is resumed from.
    """

    def __init__(
        self,
        items: Sequence[Item],
        settings: TrainingSettings,
        *,
        objective: Objective[Item],
        start: str,
        work: Path,
        fingerprint: str,
    ) -> None:
        self.settings = settings
        self.policy = Policy.load(
            start,
            lora=settings.lora,
            dtype=settings.dtype,
            device=settings.device,
            seed=settings.seed,
            packing=settings.packing,
            gradient_checkpointing=settings.gradient_checkpointing,
            shard=settings.shard,
        )
        self._processes = Processes.current()
        self._objective = objective
        self._items = objective.prepare(self.policy, items)
        self._fingerprint = fingerprint
        self._optimiser = Optimiser(
            self.policy.trainable() | objective.parameters(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            factors=objective.factors(),
        )
        source = carried_from(start, settings.lora) if settings.carry_optimiser else None
        self._carried = source is not None and load_moments(
            source, self._optimiser.parameters, self._optimiser.adam
        )
        self._work = work
        self._checkpoint = work / "checkpoint"
        self._cadence = Cadence(settings.checkpoint_every, settings.checkpoint_seconds)
        self._dev: list[tuple[int, float]] = []
        self._total = settings.max_steps or sum(1 for _ in self._dealt(settings.epochs))

    def run(
        self, progress: Progress | None = None, evaluate: Evaluate | None = None
    ) -> dict[str, float]:
        """Run all steps and return the last step's metrics with the totals.

        Raises:
            LearnerError: the loss stopped being finite.
            CheckpointCorrupt: the checkpoint of this very run is damaged.
            StorageFailed: the disk refused a checkpoint.
        """
        cuda = self.policy.device.type == "cuda"
        with torch.random.fork_rng([self.policy.device] if cuda else []):
            torch.manual_seed(self.settings.seed)
            return self._run(progress, evaluate)

    def save(self, out: Path | None) -> None:
        """Write the best policy on dev tasks, or the last where there was no evaluation.

        Every process calls it; `out` is the first's alone.
        """
        if not self._dev:
            self._write(out)
        elif out is not None:
            shutil.copytree(self._candidate(self._best()[0]), out, dirs_exist_ok=True)

    def clear(self) -> None:
        """Remove checkpoints and candidates: the result is safe elsewhere."""
        with suppress(OSError):  # they are in nobody's way
            emptied(self._work)

    def _write(self, out: Path | None) -> None:
        """Save the policy as it is now, with what is trained beside it; see `save`."""
        sharded, carried = self.policy.sharded, self.settings.carry_optimiser
        now = self._gathered() if sharded or carried else None
        if out is None:
            return
        weights = now.weights if now is not None and sharded else None
        self.policy.save(out, weights)
        self._objective.save(out, weights)
        if now is not None and carried:
            save_moments(out, now)

    def _gathered(self) -> Tensors:
        """All that is trained, in the first process."""
        return gathered(
            self._optimiser.parameters, self._optimiser.adam, keep=self._processes.first
        )

    def _dealt(self, epochs: int) -> Iterator[list[Item]]:
        settings = self.settings
        return steps(
            self._items,
            seed=settings.seed,
            size=settings.batch,
            tokens=settings.batch_tokens,
            epochs=epochs,
            cost=self._objective.tokens,
            together=self._objective.together,
        )

    def _run(self, progress: Progress | None, evaluate: Evaluate | None) -> dict[str, float]:
        settings = self.settings
        began = time.perf_counter()
        step, metrics = self._resume()
        tokens, seconds = metrics.pop("tokens", 0.0), metrics.pop("seconds", 0.0)
        resumed = {"resumed": float(step)} if step else {}
        if step and progress is not None and self._processes.first:
            progress(step, self._total, metrics | resumed)
        dealt = self._dealt(0 if settings.max_steps else settings.epochs)
        for batch in islice(dealt, step, self._total):
            metrics = self._step(step, batch)
            step += 1
            tokens += sum(map(self._objective.tokens, batch))
            if progress is not None and self._processes.first:
                progress(step, self._total, metrics | resumed)
            if evaluate is not None and self._due(step, settings.evaluate_every):
                self._evaluate(step, evaluate)
                if self._out_of_patience():
                    break
            if step < self._total and self._processes.told(self._cadence.due(step)):
                spent = seconds + time.perf_counter() - began
                self._save_checkpoint(step, {**metrics, "tokens": tokens, "seconds": spent})
        if evaluate is not None and (not self._dev or self._dev[-1][0] != step):
            self._evaluate(step, evaluate)
        metrics |= {"steps": float(step), "tokens": tokens} | resumed
        metrics["seconds"] = seconds + time.perf_counter() - began
        if settings.carry_optimiser:
            metrics["moments_carried"] = float(self._carried)
        if self._dev:
            best_step, best = self._best()
            metrics |= {"dev_reward": best, "dev_step": float(best_step)}
        return metrics

    def _step(self, step: int, batch: Sequence[Item]) -> dict[str, float]:
        """One optimiser step: accumulate over micro-batches, clip, move."""
        settings = self.settings
        rate = rate_at(step, self._total, settings.lr, settings.schedule, settings.warmup)
        objective = self._objective
        denominator = objective.denominator(batch)
        if not denominator > 0:
            # Only where all weights of a step are 0: there is nothing to learn from it.
            return {"loss": 0.0, "grad_norm": 0.0, "lr": rate}
        self._optimiser.begin(rate)
        if self._processes.size > 1:  # a checkpoint holds the generator of the first alone
            torch.manual_seed(derive(settings.seed, "step", step, self._processes.rank))
        shares: dict[str, tuple[float, float]] = {_TOTAL: (0.0, 0.0)}
        for part, counts in self._processes.passes(
            self._parts(batch), objective.tokens, even=self.policy.sharded
        ):
            loss = objective.loss(self.policy, part, denominator)
            torch.autograd.backward(loss.value if counts else loss.value * 0.0)
            if not counts:
                continue
            for name, share in {_TOTAL: (loss.value.item(), 0.0), **loss.metrics}.items():
                join(shares, name, share)
        norm = self._optimiser.gather(settings.clip or math.inf)
        shares = self._processes.add(shares)
        total = shares.pop(_TOTAL)[0]
        if step == 0 and not math.isfinite(total):
            raise LearnerError(
                f"the loss of {self.policy.source} itself is {total}, before any step: its weights "
                "are damaged, or computing in bfloat16 overflowed; start from another model"
            )
        if not math.isfinite(norm) or not math.isfinite(total):
            raise LearnerError(
                f"step {step + 1}: loss {total}, gradient norm {norm}: training diverged; "
                f"lower the learning rate (lr = {settings.lr}) or lengthen the warm-up"
            )
        self._optimiser.move()
        means = {
            name: value / weight if weight else value for name, (value, weight) in shares.items()
        }
        return {"loss": total, "grad_norm": norm, "lr": rate} | means

    def _parts(self, batch: Sequence[Item]) -> list[list[Item]]:
        """The micro-batches of a step."""
        budget, objective = self.settings.micro_tokens, self._objective
        if self._processes.size > 1:  # a part for each at least, where there are so many items
            even = -(-sum(map(objective.tokens, batch)) // self._processes.size)
            budget = min(budget, even)
        kinds: dict[Hashable, list[Item]] = {}
        for item in batch:
            kinds.setdefault(objective.kind(item), []).append(item)
        if self.policy.packed:
            cut = (packed_batches(k, budget, cost=objective.tokens) for k in kinds.values())
        else:
            cut = (micro_batches(k, budget, width=objective.width) for k in kinds.values())
        return [part for parts in cut for part in parts]

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _candidate(self, step: int) -> Path:
        return self._work / f"step-{step}"

    def _best(self) -> tuple[int, float]:
        """The earliest of the best evaluations."""
        return max(self._dev, key=lambda entry: (entry[1], -entry[0]))

    def _evaluate(self, step: int, evaluate: Evaluate) -> None:
        reward, first = 0.0, self._processes.first
        with atomic_directory(self._candidate(step)) if first else nullcontext() as draft:
            self._write(draft)
        if first:
            reward = evaluate(step, str(self._candidate(step)))
        self._dev.append((step, self._processes.told(reward)))
        if not self._cadence.enabled:
            self._prune()

    def _out_of_patience(self) -> bool:
        since = [step for step, _ in self._dev if step > self._best()[0]]
        return len(since) >= self.settings.patience

    def _prune(self) -> None:
        """Keep the best candidate alone. A checkpoint may need an older one until the next."""
        best = self._best()[0] if self._dev else 0
        for step, _ in self._dev:
            if step != best and self._processes.first:
                shutil.rmtree(self._candidate(step), ignore_errors=True)

    def _save_checkpoint(self, step: int, metrics: dict[str, float]) -> None:
        self._cadence.begin()
        tensors = self._gathered()
        if self._processes.first:
            state = State(step=step, fingerprint=self._fingerprint, metrics=metrics, dev=self._dev)
            save_checkpoint(self._checkpoint, state, tensors)
        self._processes.wait()
        self._cadence.end()
        self._prune()

    def _resume(self) -> tuple[int, dict[str, float]]:
        """Steps already done and their metrics; (0, {}) where nothing can be resumed."""
        try:
            if self._processes.first:
                mend(self._checkpoint)
        except OSError as error:
            raise storage_error(error, self._checkpoint) from error
        self._processes.wait()
        state = read_state(self._checkpoint)
        self._processes.wait()  # all have read, before the first may clear
        if state is None or state.fingerprint != self._fingerprint:
            if self._processes.first:
                self.clear()
            return 0, {}
        load_checkpoint(
            self._checkpoint, weights=self._optimiser.parameters, optimiser=self._optimiser.adam
        )
        self._dev = list(state.dev)
        if self._dev and not (self._candidate(self._best()[0]) / "config.json").is_file():
            raise CheckpointCorrupt(
                f"{self._candidate(self._best()[0])} is gone, the best policy so far of the run in "
                f"{self._checkpoint}. Delete {self._work} and run again: training then starts "
                "from its beginning"
            )
        return state.step, dict(state.metrics)

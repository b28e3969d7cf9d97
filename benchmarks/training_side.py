"""Our side of `training`: one run of the training loop in a process of its own.

    python -m rollwave.benchmarks.training_side JOB.json        prints one line of JSON

Seconds are CPU seconds of the loop, with the reference pass before it; loading the model is
not counted on either side, trying whether it can be packed is not either.

Not here: repeats, spread and comparison (`training`).
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..learners.base import Sample
from ..learners.settings import DpoSettings, TrainingSettings

if TYPE_CHECKING:
    from ..learners.model.policy import Policy
    from ..learners.preferences.samples import PairSample
    from ..learners.training.objective import Objective

Job = dict[str, Any]


def sample(name: str, ids: Sequence[int], mask: Sequence[int]) -> Sample:
    """One sequence of a job."""
    return Sample(name, ids, bytes(mask))


def settings_of(job: Job) -> TrainingSettings:
    """The same optimiser, schedule and batches as the other side's."""
    return TrainingSettings(
        lr=job["lr"],
        epochs=job["epochs"],
        batch=job["batch"],
        schedule="linear",
        seed=job["seed"],
        device="cpu",
        checkpoint_seconds=0,
        **job.get("options", {}),
    )


def samples_of(job: Job) -> list[Sample]:
    """The items of an `sft` job."""
    return [sample(str(n), i["ids"], i["mask"]) for n, i in enumerate(job["items"])]


def pairs_of(job: Job) -> list[PairSample]:
    """The items of a `dpo` job."""
    from ..learners.preferences.samples import PairSample

    def side(n: int, item: Job, which: str) -> Sample:
        ids, prompt = item[which], item["prompt"]
        return sample(f"{n}/{which}", ids, [0] * prompt + [1] * (len(ids) - prompt))

    return [
        PairSample(side(n, item, "chosen"), side(n, item, "rejected"))
        for n, item in enumerate(job["items"])
    ]


def objective_of(job: Job) -> tuple[Objective[Any], list[Any]]:
    """What is minimised, and over what."""
    from ..learners.preferences.objective import Preference
    from ..learners.training.objective import Likelihood

    if job["kind"] == "sft":
        return Likelihood(), list(samples_of(job))
    chosen = DpoSettings(beta=job["beta"], training=settings_of(job))
    return Preference(chosen), list(pairs_of(job))


def train(job: Job, work: Path) -> dict[str, Any]:
    """One run."""
    from ..learners.training.loop import Training

    objective, items = objective_of(job)
    spent: list[float] = []
    plain = objective.prepare

    def timed(policy: Policy, items: Sequence[Any]) -> Sequence[Any]:
        began = time.process_time()
        ready = plain(policy, items)
        spent.append(time.process_time() - began)
        return ready

    objective.prepare = timed  # type: ignore[method-assign]
    training = Training(
        items,
        settings_of(job),
        objective=objective,
        start=job["model"],
        work=work,
        fingerprint="benchmark",
    )
    losses: list[float] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    training.run(lambda *told: losses.append(told[2]["loss"]))
    cpu = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu_seconds": cpu + sum(spent),
        "reference_seconds": sum(spent),
        "losses": losses,
        "peak_mib": peak / 1024,
        "before_mib": before / 1024,
        "packed": training.policy.packed,
    }


def main() -> None:
    """Do the job that the file describes."""
    from ..learners.model.policy import configure_threads

    configure_threads(1)
    job: Job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as work:
        figures = train(job, Path(work))
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()

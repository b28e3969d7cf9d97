"""Losses and gradients of one batch, ours and TRL's: SFT, DPO and GRPO with three reductions.

    python -m rollwave.benchmarks.parity          compares, and writes tests/golden/trl.json

A gradient is told by two numbers a parameter: its norm, and its product with a fixed wave.

Invariant: a batch and its models follow from seeds alone, so that the numbers that TRL gave
once can be compared with ours wherever the tests run.

Not here: speed and memory (`training`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .training import SIDE, answer, end_of, install_trl
from .training_job import WORDS, Job
from .training_side import pairs_of, samples_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..learners.model.policy import Policy

KINDS: Final = ("sft", "dpo", "grpo", "dapo", "dr_grpo")
REDUCTIONS: Final = {
    "grpo": "seq_mean_token_mean",
    "dapo": "token_mean",
    "dr_grpo": "seq_mean_token_sum_norm",
}
"""Names of TRL's GRPO losses, and of our reductions."""
GOLDEN: Final = Path(__file__).resolve().parent.parent / "tests" / "golden" / "trl.json"

_WORDS: Final = 30
_LONGEST: Final = 24

Numbers = dict[str, Any]
"""`loss`, and `gradients`: name → [norm, product]."""


def make_jobs(folder: Path) -> dict[str, Job]:
    """The batches by kind; the two models are written into the folder."""
    from ..learners.model.tiny import make_tiny_model

    models = [
        str(
            make_tiny_model(
                folder / f"model-{seed}",
                vocabulary=WORDS[:_WORDS],
                width=32,
                layers=2,
                heads=2,
                context=64,
                seed=seed,
            )
        )
        for seed in (0, 1)
    ]
    draw = random.Random(0)
    common: Job = {
        "model": models[0],
        "batch": 5,
        "per_device": 5,
        "epochs": 1,
        "seed": 0,
        "lr": 1e-3,
        "context": 64,
        "options": {"max_grad_norm": 0.0},
    }
    sft = common | {"kind": "sft", "items": [_sample(draw, n) for n in (9, 24, 3, 17, 11)]}
    eos = end_of(Path(models[0]))
    pairs = [_pair(draw, eos, *sizes) for sizes in ((4, 9, 13), (2, 20, 5), (6, 8, 8), (3, 4, 21))]
    dpo = common | {"kind": "dpo", "items": pairs, "batch": 4, "per_device": 4, "beta": 0.3}
    jobs = {"sft": sft, "dpo": dpo | {"reference": models[1]}}
    rollouts = [_rollout(draw, *sizes) for sizes in ((5, 12), (3, 20), (8, 6), (2, 15))]
    for name in REDUCTIONS:
        clip: Job = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.04, "longest": _LONGEST}
        jobs[name] = common | clip | {"kind": "grpo", "loss_type": name, "items": rollouts}
    return jobs


def ours(job: Job) -> Numbers:
    """Loss and gradients of our objectives, over the whole batch at once."""
    from ..learners.model.policy import Policy
    from ..learners.preferences.objective import Preference
    from ..learners.settings import DpoSettings
    from ..learners.training.objective import Likelihood

    policy = Policy.load(job["model"], device="cpu")
    objective: Any
    items: Sequence[Any]
    if job["kind"] == "sft":
        objective, items = Likelihood(), samples_of(job)
    elif job["kind"] == "dpo":
        settings = DpoSettings(beta=job["beta"])
        objective, items = Preference(settings, reference=job["reference"]), pairs_of(job)
        items = objective.prepare(policy, items)
    else:
        objective, items = _group_gradient(job)
    loss = objective.loss(policy, items, objective.denominator(items)).value
    loss.backward()
    return numbers(loss.item(), _gradients(policy))


def theirs(job: Job, python: Path) -> Numbers:
    """The same from TRL, in its own environment."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        gradients = Path(folder) / "gradients.safetensors"
        asked = job | {"gradients": str(gradients)}
        asked = _padded(asked) if job["kind"] == "grpo" else asked
        figures = answer([str(python), str(SIDE)], asked)
        found = numbers(figures["losses"][0], load_file(gradients))
    return found | {"versions": figures["versions"]}


def numbers(loss: float, gradients: Mapping[str, Tensor]) -> Numbers:
    """A loss and gradients in a few digits."""
    import torch

    told = {}
    for name, gradient in sorted(gradients.items()):
        flat = gradient.double().flatten()
        wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        told[name] = [float(flat.norm()), float(flat @ wave)]
    return {"loss": loss, "gradients": told}


def furthest(one: Numbers, other: Numbers) -> float:
    """Largest difference of a loss or of a number that tells a gradient.

    Relative to the largest gradient's norm, so that it is one measure for all parameters.
    """
    a, b = one["gradients"], other["gradients"]
    if a.keys() != b.keys():
        return math.inf
    scale = max(norm for norm, _ in b.values())
    gaps = [abs(x - y) / scale for name in b for x, y in zip(a[name], b[name], strict=True)]
    return float(max(abs(one["loss"] - other["loss"]), *gaps))


def _sample(draw: random.Random, n: int) -> Job:
    return {"ids": _ids(draw, n), "mask": [0] + [draw.randint(0, 1) for _ in range(n - 2)] + [1]}


def _pair(draw: random.Random, eos: int, prompt: int, chosen: int, rejected: int) -> Job:
    begin = _ids(draw, prompt)
    sides = {"chosen": begin + _ids(draw, chosen), "rejected": begin + _ids(draw, rejected)}
    return {"prompt": prompt, **{side: [*ids, eos] for side, ids in sides.items()}}


def _rollout(draw: random.Random, prompt: int, written: int) -> Job:
    """A rollout of several turns, with log-probs near those of a fresh model."""
    near = -math.log(_WORDS + 5)
    return {
        "prompt": _ids(draw, prompt),
        "completion": _ids(draw, written),
        "mask": [1] + [int(draw.random() < 0.7) for _ in range(written - 1)],
        "advantage": draw.uniform(-1, 1),
        "old": [near + draw.gauss(0, 0.3) for _ in range(written)],
        "reference": [near + draw.gauss(0, 0.3) for _ in range(written)],
    }


def _ids(draw: random.Random, n: int) -> list[int]:
    return [draw.randint(1, _WORDS) for _ in range(n)]


def _padded(job: Job) -> Job:
    """What TRL takes: prompts padded at the left, completions at the right."""
    items = job["items"]
    before = max(len(item["prompt"]) for item in items)
    after = max(len(item["completion"]) for item in items)

    def left(values: list[Any]) -> list[Any]:
        return [0] * (before - len(values)) + values

    def right(values: list[Any]) -> list[Any]:
        return values + [0] * (after - len(values))

    return job | {
        "prompt_ids": [left(item["prompt"]) for item in items],
        "prompt_mask": [left([1] * len(item["prompt"])) for item in items],
        "completion_ids": [right(item["completion"]) for item in items],
        "completion_mask": [right([1] * len(item["completion"])) for item in items],
        "tool_mask": [right(item["mask"]) for item in items],
        "advantages": [item["advantage"] for item in items],
        "old_per_token_logps": [right(item["old"]) for item in items],
        "ref_per_token_logps": [right(item["reference"]) for item in items],
    }


def _group_gradient(job: Job) -> tuple[Any, list[Any]]:
    """Our objective with everything settled as the job says."""
    import torch

    from ..learners.base import Sample
    from ..learners.gradients.grpo import GroupGradient
    from ..learners.gradients.rollouts import Rollout, Rollouts, Target
    from ..learners.settings import GrpoSettings
    from ..learners.settings.policy_gradient import KlSettings, SurrogateSettings

    items = []
    for number, item in enumerate(job["items"]):
        prompt = len(item["prompt"])
        ids = item["prompt"] + item["completion"]
        mask = [0] * prompt + item["mask"]
        zero = torch.zeros(len(ids))

        def spread(values: list[float], prompt: int = prompt) -> Tensor:
            return torch.tensor([0.0] * prompt + values)

        carried = torch.tensor(mask, dtype=torch.bool)
        target = Target(
            mask=carried,
            old=spread(item["old"]),
            advantages=zero + item["advantage"],
            weights=zero + 1,
            reference=spread(item["reference"]),
            values=zero,
            returns=zero,
            decisions=carried,
        )
        rollout = Rollout(
            sample=Sample(str(number), ids, bytes(mask)),
            reward=0.0,
            rewards=zero,
            turns=zero.long(),
            group=("parity", "0"),
            observations=(),
            temperature=1.0,
            overlong=False,
            target=target,
        )
        items.append(rollout)
    name = job["loss_type"]
    settings = GrpoSettings(
        loss=SurrogateSettings(
            clip_low=job["epsilon"],
            clip_high=job["epsilon_high"],
            dual_clip=0.0,
            reduction=REDUCTIONS[name],  # type: ignore[arg-type]
            norm=float(job["longest"]) if name == "dr_grpo" else 0.0,
        ),
        kl=KlSettings(where="loss", estimator="k3", coefficient=job["beta"]),
    )
    ready = Rollouts(items, {}, {})
    return GroupGradient(settings, ready, start=job["model"], reference=job["model"]), items


def _gradients(policy: Policy) -> dict[str, Tensor]:
    return {n: p.grad for n, p in policy.trainable().items() if p.grad is not None}


def main() -> None:
    """Compare every kind, and write TRL's numbers down."""
    parser = argparse.ArgumentParser(description="Losses and gradients, ours and TRL's.")
    parser.add_argument("--bench", type=Path, default=Path(".bench/trl"))
    parser.add_argument("--out", type=Path, default=GOLDEN)
    options = parser.parse_args()
    python = install_trl(options.bench)
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, job in make_jobs(Path(folder)).items():
            golden[kind] = theirs(job, python)
            gap = furthest(ours(job), golden[kind])
            sys.stdout.write(f"{kind}: loss {golden[kind]['loss']:.6f}, furthest {gap:.2e}\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

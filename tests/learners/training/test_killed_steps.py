"""An evolution step of every algorithm, killed for real, ends as if it had not been.

`killed_steps` does it, in children of one warm process. Not here: every single file operation
of one training (`test_resume`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="evolution steps train a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.store import Store  # noqa: E402
from rollwave.engine.trajectory import Outcome, Turn  # noqa: E402
from rollwave.learners.distributed import Order  # noqa: E402
from rollwave.learners.settings import (  # noqa: E402
    DpoSettings,
    EtoSettings,
    EvolSettings,
    GrpoSettings,
    LoraSettings,
    PpoSettings,
    RejectionSettings,
    TrainingSettings,
)
from rollwave.learners.settings.policy_gradient import (  # noqa: E402
    GradientTraining,
    ImportanceSettings,
    KlSettings,
)

SCRIPT = Path(__file__).with_name("killed_steps.py")
TASKS = (["at 1 door"], ["at 2 door", "wall 3"], ["key", "at 4 wall", "door"])
QUICK = {"device": "cpu", "lr": 3e-3, "checkpoint_every": 1, "schedule": "cosine", "clip": 1.0}
LORA = LoraSettings(rank=2)


def training(**fields) -> TrainingSettings:
    return TrainingSettings(**(QUICK | {"max_steps": 6, "batch": 4} | fields))


def gradients(**fields) -> GradientTraining:
    return GradientTraining(**(QUICK | {"epochs": 2, "batch": 6} | fields))


LEASH = KlSettings(where="reward", target=1e-3, coefficient=0.1)
LEARNERS = {
    "clone": training(),
    "clone-lora": training(lora=LoraSettings(rank=2, dropout=0.2)),
    "agent_evol": EvolSettings(training=training(), merge="cumulative", thresholds={"*": 0.4}),
    "rft": RejectionSettings(training=training(carry_optimiser=True), thresholds={"*": 0.4}),
    "dpo": DpoSettings(training=training(), threshold=0.1),
    "dpo-lora": DpoSettings(training=training(lora=LORA), threshold=0.1, reference="base_bc"),
    "dpo-two-samples": DpoSettings(training=training(), pairing="two_samples", threshold=0.1),
    "eto": EtoSettings(training=training(), min_pairs=1, nll=0.1),
    "eto-mixture": EtoSettings(training=training(), contrast="mixture", min_pairs=1),
    "eto-self-play": EtoSettings(training=training(), self_play=True, min_pairs=1),
    "eto-opening": EtoSettings(
        opening="rejection", opening_training=training(), thresholds={"*": 0.4}
    ),
    "grpo": GrpoSettings(training=gradients(), kl=KlSettings(where="loss", target=1e-3)),
    "grpo-lora": GrpoSettings(training=gradients(lora=LORA), estimator="rloo"),
    "gigpo": GrpoSettings(training=gradients(), estimator="gigpo", discount=0.9),
    "reinforce": GrpoSettings(
        training=gradients(),
        estimator="reinforce_pp",
        importance=ImportanceSettings(correction="token", mask="icepop"),
    ),
    "ppo": PpoSettings(training=gradients(), kl=LEASH, critic_warmup=2),
    "ppo-head": PpoSettings(training=gradients(), critic="head", level="turn", critic_warmup=2),
    "ppo-lora": PpoSettings(training=gradients(lora=LORA), critic_warmup=2),
}
COMMON = ("agent_evol", "dpo-lora", "grpo-lora", "ppo")
"""Those that together pass through every kind of state; the others are for the slow suite."""


@pytest.fixture(scope="module")
def sealed(tiny, make, sample, tmp_path_factory) -> list[str]:
    """On disk: the experts' wave, and two of the agent's, the newer one with a branch in it."""

    def expert(task: int):
        seen = zip(TASKS[task], ("up", "right", "left"), strict=False)
        return make.expert(task, turns=tuple(Turn(sight, word, word, 0.0) for sight, word in seen))

    taught = [expert(task) for task in range(3)]
    waves = [
        [
            replace(t, reward=(t.attempt + 1) / 8, outcome=Outcome.SUCCESS)
            for t in sample(tiny, TASKS, lambda *_: 0.0, attempts=6, wave=number)
        ]
        for number in (1, 2)
    ]
    off = replace(taught[2].turns[1], completion="down", action="down")
    failed = {"outcome": Outcome.FAILURE, "reward": 0.0, "versions": (1, 1)}
    turns = (taught[2].turns[0], off)
    waves[1].append(make.attempt(2, 2, wave=2, id="branch", turns=turns, **failed))
    with Store.open(tmp_path_factory.mktemp("evidence") / "run") as store:
        return [
            str(store.seal(number, max(0, number - 1), wave).path)
            for number, wave in enumerate([taught, *waves])
        ]


def job(name: str, sealed: list[str], tiny: str, folder: Path, operations: int) -> dict:
    """One of `killed_steps`. Policy gradients learn a second time, with what they carry."""
    settings = LEARNERS[name]
    starts = {"last": tiny, "base_bc": tiny, "pretrained": tiny}
    order = Order(out=str(folder / name), starts=starts, experts=tuple(sealed[:1]))
    if isinstance(settings, TrainingSettings):
        return {"name": name, "order": replace(order, clone=settings), "operations": operations}
    order = replace(order, learner=settings)
    first = replace(order, waves=(sealed[1],), number=1)
    if name == "eto-opening":
        return {"name": name, "order": first, "operations": operations}
    waves = tuple(sealed[1:] if settings.history == "all" else sealed[2:])
    order = replace(order, waves=waves, number=2)
    twice = first if isinstance(settings, GrpoSettings | PpoSettings) else None
    return {"name": name, "order": order, "first": twice, "operations": operations}


def killed(jobs: list[dict], folder: Path, seed: int) -> list[dict]:
    """Run the jobs in a process of their own; what became of them."""
    file = folder / "jobs.json"
    file.write_bytes(msgspec.json.encode(jobs))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), str(seed)],
        capture_output=True,
        text=True,
        timeout=1_200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(said: list[dict], names, operations: int) -> None:
    assert [one["name"] for one in said] == list(names)
    for one in said:
        assert one["differ"] == [], one
        assert one["left"] == [], one
        # Dead before it could clear its checkpoint, it goes on from the last one.
        assert one["steps"] > 3
        assert one["resumed"][0] == one["steps"] - 1
        assert one["deaths"] > operations
        assert len(one["resumed"]) == 1 + operations


def test_kill_9_changes_nothing_of_what_a_step_ends_with(tiny, sealed, tmp_path):
    jobs = [job(name, sealed, tiny, tmp_path, 0) for name in COMMON]
    check(killed(jobs, tmp_path, seed=1), COMMON, 0)


@pytest.mark.slow
@pytest.mark.timeout(1_300)
def test_kill_9_at_drawn_file_operations_of_every_algorithm(tiny, sealed, tmp_path):
    jobs = [job(name, sealed, tiny, tmp_path, 6) for name in LEARNERS]
    said = killed(jobs, tmp_path, seed=2)
    check(said, LEARNERS, 6)
    assert len({at for one in said for at in one["resumed"]}) > 3  # at all stages of a training

"""Two processes that hold half of the layers each train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="layers are torch's")
pytestmark = pytest.mark.learn

from rollwave.engine.store import Store  # noqa: E402
from rollwave.engine.trajectory import Outcome  # noqa: E402
from rollwave.learners.distributed import Order, carry_out  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.settings import (  # noqa: E402
    EtoSettings,
    GrpoSettings,
    LoraSettings,
    PpoSettings,
    TrainingSettings,
)
from rollwave.learners.settings.policy_gradient import (  # noqa: E402
    GradientTraining,
    KlSettings,
)

QUICK: dict[str, Any] = {"max_steps": 3, "batch": 3, "device": "cpu", "lr": 1e-3, "shard": True}
SMALL: dict[str, Any] = QUICK | {"micro_tokens": 8}
"""A micro-batch for each sample: three of them, which two processes cannot share evenly."""
TOLERANCE = 2e-6
"""Of weights and losses in float32: gradients are summed in another order, which moves their
last digits, and three steps of AdamW by 1e-3 pass that on. Any larger error is one."""
BFLOAT16 = 2e-2
"""Of losses in bfloat16, which has 8 bits: layers are gathered in it, norms too."""


@dataclass
class Waves:
    """What is learned from, on disk."""

    experts: str
    failures: str
    sampled: str


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


def killed(step: int, steps: int, metrics: Any) -> None:
    if step == 3:
        raise Killed


@pytest.fixture(scope="module")
def waves(tiny, make, sample, tmp_path_factory) -> Waves:
    actions = ("up", "up right left", "down down", "left up down right up")
    lost = ("down", "down left", "left left left left", "left up")
    experts = [make.expert(i, actions[i % 4]) for i in range(6)]
    failures = [
        make.attempt(i, 0, lost[i % 4], reward=0.0, outcome=Outcome.FAILURE) for i in range(6)
    ]
    tasks = (["at 1 door"], ["at 2 door", "wall 3"], ["key", "at 4 wall", "door"])
    sampled = sample(tiny, tasks, lambda _, words: len(words[-1]) % 2, attempts=6)
    # Two temperatures cannot share a pass, and some parts have both if nobody sees to it.
    sampled = [
        msgspec.structs.replace(t, temperature=0.5) if t.attempt % 3 == 0 else t for t in sampled
    ]
    out = tmp_path_factory.mktemp("waves")
    with Store.open(out) as store:
        sealed = [store.seal(n, 0, t).path for n, t in enumerate((experts, failures, sampled))]
    return Waves(*map(str, sealed))


def orders(tiny: str, other: str, waves: Waves) -> dict[str, Order]:
    """By name: what one process and two are to do alike."""
    starts = {"last": tiny, "base_bc": tiny, "pretrained": tiny}

    def cloning(**settings: Any) -> Order:
        clone = TrainingSettings(**(SMALL | settings))
        return Order(out="", starts=starts, clone=clone, experts=(waves.experts,))

    def gradient(kind: Any, **settings: Any) -> Order:
        training = GradientTraining(**SMALL)
        learner = kind(training=training, **settings)
        moved = {**starts, "base_bc": other}
        return Order(out="", starts=moved, learner=learner, waves=(waves.sampled,))

    pairs = EtoSettings(training=TrainingSettings(**SMALL), min_pairs=1, beta=0.5)
    return {
        "cloning": cloning(carry_optimiser=True),
        "wide": cloning(micro_tokens=4_096),
        "lora": cloning(lora=LoraSettings(rank=2)),
        "again": cloning(gradient_checkpointing=True),
        "half": cloning(dtype="bfloat16"),
        "half_lora": cloning(
            dtype="bfloat16", lora=LoraSettings(rank=2), gradient_checkpointing=True
        ),
        "eto": Order(
            out="",
            starts=starts,
            learner=pairs,
            experts=(waves.experts,),
            waves=(waves.failures,),
        ),
        "grpo": gradient(GrpoSettings, kl=KlSettings(where="loss", coefficient=0.1)),
        "ppo": gradient(PpoSettings, critic_warmup=3),
        "ppo_head": gradient(PpoSettings, critic="head", critic_warmup=3),
    }


@dataclass
class Runs:
    """What came of the orders: in one process, and in two."""

    here: Path
    there: Path
    alone: dict[str, list[dict[str, float]]]
    """Metrics of every step in one process, by order."""

    def said(self, name: str, rank: int = 0) -> Any:
        return msgspec.json.decode((self.there / f"{name}-{rank}.json").read_bytes())


@pytest.fixture(scope="module")
def runs(tiny, waves, tmp_path_factory) -> Runs:
    """All orders in one process, then in two that torchrun starts once."""
    place = tmp_path_factory.mktemp("sharded")
    here, there = place / "here", place / "there"
    there.mkdir()
    other = Order(
        out=str(place / "other"),
        starts={"last": tiny},
        clone=TrainingSettings(max_steps=2, device="cpu", lr=3e-3),
        experts=(waves.experts,),
    )
    carry_out(other)
    found = Runs(here, there, {})
    jobs: list[dict[str, Any]] = []
    for name, order in orders(tiny, other.out, waves).items():
        steps = found.alone[name] = []
        alone = msgspec.structs.replace(order, out=str(here / name))
        carry_out(alone, lambda _n, _of, metrics, into=steps: into.append(dict(metrics)))
        both = msgspec.structs.replace(order, out=str(there / name))
        jobs.append({"name": name, "order": both})
    # One process is killed in its third step, and two go on; and the other way round.
    going_on = long_order(tiny, waves, there / "goes_on", shard=False)
    with pytest.raises(Killed):
        carry_out(going_on, killed)
    jobs.append({"name": "goes_on", "order": long_order(tiny, waves, there / "goes_on")})
    ended = long_order(tiny, waves, there / "ended")
    jobs.append({"name": "ended", "order": ended, "dies": 3})
    file = there / "jobs.json"
    file.write_bytes(msgspec.json.encode(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = Path(__file__).with_name("sharded_runs.py")
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(script), str(file)],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return found


def long_order(tiny: str, waves: Waves, out: Path, *, shard: bool = True) -> Order:
    settings = QUICK | {"max_steps": 4, "checkpoint_every": 2, "shard": shard}
    clone = TrainingSettings(**settings)
    return Order(out=str(out), starts={"last": tiny}, clone=clone, experts=(waves.experts,))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory, adapters, critic and moments among them."""
    from safetensors.torch import load_file

    return {
        f"{file.relative_to(path)}:{name}": value
        for file in sorted(path.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def farthest(one: Path, two: Path) -> float:
    """The largest difference of any two of their tensors, which are the same ones."""
    a, b = tensors(one), tensors(two)
    assert {n: (t.shape, t.dtype) for n, t in a.items()} == {
        n: (t.shape, t.dtype) for n, t in b.items()
    }
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


EXACT = ("cloning", "wide", "lora", "again", "eto", "grpo", "ppo", "ppo_head")


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_with_half_of_the_layers_end_where_one_does(runs, name):
    told = runs.said(name)["steps"]
    assert len(told) == len(runs.alone[name]) == 3
    for there, here in zip(told, runs.alone[name], strict=True):
        assert there.keys() == here.keys()
        for key, value in here.items():
            assert there[key] == pytest.approx(value, rel=1e-4, abs=TOLERANCE), key
    assert farthest(runs.here / name, runs.there / name) < TOLERANCE


@pytest.mark.parametrize("name", ["half", "half_lora"])
def test_bfloat16_ends_as_near_as_its_digits_go(runs, name):
    for there, here in zip(runs.said(name)["steps"], runs.alone[name], strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=BFLOAT16)
        assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=5 * BFLOAT16)
    # Steps of AdamW are lr at most, and bfloat16 may turn one round: 3 steps, and merging.
    assert farthest(runs.here / name, runs.there / name) < 0.02
    assert runs.said(name)["spread"]


@pytest.mark.parametrize("name", EXACT)
def test_a_process_holds_half_of_the_layers_between_steps(runs, name):
    """Of parameters, gradients and moments alike."""
    first, second = runs.said(name), runs.said(name, 1)
    assert first["total"] == second["total"] > 0
    assert first["held"] + second["held"] == first["total"]
    assert 0.45 < first["held"] / first["total"] < 0.55
    assert all(".layers." in n for n in first["spread"])
    assert any(n.startswith("critic.") for n in first["spread"]) == (name == "ppo")


@pytest.mark.parametrize("name", EXACT)
def test_both_make_as_many_passes(runs, name):
    assert runs.said(name)["passes"] == runs.said(name, 1)["passes"]
    assert all(passes > 0 for passes in runs.said(name)["passes"])


def test_an_idle_pass_is_among_them(runs):
    """Three micro-batches: one process makes two, and so does the other."""
    assert runs.said("cloning")["passes"] == [2, 2, 2]


def test_what_one_process_began_two_finish_and_the_other_way_round(runs, tiny, waves, tmp_path):
    carry_out(long_order(tiny, waves, tmp_path / "straight"))
    assert runs.said("goes_on")["metrics"]["resumed"] == 2
    assert farthest(tmp_path / "straight", runs.there / "goes_on") < TOLERANCE
    ended = long_order(tiny, waves, runs.there / "ended", shard=False)
    assert runs.said("ended")["passes"] == [1, 1]  # it was killed in the third step
    assert carry_out(ended).metrics["resumed"] == 2
    assert farthest(tmp_path / "straight", runs.there / "ended") < TOLERANCE


def test_what_was_saved_is_loaded_as_any_model(runs, tiny):
    one, two = (Policy.load(path / "cloning", device="cpu") for path in (runs.here, runs.there))
    assert one.trainable().keys() == two.trainable().keys()
    adapters = LoraSettings(adapter=str(runs.there / "lora" / "adapter"))
    assert len(Policy.load(tiny, lora=adapters, device="cpu").trainable()) == 28


def test_alone_nothing_is_sharded(tiny):
    policy = Policy.load(tiny, device="cpu", shard=True)
    assert not policy.sharded
    assert all(type(p) is torch.nn.Parameter for p in policy.trainable().values())

"""What an evolution step takes up of the one before, and what not: moments, leash, adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="policy gradients train a torch model")
pytest.importorskip("peft", reason="adapters are made by peft")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import CheckpointCorrupt  # noqa: E402
from rollwave.learners.algorithms import evolve  # noqa: E402
from rollwave.learners.base import Evidence  # noqa: E402
from rollwave.learners.cloning.behaviour_cloning import clone  # noqa: E402
from rollwave.learners.settings import (  # noqa: E402
    GrpoSettings,
    LoraSettings,
    PpoSettings,
    TrainingSettings,
)
from rollwave.learners.settings.policy_gradient import (  # noqa: E402
    GradientTraining,
    KlSettings,
)

TASKS = (["at 1 door"], ["at 2 door", "wall 3"])
MOMENTS = "training/optimiser.safetensors"
FULL = GradientTraining(device="cpu", lr=5e-3, batch=6)
LORA = GradientTraining(device="cpu", lr=5e-3, batch=6, lora=LoraSettings(rank=2))


def by_word(task: int, words: list[str]) -> float:
    return sum(len(word) % 2 == 0 for word in words) / len(words)


def learn(start, wave, out: Path, rules, base: str = "") -> dict:
    starts = {"last": str(start), "base_bc": base or str(start), "pretrained": base or str(start)}
    return dict(evolve(rules, Evidence(starts=starts, waves=[wave]), out=str(out)).metrics)


def said(path: Path) -> dict:
    return json.loads((path / "training.json").read_text())


@pytest.fixture(scope="module")
def wave(tiny, sample) -> list:
    return sample(tiny, TASKS, by_word, attempts=6)


@pytest.mark.parametrize(
    ("before", "after", "carried"),
    [
        (GrpoSettings(training=FULL), GrpoSettings(training=FULL), 1.0),
        (
            PpoSettings(training=FULL, critic="head", critic_warmup=1),
            PpoSettings(training=FULL, critic="head", critic_warmup=1),
            1.0,
        ),
        (
            PpoSettings(training=FULL, critic="head", critic_warmup=1),
            GrpoSettings(training=FULL),
            0.0,
        ),
        (GrpoSettings(training=FULL), GrpoSettings(training=LORA), 0.0),
        (GrpoSettings(training=LORA), GrpoSettings(training=FULL), 0.0),
        (GrpoSettings(training=LORA), GrpoSettings(training=LORA), 0.0),
    ],
    ids=["grpo", "ppo", "ppo to grpo", "full to lora", "lora to full", "lora to fresh lora"],
)
def test_moments_go_on_where_the_same_is_trained(tiny, wave, tmp_path, before, after, carried):
    """A change was fatal, and fresh adapters took up the moments of those merged away."""
    first = learn(tiny, wave, tmp_path / "a", before)
    assert first["moments_carried"] == 0
    assert (tmp_path / "a" / MOMENTS).is_file()
    assert learn(tmp_path / "a", wave, tmp_path / "b", after)["moments_carried"] == carried
    assert said(tmp_path / "b")["metrics"]["moments_carried"] == carried


def test_adapters_that_go_on_take_their_own_moments(tiny, wave, tmp_path):
    learn(tiny, wave, tmp_path / "a", GrpoSettings(training=LORA))
    on = LoraSettings(adapter=str(tmp_path / "a" / "adapter"))
    rules = GrpoSettings(training=GradientTraining(device="cpu", batch=6, lora=on))
    assert learn(tiny, wave, tmp_path / "b", rules)["moments_carried"] == 1
    with_moments = said(tmp_path / "b")
    assert with_moments["moments"]
    (tmp_path / "a" / MOMENTS).unlink()
    assert learn(tiny, wave, tmp_path / "c", rules)["moments_carried"] == 0
    assert said(tmp_path / "c")["moments"] == ""
    assert said(tmp_path / "c")["adapter"] == with_moments["adapter"] != ""


def test_damaged_moments_are_an_error_that_says_what_to_do(tiny, wave, tmp_path):
    rules = GrpoSettings(training=FULL)
    learn(tiny, wave, tmp_path / "a", rules)
    file = tmp_path / "a" / MOMENTS
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointCorrupt, match=r"Delete .* training\.carry_optimiser = false"):
        learn(tmp_path / "a", wave, tmp_path / "b", rules)
    file.unlink()  # what the sentence says
    assert learn(tmp_path / "a", wave, tmp_path / "b", rules)["moments_carried"] == 0


def test_an_adapted_coefficient_goes_on_only_where_it_is_adapted(tiny, wave, tmp_path):
    """It once ruled over the settings of a step that asked for a fixed one."""

    def leash(coefficient: float, target: float) -> GrpoSettings:
        kl = KlSettings(where="loss", coefficient=coefficient, target=target, horizon=100.0)
        return GrpoSettings(training=FULL, kl=kl)

    learn(tiny, wave, tmp_path / "a", leash(0.5, 1e-6), tiny)
    left = json.loads((tmp_path / "a" / "training" / "kl.json").read_text())["coefficient"]
    assert left != 0.5
    for target, used in ((0.0, 0.001), (0.1, left)):
        out = tmp_path / str(target)
        metrics = learn(tmp_path / "a", wave, out, leash(0.001, target), tiny)
        assert metrics["kl_coefficient"] == used


@pytest.fixture(scope="module")
def adapters(tiny, make, tmp_path_factory) -> list[Path]:
    """Two directories of adapters of one base, which learned different things."""
    folder = tmp_path_factory.mktemp("adapters")
    made = []
    for name, actions in (("a", "up right"), ("b", "down left key")):
        settings = TrainingSettings(
            max_steps=6, batch=4, lr=5e-2, device="cpu", lora=LoraSettings(rank=2)
        )
        experts = [make.expert(i, actions) for i in range(4)]
        clone(experts, settings=settings, start=tiny, out=str(folder / name))
        made.append(folder / name / "adapter")
    return made


def test_the_kl_to_the_start_counts_the_adapters_that_go_on(tiny, wave, adapters, tmp_path):
    """The policy was taken for the reference, because the start's directory was the reference's."""
    copy = shutil.copytree(tiny, tmp_path / "copy")
    on = GradientTraining(device="cpu", batch=12, lora=LoraSettings(adapter=str(adapters[0])))
    rules = GrpoSettings(training=on, kl=KlSettings(where="loss"), zero_variance="keep")
    kl = [learn(tiny, wave, tmp_path / n, rules, b)["kl"] for n, b in (("s", tiny), ("c", copy))]
    assert kl[0] == kl[1] > 0.01


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


@pytest.mark.parametrize("changed", ["weights", "form"])
def test_a_run_does_not_resume_on_other_adapters(tiny, make, adapters, tmp_path, changed):
    mine = Path(shutil.copytree(adapters[0], tmp_path / "mine"))
    settings = TrainingSettings(
        max_steps=3,
        batch=4,
        lr=1e-3,
        checkpoint_every=1,
        device="cpu",
        lora=LoraSettings(adapter=str(mine)),
    )
    experts = [make.expert(i) for i in range(4)]

    def kill(step: int, total: int, metrics) -> None:
        if step == 2:
            raise Killed

    def train(out: str, progress=None) -> dict:
        report = clone(
            experts, settings=settings, start=tiny, out=str(tmp_path / out), progress=progress
        )
        return dict(report.metrics)

    train("before")
    with pytest.raises(Killed):
        train("m", kill)
    if changed == "weights":
        shutil.copy(adapters[1] / "adapter_model.safetensors", mine)
    else:
        form = json.loads((mine / "adapter_config.json").read_text())
        (mine / "adapter_config.json").write_text(json.dumps(form | {"lora_alpha": 64}))
    assert "resumed" not in train("m")
    assert said(tmp_path / "before")["adapter"] != said(tmp_path / "m")["adapter"]

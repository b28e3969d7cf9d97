"""What each algorithm says of its steps: the expected figures, and none that is no number.

Not here: what the figures are (tests beside each algorithm), and where they are kept (trackers).
"""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="an evolution step trains a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import ConfigError  # noqa: E402
from rollwave.engine.trajectory import Outcome, Turn  # noqa: E402
from rollwave.learners.algorithms import evolve  # noqa: E402
from rollwave.learners.base import Evidence  # noqa: E402
from rollwave.learners.cloning.behaviour_cloning import clone  # noqa: E402
from rollwave.learners.gradients.grpo import GroupGradient, comparable  # noqa: E402
from rollwave.learners.gradients.rollouts import rollouts_of  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
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
from rollwave.learners.settings.policy_gradient import GradientTraining, KlSettings  # noqa: E402
from rollwave.learners.training.optimiser import Optimiser  # noqa: E402
from rollwave.learners.training.processes import join  # noqa: E402

TASKS = (["at 1 door"], ["at 2 door", "wall 3"], ["key", "at 4 wall", "door"])
PLAIN = TrainingSettings(device="cpu", max_steps=2, batch=4)
GRADIENT = GradientTraining(device="cpu", batch=9, lr=1e-2)
LEASH = KlSettings(where="loss")

STEP = {"loss", "grad_norm", "lr", "entropy"}
WAVE = {"reward_mean", "reward_std", "success_rate", "turns", "trajectories", "staleness_mean"}
MISMATCH = {"logprob_mismatch", "mismatch_k3"}
CHOSEN = WAVE | MISMATCH | {"new"}
END = {"steps", "tokens", "seconds"}
CLONING = STEP | {"loss_tokens"}
PAIRS = STEP | {
    *("margin", "accuracy", "chosen_reward", "rejected_reward", "chosen_logprob"),
    *("rejected_logprob", "chosen_tokens", "rejected_tokens"),
}
PAIRED = WAVE | {
    *("pairs", "reward_gap", "rejected_format_errors", "chosen_turns", "rejected_turns"),
}
JUDGED = {"win", "tie", "lose"}
GRADIENTS = STEP | {"ratio_mean", "ratio_max", "clip_fraction", "kl_old"}
FOLLOWED = (
    WAVE | MISMATCH | {"advantage_mean", "advantage_std", "mask_fraction", "moments_carried"}
) | {"overlong"}
GROUPS = {"groups", "useful_groups"}
KL = {"kl", "kl_coefficient"}

EXPECTED = {
    "clone": (PLAIN, CLONING, set()),
    "rft": (RejectionSettings(training=PLAIN, thresholds={"*": 0.0}), CLONING, CHOSEN),
    "agent_evol": (EvolSettings(training=PLAIN, thresholds={"*": 0.0}), CLONING, CHOSEN),
    "dpo": (DpoSettings(training=PLAIN, threshold=0.0), PAIRS, PAIRED | MISMATCH),
    "eto": (EtoSettings(training=PLAIN, min_pairs=1), PAIRS, PAIRED | JUDGED | MISMATCH),
    "grpo": (GrpoSettings(training=GRADIENT), GRADIENTS, FOLLOWED | GROUPS),
    "grpo, KL": (
        GrpoSettings(training=GRADIENT, kl=LEASH),
        GRADIENTS | {"kl"},
        FOLLOWED | GROUPS | KL,
    ),
    "reinforce_pp": (
        GrpoSettings(training=GRADIENT, estimator="reinforce_pp"),
        GRADIENTS,
        FOLLOWED,
    ),
    "ppo": (
        PpoSettings(training=GRADIENT, critic_warmup=1),
        GRADIENTS | {"value_loss"},
        FOLLOWED | {"value_explained"},
    ),
}


@pytest.fixture(scope="module")
def experts(make) -> list:
    words = ("up", "right", "left")
    return [
        make.expert(
            n, turns=tuple(Turn(seen, w, w, 0.0) for seen, w in zip(task, words, strict=False))
        )
        for n, task in enumerate(TASKS)
    ]


@pytest.fixture(scope="module")
def wave(tiny, sample) -> list:
    sampled = sample(tiny, TASKS, lambda *_: 0.0, attempts=6)
    return [replace(t, reward=(t.attempt + 1) / 8, outcome=Outcome.SUCCESS) for t in sampled]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_algorithm_says_what_is_expected_of_it(tiny, experts, wave, tmp_path, name):
    rules, of_step, of_wave = EXPECTED[name]
    told: list[dict] = []

    def progress(step: int, steps: int, metrics) -> None:
        told.append(dict(metrics))

    out = str(tmp_path / "m")
    if name == "clone":
        report = clone(experts, settings=rules, start=tiny, out=out, progress=progress)
    else:
        starts = {"last": tiny, "base_bc": tiny, "pretrained": tiny}
        evidence = Evidence(starts=starts, experts=experts, waves=[wave], number=1)
        report = evolve(rules, evidence, out=out, progress=progress)
    assert len(told) == 2
    for metrics in told:
        assert metrics.keys() == of_step
    weighted = {"weight_capped"} & report.metrics.keys()  # where importance is corrected
    assert report.metrics.keys() - weighted == of_step | of_wave | END
    for metrics in (*told, report.metrics):
        assert all(math.isfinite(value) for value in metrics.values())
    if of_wave:
        assert report.metrics["reward_mean"] == pytest.approx(3.5 / 8)
        assert report.metrics["trajectories"] == 18
    if "ratio_max" in of_step:
        assert told[0]["ratio_max"] == pytest.approx(1, abs=1e-4)
        assert told[1]["ratio_max"] > told[1]["ratio_mean"] > 0


def test_a_maximum_is_one_however_a_step_is_cut(tiny, wave):
    """Over temperatures, micro-batches and processes it is not added up."""
    rules = GrpoSettings(training=GRADIENT)
    starts = {"last": tiny, "base_bc": tiny}
    mixed = [replace(t, temperature=0.5 + 0.5 * (t.attempt % 2)) for t in wave]
    ready = comparable(rollouts_of(rules, Evidence(starts=starts, waves=[mixed])), rules)
    made = GroupGradient(rules, ready, start=tiny, reference="")
    policy = Policy.load(tiny, device="cpu")
    items = made.prepare(policy, ready.items)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.2)
    whole = dict(made.loss(policy, items, 1.0).metrics)
    parts: dict[str, tuple[float, float]] = {}
    for item in items:
        for key, share in made.loss(policy, [item], 1.0).metrics.items():
            join(parts, key, share)
    assert whole["ratio_max"][0] > whole["ratio_mean"][0] / whole["ratio_mean"][1]
    assert parts["ratio_max"] == pytest.approx(whole["ratio_max"], rel=1e-4)
    assert parts["ratio_mean"] == pytest.approx(whole["ratio_mean"], rel=1e-4)


# The critic's own rate


def ppo(tiny, wave, out, *, start: str = "", number: int = 1, training=None, **fields):
    fine = GradientTraining(device="cpu", batch=9, lr=1e-3, **(training or {}))
    rules = PpoSettings(training=fine, critic_warmup=0, **fields)
    starts = {"last": start or tiny, "base_bc": tiny, "pretrained": tiny}
    explored = [replace(t, versions=(number - 1, number - 1)) for t in wave]
    evidence = Evidence(starts=starts, waves=[explored], number=number)
    return evolve(rules, evidence, out=str(out)).metrics


def files(path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*.safetensors"))
    }


def test_a_critic_learns_at_its_own_rate_and_the_policy_at_its(tiny, wave, tmp_path):
    free = {"schedule": "linear", "clip": 0.0}  # clipping looks at both together
    same = {"critic_lr": 1e-3}
    for name, fields in (("policy's", {}), ("same", same), ("faster", {"critic_lr": 1e-2})):
        ppo(tiny, wave, tmp_path / name, training=free, **fields)
    plain, same, faster = (files(tmp_path / name) for name in ("policy's", "same", "faster"))
    assert plain == same
    assert plain["model.safetensors"] == faster["model.safetensors"]
    assert plain["critic/head.safetensors"] != faster["critic/head.safetensors"]


def test_the_schedule_and_what_is_carried_hold_for_each_rate(tiny, wave, tmp_path):
    """Ten times the factor is ten times the way, at every step of the schedule."""
    here = {"a": torch.zeros(3, requires_grad=True), "b": torch.zeros(3, requires_grad=True)}
    optimiser = Optimiser(here, lr=1.0, weight_decay=0.0, factors={"b": 10.0})
    for rate in (1e-3, 5e-4):
        before = {name: p.detach().clone() for name, p in here.items()}
        optimiser.begin(rate)
        for parameter in here.values():
            parameter.grad = torch.ones(3)
        optimiser.move()
        moved = {name: (before[name] - p.detach())[0].item() for name, p in here.items()}
        assert moved["b"] == pytest.approx(10 * moved["a"], rel=1e-5)
    ppo(tiny, wave, tmp_path / "a", critic_lr=1e-2)
    after = {"start": str(tmp_path / "a"), "number": 2}
    for rate in (1e-2, 1e-4):  # moments go on, whatever the rates
        assert ppo(tiny, wave, tmp_path / str(rate), critic_lr=rate, **after)["moments_carried"]


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_a_step_with_two_rates_resumes_to_the_same_files(tiny, wave, tmp_path, lora):
    fine = GradientTraining(device="cpu", batch=6, lr=1e-3, lora=lora, checkpoint_every=1)
    rules = PpoSettings(training=fine, critic_warmup=1, critic_lr=1e-2)
    starts = {"last": tiny, "base_bc": tiny, "pretrained": tiny}
    evidence = Evidence(starts=starts, waves=[wave])

    def kill(step: int, steps: int, metrics) -> None:
        if step == 2:
            raise Killed

    evolve(rules, evidence, out=str(tmp_path / "straight"))
    with pytest.raises(Killed):
        evolve(rules, evidence, out=str(tmp_path / "m"), progress=kill)
    assert evolve(rules, evidence, out=str(tmp_path / "m")).metrics["resumed"] == 1
    assert files(tmp_path / "m") == files(tmp_path / "straight")


def test_a_rate_below_0_is_refused():
    with pytest.raises(ConfigError, match="critic_lr"):
        PpoSettings(critic_lr=-1e-3)

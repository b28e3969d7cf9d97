"""Evolution steps of PPO and GRPO in a row: the critic, carried state, resuming, learning."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="policy gradients train a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import CheckpointCorrupt, ConfigError  # noqa: E402
from rollwave.learners.algorithms import evolve  # noqa: E402
from rollwave.learners.base import Evidence  # noqa: E402
from rollwave.learners.gradients.critic import Critic  # noqa: E402
from rollwave.learners.gradients.importance import action_mask  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.settings import GrpoSettings, PpoSettings  # noqa: E402
from rollwave.learners.settings.policy_gradient import (  # noqa: E402
    GradientTraining,
    KlSettings,
)
from rollwave.learners.training.collate import collate  # noqa: E402

TASKS = (["at 1 door"], ["at 2 door", "wall 3"], ["key", "at 4 wall", "door"])
QUICK = {"device": "cpu", "lr": 5e-3, "batch": 6}


def by_task(task: int, words: list[str]) -> float:
    return task / 2


def by_word(task: int, words: list[str]) -> float:
    return sum(len(word) % 2 == 0 for word in words) / len(words)


def settings(kind=PpoSettings, *, training=None, **fields):
    return kind(training=GradientTraining(**(QUICK | (training or {}))), **fields)


def learn(start, wave, out: Path, rules, number: int = 1, base: str = "", progress=None) -> dict:
    starts = {"last": str(start), "base_bc": base or str(start), "pretrained": base or str(start)}
    evidence = Evidence(starts=starts, waves=[wave], number=number)
    return dict(evolve(rules, evidence, out=str(out), progress=progress).metrics)


def files(path: Path) -> dict[str, bytes]:
    """Everything of a policy but the report, which has times."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "training.json"
    }


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


@pytest.fixture(scope="module")
def wave(tiny, sample) -> list:
    return sample(tiny, TASKS, by_word, attempts=6)


@pytest.mark.parametrize(
    "rules",
    [
        settings(kl=KlSettings(where="reward", target=0.1), critic_warmup=3),
        settings(critic="head", level="turn", critic_warmup=3),
        settings(GrpoSettings, estimator="gigpo", kl=KlSettings(where="loss", target=0.1)),
    ],
    ids=["model", "head", "grpo"],
)
def test_a_step_that_was_killed_resumes_to_bit_equal_files(tiny, wave, sample, tmp_path, rules):
    """Also the second of two: with its critic, its moments and its coefficient."""
    policy = tmp_path / "first"
    learn(tiny, wave, policy, rules)
    second = sample(str(policy), TASKS, by_word, attempts=6, wave=2)
    training = {"epochs": 2, "checkpoint_every": 2}
    rules = msgspec.structs.replace(rules, training=GradientTraining(**(QUICK | training)))
    straight = learn(policy, second, tmp_path / "straight", rules, 2, tiny)
    steps: list[int] = []

    def kill(step: int, total: int, metrics) -> None:
        steps.append(step)
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        learn(policy, second, tmp_path / "m", rules, 2, tiny, kill)
    resumed = learn(policy, second, tmp_path / "m", rules, 2, tiny)
    assert steps[-1] == 5
    assert resumed["resumed"] == 4
    assert resumed["steps"] == straight["steps"] == 6
    assert files(tmp_path / "m") == files(tmp_path / "straight")
    names = set(files(tmp_path / "m"))
    assert "training/optimiser.safetensors" in names
    assert ("critic/head.safetensors" in names) == isinstance(rules, PpoSettings)


@pytest.mark.parametrize(("kind", "share"), [("model", 0.9), ("head", 0.2)])
def test_a_critic_learns_what_tasks_pay_before_the_policy_moves(
    tiny, sample, tmp_path, kind, share
):
    wave = sample(tiny, TASKS, by_task, attempts=6)
    explained = {}
    for steps in (0, 30):
        rules = settings(critic=kind, critic_warmup=steps, training={"batch": 32})
        metrics = learn(tiny, wave, tmp_path / str(steps), rules)
        explained[steps] = metrics["value_explained"]
    assert explained[0] == 0  # a fresh head says 0 everywhere
    assert explained[30] > share


@pytest.mark.parametrize("kind", ["model", "head"])
def test_the_next_step_takes_the_critic_up(tiny, wave, tmp_path, kind):
    rules = settings(critic=kind, critic_warmup=5)
    learn(tiny, wave, tmp_path / "a", rules)
    policy = Policy.load(tmp_path / "a", device="cpu")
    critic = Critic.load(kind, str(tmp_path / "a"), policy, rules.training)
    assert not critic.fresh
    saved = critic.parameters()
    fresh = Critic.load(kind, tiny, Policy.load(tiny, device="cpu"), rules.training).parameters()
    assert saved.keys() == fresh.keys()
    assert saved["critic.head"].abs().sum() > 0
    assert fresh["critic.head"].abs().sum() == 0
    critic.save(tmp_path / "b")
    again = {name.removeprefix("critic/") for name in files(tmp_path / "b")}
    assert again == {
        name.removeprefix("critic/") for name in files(tmp_path / "a") if "critic" in name
    }
    with pytest.raises(ConfigError, match="keep the kind"):
        Critic.load(
            "head" if kind == "model" else "model", str(tmp_path / "a"), policy, rules.training
        )
    (tmp_path / "a" / "critic" / "head.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointCorrupt, match="critic"):
        Critic.load(kind, str(tmp_path / "a"), policy, rules.training)


def test_a_critics_model_is_computed_with_as_the_policy_is(tiny):
    """It is as large, so what saves memory has to hold for it too."""
    policy = Policy.load(tiny, device="cpu")
    assert policy.packed
    settings = GradientTraining(packing="never", gradient_checkpointing=True)
    trunk = Critic.load("model", tiny, policy, settings)._trunk
    assert not trunk.packed
    assert trunk.model.is_gradient_checkpointing
    assert all(layer.training for layer in trunk.model.model.layers)


@pytest.mark.parametrize("kind", ["model", "head"])
def test_a_value_knows_nothing_of_its_token(tiny, wave, kind):
    """It is read from what comes before; through a head no gradient reaches the policy."""
    policy = Policy.load(tiny, device="cpu")
    critic = Critic.load(kind, tiny, policy, GradientTraining())
    torch.nn.init.ones_(critic.parameters()["critic.head"])
    batch = collate([_sample(wave[-1])])
    at = int(batch.loss_mask[0].nonzero()[0])
    before = critic.values(policy, batch)
    torch.autograd.backward(before.sum())
    assert all(p.grad is None for p in policy.trainable().values())
    other = batch.token_ids.clone()
    other[0, at] = (other[0, at] + 1) % 8
    after = critic.values(policy, type(batch)(other, *list(_fields(batch))[1:]))
    assert torch.allclose(before[0, : at + 1], after[0, : at + 1], atol=1e-6)
    assert not torch.allclose(before[0, at + 1 :], after[0, at + 1 :], atol=1e-6)


def _sample(trajectory):
    from rollwave.learners.model.chat import tokenise

    return tokenise(None, trajectory)


def _fields(batch):
    return (getattr(batch, name) for name in type(batch).__dataclass_fields__)


def test_warming_up_leaves_the_policy_where_it_is(tiny, wave):
    from rollwave.learners.gradients.ppo import ActorCritic
    from rollwave.learners.gradients.rollouts import rollouts_of

    rules = settings(critic_warmup=5)
    ready = rollouts_of(rules, Evidence(starts={"last": tiny}, waves=[wave]))
    made = ActorCritic(rules, ready, start=tiny, reference="")
    policy = Policy.load(tiny, device="cpu")
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    items = made.prepare(policy, ready.items)
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable().items())
    assert made.parameters()["critic.head"].abs().sum() > 0
    # What advantages were made of is what value clipping compares with.
    for item in items:
        assert torch.equal(item.settled.decisions, action_mask(item.sample))
        assert item.settled.values[item.settled.decisions].abs().sum() > 0


@pytest.mark.parametrize(
    "rules",
    [
        settings(GrpoSettings, training={"batch": 48}),
        settings(critic="head", training={"batch": 48}),
    ],
    ids=["grpo", "ppo"],
)
def test_the_reward_rises(tiny, sample, tmp_path, rules):
    """Three sights, one right word of some twenty for each, told by the reward alone."""
    right = ("up", "down", "left")
    tasks = [[f"at {n} door"] for n in range(3)]
    start, means = tiny, []
    for number in range(1, 25):
        wave = sample(
            start,
            tasks,
            lambda task, words: float(words[0] == right[task]),
            attempts=32,
            wave=number,
        )
        metrics = learn(start, wave, tmp_path / str(number), rules, number, tiny)
        means.append(metrics["reward_mean"])
        start = str(tmp_path / str(number))
        if means[-1] > 0.6:
            break
    assert means[0] < 0.1
    assert means[-1] > 0.6

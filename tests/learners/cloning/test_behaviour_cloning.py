"""Behaviour cloning: the oracles of its specification, on a model of width 32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="cloning trains a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import (  # noqa: E402
    ConfigError,
    EmptyWave,
    LearnerError,
)
from rollwave.engine.trajectory import ChatMessage  # noqa: E402
from rollwave.learners.cloning.behaviour_cloning import BehaviourCloning  # noqa: E402
from rollwave.learners.model.chat import load_renderer  # noqa: E402
from rollwave.learners.settings import LoraSettings, TrainingSettings  # noqa: E402
from rollwave.learners.training.loop import rate_at  # noqa: E402

GOLDEN = [3.041241, 2.832432, 2.672679, 2.580782]
"""Losses of four steps from the tiny model of seed 0; see the golden test."""

QUICK = {"max_steps": 4, "batch": 4, "device": "cpu", "lr": 3e-3}


@pytest.fixture(scope="module")
def experts(make) -> list:
    """Eight trajectories of different lengths and actions."""
    actions = ("up", "up right left", "down down", "left up down right up")
    return [make.expert(i, actions[i % 4]) for i in range(8)]


def clone(start: str, trajectories, out: Path, evaluate=None, progress=None, **settings):
    learner = BehaviourCloning(TrainingSettings(**(QUICK | settings)), start)
    return learner.update(trajectories, out=str(out), evaluate=evaluate, progress=progress)


def weights(path: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def distance(a: Path, b: Path) -> float:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max()) for k in first)


def play(model_dir: Path, trajectory) -> list[str]:
    """Let the model answer the trajectory's observations greedily."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    renderer = load_renderer(str(model_dir))
    said = []
    ids: list[int] = []
    for index, turn in enumerate(trajectory.turns):
        if index:
            ids += renderer.following(turn.observation, closed=ids[-1] == renderer.closer_id)
        else:
            ids = renderer.opening([ChatMessage("user", turn.observation)])
        written: list[int] = []
        while len(written) < 4 and (not written or written[-1] != renderer.closer_id):
            with torch.no_grad():
                logits = model(torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
        ids += written
        said.append(renderer.decode(written))
    return said


def test_four_trajectories_are_learnt_by_heart_and_replayed_greedily(tiny, make, tmp_path):
    experts = [
        make.expert(i, actions)
        for i, actions in enumerate(("up right down", "left left", "down up up right", "right"))
    ]
    report = clone(tiny, experts, tmp_path / "m", max_steps=150, lr=1e-2, schedule="cosine")
    assert report.metrics["loss"] < 0.01
    for trajectory in experts:
        assert play(tmp_path / "m", trajectory) == [turn.action for turn in trajectory.turns]


def test_equal_input_gives_bit_equal_weights(tiny, experts, tmp_path):
    state = torch.get_rng_state()
    for name in "ab":
        clone(tiny, experts, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), state)
    assert distance(tmp_path / "a", tmp_path / "b") == 0
    clone(tiny, experts, tmp_path / "c", seed=1)
    assert distance(tmp_path / "a", tmp_path / "c") > 0


def test_one_micro_batch_of_eight_equals_eight_of_one(tiny, experts, tmp_path):
    """The global token mean, not the mean of the means of micro-batches."""
    # Compared by loss and gradient: AdamW's first step is ±lr wherever the gradient is not 0.
    whole, single, some = (
        clone(
            tiny, experts, tmp_path / str(tokens), batch=8, micro_tokens=tokens, max_steps=1
        ).metrics
        for tokens in (10_000, 1, 100)
    )
    for other in (single, some):
        assert other["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        assert other["grad_norm"] == pytest.approx(whole["grad_norm"], abs=1e-5)


def test_the_order_of_the_batch_does_not_matter(tiny, experts, tmp_path):
    first = clone(tiny, experts, tmp_path / "a", batch=8, max_steps=1).metrics
    second = clone(tiny, experts[::-1], tmp_path / "b", batch=8, max_steps=1).metrics
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], abs=1e-5)


def test_golden_losses_under_a_fixed_seed(tiny, experts, tmp_path):
    """A change of these numbers is a change of the algorithm, the model or its seed."""
    losses: list[float] = []
    clone(
        tiny,
        experts,
        tmp_path / "m",
        schedule="linear",
        warmup=0.25,
        progress=lambda step, steps, metrics: losses.append(metrics["loss"]),
    )
    assert losses == pytest.approx(GOLDEN, abs=2e-4)


def test_the_best_policy_on_dev_reward_is_kept_and_patience_ends_training(tiny, experts, tmp_path):
    rewards = {1: 0.2, 2: 0.6, 3: 0.5, 4: 0.6, 5: 0.9}
    seen: dict[int, float] = {}

    def evaluate(step: int, path: str) -> float:
        assert load_renderer(path).closer_id
        seen[step] = rewards[step]
        return rewards[step]

    options = {"max_steps": 6, "evaluate_every": 1, "patience": 2}
    report = clone(tiny, experts, tmp_path / "m", evaluate=evaluate, **options)
    assert sorted(seen) == [1, 2, 3, 4]  # 3 and 4 were not better than 2
    assert report.metrics["dev_reward"] == 0.6
    assert report.metrics["dev_step"] == 2
    clone(tiny, experts, tmp_path / "two", max_steps=2)
    assert distance(tmp_path / "m", tmp_path / "two") == 0
    assert not (tmp_path / "m.training").exists()


def test_the_last_step_is_evaluated_too(tiny, experts, tmp_path):
    seen: list[int] = []

    def evaluate(step: int, path: str) -> float:
        seen.append(step)
        return float(step)

    clone(tiny, experts, tmp_path / "m", evaluate=evaluate, evaluate_every=3)
    assert seen == [3, 4]


def test_training_json_says_what_made_the_policy(tiny, experts, make, tmp_path):
    from rollwave.learners.training.checkpoint import hash_model

    report = clone(tiny, [*experts, make.faulted(1)], tmp_path / "m")
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["algorithm"] == "behaviour_cloning"
    assert record["start"] == {"path": tiny, "hash": hash_model(tiny)}
    assert record["settings"]["seed"] == 0
    assert record["kept"] == report.kept == 8
    assert record["dropped"] == report.dropped == {"fault": 1}
    assert record["metrics"]["steps"] == report.metrics["steps"] == 4
    again = clone(tiny, experts, tmp_path / "n")
    same = json.loads((tmp_path / "n" / "training.json").read_text())
    assert same["data"] == record["data"]
    assert again.metrics["loss"] == report.metrics["loss"]
    clone(tiny, experts[1:], tmp_path / "o")
    assert json.loads((tmp_path / "o" / "training.json").read_text())["data"] != record["data"]


def test_too_long_trajectories_are_dropped_not_cut(tiny, experts, make, tmp_path):
    long = make.expert(9, "up " * 40)
    assert clone(tiny, [*experts, long], tmp_path / "m").dropped == {"too_long": 1}
    short = clone(tiny, experts, tmp_path / "m", context=12)
    assert short.dropped == {"too_long": 6}


def test_nothing_usable_is_an_error_before_the_model_is_loaded(tiny, make, tmp_path):
    with pytest.raises(EmptyWave, match="1 fault"):
        clone(tiny, [make.faulted(0)], tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_is_no_model_is_refused(experts, tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer"):
        clone(str(tmp_path), experts, tmp_path / "m")


def test_divergence_is_an_error_that_names_the_learning_rate(tiny, experts, tmp_path):
    with pytest.raises(LearnerError, match="lower the learning rate"):
        clone(tiny, experts, tmp_path / "m", lr=1e30, clip=0.0)
    assert not (tmp_path / "m").exists()


def test_lora_cloning_exports_a_model_that_loads_and_changed(tiny, experts, tmp_path):
    report = clone(tiny, experts, tmp_path / "m", lora=LoraSettings(rank=4), max_steps=12)
    assert report.metrics["steps"] == 12
    assert weights(tmp_path / "m").keys() == weights(Path(tiny)).keys()
    assert distance(tmp_path / "m", Path(tiny)) > 0


def test_epochs_decide_the_steps_unless_max_steps_does(tiny, experts, tmp_path):
    by_epochs = clone(tiny, experts, tmp_path / "m", max_steps=0, epochs=2, batch=3)
    assert by_epochs.metrics["steps"] == 2 * 3
    by_tokens = clone(tiny, experts, tmp_path / "m", max_steps=0, epochs=1, batch_tokens=1)
    assert by_tokens.metrics["steps"] == 8


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1]),
        ("constant", 0.4, [0.5, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.2, [1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 0.2, [1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rate_schedules(schedule, warmup, expected):
    rates = [rate_at(step, 5, 2.0, schedule, warmup) / 2.0 for step in range(5)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_gradients_are_clipped_as_asked_and_the_norm_before_is_reported(tiny, experts, tmp_path):
    def norm(name: str, clip: float, steps: int) -> float:
        report = clone(tiny, experts, tmp_path / name, clip=clip, max_steps=steps)
        return report.metrics["grad_norm"]

    free = norm("free", 0.0, 1)
    assert norm("loose", 2 * free, 1) == norm("held", free / 2, 1) == free
    # AdamW does not feel the scale of one gradient, but that of later ones beside it.
    norm("free", 0.0, 3)
    norm("held", free / 100, 3)
    assert distance(tmp_path / "free", tmp_path / "held") > 0

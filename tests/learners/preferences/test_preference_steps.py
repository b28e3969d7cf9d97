"""Evolution steps of DPO, ETO and rejection fine-tuning, as a campaign asks for them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="an evolution step trains a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.codec import pack_floats, pack_tokens  # noqa: E402
from rollwave.engine.errors import ConfigError, EmptyWave, EvaluationLeak  # noqa: E402
from rollwave.engine.trajectory import FinishReason, Outcome  # noqa: E402
from rollwave.learners.algorithms import evolve  # noqa: E402
from rollwave.learners.base import Evidence  # noqa: E402
from rollwave.learners.model.chat import load_renderer, tokenise  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.preferences import dpo, eto  # noqa: E402
from rollwave.learners.settings import (  # noqa: E402
    DpoSettings,
    EtoSettings,
    EvolSettings,
    LoraSettings,
    RejectionSettings,
    TrainingSettings,
)
from rollwave.learners.training.collate import collate  # noqa: E402

LN2 = math.log(2)
QUICK = {"max_steps": 4, "batch": 2, "device": "cpu", "lr": 1e-3}


def training(**options) -> TrainingSettings:
    return TrainingSettings(**(QUICK | options))


def failure(make, task: int, number: int = 0, actions: str = "down left", **fields):
    return make.attempt(task, number, actions, reward=0.0, outcome=Outcome.FAILURE, **fields)


@pytest.fixture(scope="module")
def wave(make) -> list:
    """Four tasks at which the agent failed, in different ways."""
    lost = ("down", "down left", "left left left left", "left up")
    return [failure(make, task, actions=lost[task]) for task in range(4)]


@pytest.fixture(scope="module")
def evidence(tiny, make, wave):
    def put(waves=(wave,), *, last: str = tiny, experts: int = 4, **fields) -> Evidence:
        base = {
            "starts": {"base_bc": tiny, "pretrained": tiny, "last": last},
            "experts": [make.expert(task) for task in range(experts)],
            "waves": waves,
            "number": len(waves),
        }
        return Evidence(**(base | fields))

    return put


class Steps(list):
    """The metrics of every optimiser step."""

    def __call__(self, step: int, steps: int, metrics) -> None:
        self.append(dict(metrics))


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def hash_of_start(path: Path) -> str:
    return json.loads((path / "training.json").read_text())["start"]["hash"]


# ETO


def test_every_iteration_begins_at_ln_2_from_the_policy_before_it(tiny, evidence, wave, tmp_path):
    settings = EtoSettings(training=training(), min_pairs=1, beta=0.5)
    last = tiny
    for number in (1, 2, 3):
        told, out = Steps(), tmp_path / f"policy-{number}"
        given = evidence((wave,), last=last, number=number)
        report = evolve(settings, given, out=str(out), progress=told)
        assert told[0]["loss"] == pytest.approx(LN2, abs=1e-5)
        assert told[-1]["loss"] < told[0]["loss"]
        assert told[-1]["margin"] > 0
        assert report.kept == 4
        assert {k: report.metrics[k] for k in ("win", "tie", "lose")} == {
            "win": 0,
            "tie": 0,
            "lose": 4,
        }
        last = str(out)
    # A reference that had stayed behind would have begun elsewhere.
    told = Steps()
    stale = msgspec.structs.replace(settings, reference="base_bc")
    evolve(stale, evidence((wave,), last=last), out=str(tmp_path / "x"), progress=told)
    assert abs(told[0]["loss"] - LN2) > 1e-3


def test_the_policy_learns_to_prefer_the_expert(tiny, evidence, wave, tmp_path):
    settings = EtoSettings(training=training(max_steps=30, batch=4), min_pairs=1)
    told = Steps()
    evolve(settings, evidence(), out=str(tmp_path / "m"), progress=told)
    assert told[0]["accuracy"] == 0.0  # a tie is wrong
    assert told[-1]["accuracy"] == 1.0
    assert told[-1]["rejected_reward"] < told[-1]["chosen_reward"]
    assert told[-1]["chosen_tokens"] == 4.0


def test_the_likelihood_term_keeps_the_chosen_side_up(tiny, evidence, tmp_path):
    found = {}
    for weight in (0.0, 1.0):
        told = Steps()
        settings = EtoSettings(
            training=training(max_steps=15, batch=4, lr=3e-3), min_pairs=1, nll=weight
        )
        evolve(settings, evidence(), out=str(tmp_path / str(weight)), progress=told)
        found[weight] = told[-1]["chosen_logprob"] - told[0]["chosen_logprob"]
    assert found[1.0] > found[0.0]
    assert found[1.0] > 0


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_a_killed_iteration_goes_on_to_bit_equal_weights(tiny, evidence, tmp_path, lora):
    """The reference is settled anew from the start, not from the checkpoint."""

    class Killed(BaseException):
        pass

    def kill(step: int, steps: int, metrics) -> None:
        if step == 5:
            raise Killed

    settings = EtoSettings(
        training=training(max_steps=8, checkpoint_every=2, schedule="cosine", lora=lora),
        min_pairs=1,
    )
    evolve(settings, evidence(), out=str(tmp_path / "straight"))
    with pytest.raises(Killed):
        evolve(settings, evidence(), out=str(tmp_path / "m"), progress=kill)
    told = Steps()
    report = evolve(settings, evidence(), out=str(tmp_path / "m"), progress=told)
    assert report.metrics["resumed"] == 4
    assert told[0]["resumed"] == 4
    assert weights(tmp_path / "m") == weights(tmp_path / "straight")


def test_rate_and_beta_of_an_iteration(tiny):
    settings = EtoSettings(training=training(), lrs=(1e-6, 5e-7), betas=(0.1, 0.5))
    found = [eto.at_iteration(settings, i) for i in (1, 2, 3)]
    assert [s.training.lr for s in found] == [1e-6, 5e-7, 5e-7]
    assert [s.beta for s in found] == [0.1, 0.5, 0.5]
    plain = EtoSettings(training=training(), beta=0.3)
    assert eto.at_iteration(plain, 7) == plain


def test_only_the_newest_pairs_are_learned_from(make, evidence, wave):
    """The campaign gives the last wave; what it gives is used, all of it."""
    settings = EtoSettings(min_pairs=1)
    assert settings.history == "last"
    more = [failure(make, 3, actions="down down")]
    pairs = eto.select(settings, evidence((wave[:2], more)))
    assert [p.rejected.task_id for p in pairs.kept] == ["grid_0", "grid_1", "grid_3"]


def test_mixture_is_the_union_of_both_contrasts(make, evidence, wave):
    branches = [failure(make, 0, 1, "left down"), failure(make, 0, 2, "up down")]
    found = {
        contrast: eto.select(EtoSettings(contrast=contrast), evidence(([*wave, *branches],))).kept
        for contrast in ("step", "mixture")
    }
    alone = eto.select(EtoSettings(), evidence((wave,))).kept
    turns = eto.select(EtoSettings(contrast="step"), evidence((branches,))).kept
    assert [p.turn for p in turns] == [0, 1]
    assert found["mixture"] == [*alone, *turns]
    assert found["step"] == turns
    modes = [EtoSettings(contrast=c).exploration for c in ("trajectory", "step", "mixture")]
    assert modes == ["tasks", "branches", "both"]


def test_a_step_on_single_turns_runs(tiny, make, evidence, tmp_path):
    branches = [failure(make, 0, 1, "left down"), failure(make, 0, 2, "up down")]
    settings = EtoSettings(training=training(), contrast="step", min_pairs=2)
    told = Steps()
    report = evolve(settings, evidence((branches,)), out=str(tmp_path / "m"), progress=told)
    assert report.kept == 2
    assert told[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert told[0]["chosen_tokens"] == told[0]["rejected_tokens"] == 2


# Self-play and its opening


def test_the_opening_is_rejection_fine_tuning_and_nothing_else(make, evidence, tmp_path):
    first = [make.attempt(0, 0, "up"), make.attempt(0, 1, "left"), failure(make, 1)]
    rft = RejectionSettings(training=training())
    settings = EtoSettings(
        scope="all_tasks", self_play=True, opening="rejection", opening_training=training()
    )
    evolve(rft, evidence((first,), experts=0), out=str(tmp_path / "rft"))
    report = evolve(settings, evidence((first,), experts=0), out=str(tmp_path / "opening"))
    assert report.kept == 2
    assert weights(tmp_path / "rft") == weights(tmp_path / "opening")


def test_self_play_pairs_the_best_own_of_all_waves_with_the_newest(make, evidence, tmp_path):
    first = [make.attempt(0, 0, "up"), failure(make, 1)]
    second = [failure(make, 0, wave=2), failure(make, 1, wave=2), make.attempt(2, wave=2)]
    settings = EtoSettings(
        training=training(),
        scope="all_tasks",
        self_play=True,
        opening="rejection",
        lrs=(1e-4,),
        min_pairs=1,
    )
    assert settings.history == "all"
    given = evidence((first, second), experts=0)
    (pair,) = eto.select(settings, given).kept
    assert (pair.chosen.id, pair.rejected.id) == ("w1/grid_0/0", "w2/grid_0/0")
    told = Steps()
    evolve(settings, given, out=str(tmp_path / "m"), progress=told)
    assert told[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert (record["algorithm"], record["iteration"]) == ("eto", 1)


# DPO


@pytest.mark.parametrize("pairing", ["self", "expert", "two_samples"])
def test_dpo_learns_from_success_and_failure(tiny, make, evidence, tmp_path, pairing):
    explored = [failure(make, 0, 0, "left"), make.attempt(0, 1, "up right up")]
    settings = DpoSettings(training=training(), pairing=pairing)
    told = Steps()
    report = evolve(settings, evidence((explored,)), out=str(tmp_path / "m"), progress=told)
    assert report.kept == 1
    assert told[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert told[-1]["accuracy"] == 1.0
    assert report.metrics["reward_gap"] == 1.0
    assert report.dropped == {}


def test_gap_threshold_and_cap_hold_for_every_pairing(make, evidence):
    explored = [
        failure(make, 0, 0, "left"),
        failure(make, 0, 1, "down"),
        make.attempt(1, 0, "left", reward=0.6),
        make.attempt(1, 1, "down left", reward=0.5),
        make.attempt(2, 0, "left", reward=0.995),
        make.attempt(2, 1, "down left", reward=1.0),
    ]
    experts = [make.expert(0), make.expert(1, reward=0.5), make.expert(2)]
    found = {}
    for pairing in ("self", "expert", "two_samples"):
        settings = DpoSettings(pairing=pairing)
        given = replace(evidence((explored,)), experts=experts)
        pairs = dpo.select(settings, given)
        found[pairing] = ([p.chosen.task_id for p in pairs.kept], pairs.dropped)
    assert found["self"] == ([], {"small_gap": 2, "low_reward": 1})
    assert found["two_samples"] == found["self"]
    # Of two attempts that lost to the expert one is kept.
    assert found["expert"] == (["grid_0"], {"low_reward": 1, "small_gap": 1, "over_cap": 1})


def test_where_dpo_starts(tiny, evidence, make, tmp_path):
    policy = Policy.load(tiny, device="cpu")
    with torch.no_grad():
        next(iter(policy.trainable().values())).add_(0.01)
    policy.save(tmp_path / "last")
    explored = [failure(make, 0, 0, "left"), make.attempt(0, 1)]
    hashes = {}
    for start in ("last", "base_bc"):
        settings = DpoSettings(training=training(max_steps=1), start=start)
        given = evidence((explored,), last=str(tmp_path / "last"))
        evolve(settings, given, out=str(tmp_path / f"from-{start}"))
        hashes[start] = hash_of_start(tmp_path / f"from-{start}")
    assert hashes["last"] != hashes["base_bc"]


# Rejection fine-tuning


def test_rejection_fine_tuning_is_agent_evol_of_one_wave(tiny, make, evidence, tmp_path):
    wave = [
        make.attempt(0, 0, "up"),
        make.attempt(0, 1, "up"),  # the same again
        make.attempt(1, 0, "left"),
        make.attempt(1, 1, "left up"),
        failure(make, 2),
    ]
    report = evolve(
        RejectionSettings(training=training(), start="base_bc"),
        evidence((wave,)),
        out=str(tmp_path / "rft"),
    )
    same = EvolSettings(training=training(), per_task_cap=4)
    evolve(same, evidence((wave,)), out=str(tmp_path / "evol"))
    assert weights(tmp_path / "rft") == weights(tmp_path / "evol")
    assert report.kept == 4 + 3
    assert json.loads((tmp_path / "rft" / "training.json").read_text())["algorithm"] == "rft"


def test_rejection_fine_tuning_starts_from_the_pretrained_model(tiny, make, evidence, tmp_path):
    starts = {"base_bc": "/nowhere", "last": "/nowhere", "pretrained": tiny}
    given = evidence(([make.attempt(0)],), starts=starts)
    report = evolve(RejectionSettings(training=training()), given, out=str(tmp_path / "m"))
    assert report.kept == 5


def test_sampler_and_trainer_are_compared_with_the_policy_that_explored(
    tiny, make, evidence, tmp_path
):
    """Not with the start, which is another model: it was not the sampler."""
    policy = Policy.load(tiny, device="cpu")
    renderer = load_renderer(tiny)
    plain = make.attempt(0)
    sample = tokenise(renderer, plain)
    with torch.no_grad():
        logprobs = policy.logprobs(collate([sample]))[0].tolist()
    first = list(sample.loss_mask).index(1)
    turns = [
        msgspec.structs.replace(turn, start=at, end=at + 2, finish=FinishReason.STOP)
        for turn, at in zip(plain.turns, (first, len(sample.token_ids) - 2), strict=True)
    ]
    recorded = msgspec.structs.replace(
        plain,
        turns=tuple(turns),
        token_ids=pack_tokens(sample.token_ids),
        loss_mask=bytes(sample.loss_mask),
        logprobs=pack_floats(logprobs),
        temperature=1.0,
    )
    moved = policy
    with torch.no_grad():
        next(iter(moved.trainable().values())).add_(0.05)
    moved.save(tmp_path / "pretrained")
    starts = {"base_bc": tiny, "last": tiny, "pretrained": str(tmp_path / "pretrained")}
    report = evolve(
        RejectionSettings(training=training(max_steps=1)),
        evidence(([recorded],), starts=starts),
        out=str(tmp_path / "m"),
    )
    assert report.metrics["logprob_mismatch"] < 1e-5


def test_at_most_four_of_a_task_survive(make, evidence, tmp_path):
    wave = [make.attempt(0, k, f"up {'left ' * k}") for k in range(6)]
    report = evolve(
        RejectionSettings(training=training(max_steps=1)),
        evidence((wave,), experts=0),
        out=str(tmp_path / "m"),
    )
    assert report.kept == 4


# Bad input


def test_too_few_pairs_end_the_campaign_and_say_what_became_of_the_wave(make, evidence, wave):
    tied = [make.attempt(1), make.faulted(2)]
    with pytest.raises(EmptyWave, match=r"0 usable .*min_pairs = 32 \(1 fault, 1 tie\)"):
        evolve(EtoSettings(training=training()), evidence((tied,)), out="nowhere")
    with pytest.raises(EmptyWave, match=r"4 usable .*min_pairs = 5 \(4 lose\)"):
        evolve(EtoSettings(training=training(), min_pairs=5), evidence(), out="nowhere")
    with pytest.raises(EmptyWave, match="the wave is empty"):
        evolve(DpoSettings(training=training()), evidence(((),)), out="nowhere")


def test_evaluation_tasks_are_refused(evidence):
    leaked = frozenset({("grid-v1", "grid_2")})
    for settings in (
        EtoSettings(training=training()),
        DpoSettings(training=training()),
        RejectionSettings(training=training()),
    ):
        with pytest.raises(EvaluationLeak, match="grid_2"):
            evolve(settings, evidence(evaluation=leaked), out="nowhere")


def test_no_expert_and_no_reference_are_clear_errors(evidence):
    with pytest.raises(ConfigError, match="self_play"):
        evolve(EtoSettings(training=training()), evidence(experts=0), out="nowhere")
    unknown = EtoSettings(training=training(), reference="/nowhere", min_pairs=1)
    with pytest.raises(ConfigError, match=r"'/nowhere'.*base_bc, last, pretrained"):
        evolve(unknown, evidence(), out="nowhere")


@pytest.mark.parametrize(
    ("settings", "options", "named"),
    [
        (EtoSettings, {"beta": 0.0}, "beta"),
        (EtoSettings, {"betas": (0.1, 0.0)}, "betas"),
        (EtoSettings, {"lrs": (-1.0,)}, "lrs"),
        (EtoSettings, {"max_extra_turns": -1}, "max_extra_turns"),
        (EtoSettings, {"self_play": True, "contrast": "step"}, "contrast"),
        (EtoSettings, {"per_task_cap": -1}, "per_task_cap"),
        (DpoSettings, {"label_smoothing": 0.5}, "label_smoothing"),
        (DpoSettings, {"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing"),
        (DpoSettings, {"gap": -0.1}, "gap"),
        (DpoSettings, {"nll": -1.0}, "nll"),
        (DpoSettings, {"min_pairs": 0}, "min_pairs"),
        (DpoSettings, {"reference": ""}, "reference"),
        (DpoSettings, {"training": TrainingSettings(lora=LoraSettings(dropout=0.1))}, "dropout"),
        (RejectionSettings, {"per_task_cap": -1}, "per_task_cap"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, options, named):
    with pytest.raises(ConfigError, match=named):
        settings(**options)

"""Policy gradients on a tiny model: what is learned from, what is settled, and what moves."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="policy gradients train a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.codec import pack_floats, unpack_floats  # noqa: E402
from rollwave.engine.errors import EmptyWave, EvaluationLeak, LearnerError  # noqa: E402
from rollwave.engine.trajectory import Outcome  # noqa: E402
from rollwave.learners.algorithms import evolve  # noqa: E402
from rollwave.learners.base import Evidence  # noqa: E402
from rollwave.learners.gradients.grpo import GroupGradient, comparable  # noqa: E402
from rollwave.learners.gradients.importance import mismatch  # noqa: E402
from rollwave.learners.gradients.ppo import ActorCritic  # noqa: E402
from rollwave.learners.gradients.rollouts import rollouts_of  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.settings import GrpoSettings, PpoSettings  # noqa: E402
from rollwave.learners.settings.policy_gradient import (  # noqa: E402
    GradientTraining,
    ImportanceSettings,
    KlSettings,
    RewardSettings,
    SurrogateSettings,
)
from rollwave.learners.training.collate import collate  # noqa: E402

TASKS = (["at 1 door"], ["at 2 door", "wall 3"], ["key", "at 4 wall", "door"])
QUICK = {"device": "cpu", "lr": 1e-2, "batch": 64}


def by_word(task: int, words: list[str]) -> float:
    """Any reward will do that differs among attempts: the share of words with an even number
    of letters, less what the task costs."""
    return sum(len(word) % 2 == 0 for word in words) / len(words)


@pytest.fixture(scope="module")
def wave(tiny, sample) -> list:
    return sample(tiny, TASKS, by_word, attempts=6)


def evidence(tiny, wave, **fields) -> Evidence:
    starts = {"last": tiny, "base_bc": tiny, "pretrained": tiny}
    return Evidence(**({"starts": starts, "waves": [wave]} | fields))


def settings(kind=GrpoSettings, *, training=None, **fields):
    return kind(training=GradientTraining(**(QUICK | (training or {}))), **fields)


def learn(tiny, wave, out, rules=None, **fields):
    return evolve(rules or settings(), evidence(tiny, wave, **fields), out=str(out))


def objective(tiny, wave, rules):
    """The objective with its targets settled, and the policy they were settled with."""
    ready = rollouts_of(rules, evidence(tiny, wave))
    if isinstance(rules, GrpoSettings):
        made = GroupGradient(rules, comparable(ready, rules), start=tiny, reference=tiny)
    else:
        made = ActorCritic(rules, ready, start=tiny, reference=tiny)
    policy = Policy.load(tiny, device="cpu")
    return made, policy, made.prepare(policy, made.ready.items)


def test_the_mismatch_to_a_sampler_of_the_same_weights_is_rounding(tiny, wave, sample):
    """Also where tasks were sampled at another temperature: each is divided by its own."""
    cold = sample(tiny, TASKS, by_word, temperature=0.5, seed=1)
    made, policy, items = objective(tiny, wave + cold, settings(PpoSettings))
    figures = made.ready.figures
    assert figures["logprob_mismatch"] < 1e-4
    assert 0 <= figures["mismatch_k3"] < 1e-6
    samples = [item.sample for item in items if item.temperature == 0.5]
    assert mismatch(policy, samples, temperature=0.5)["logprob_mismatch"] < 1e-4
    assert mismatch(policy, samples)["logprob_mismatch"] > 1e-2
    assert mismatch(policy, []) == {}


@pytest.mark.parametrize("kind", [GrpoSettings, PpoSettings])
def test_one_pass_has_the_gradient_of_reinforce(tiny, wave, kind):
    """Ratio 1: nothing is clipped, and the loss is minus the token mean of A."""
    rules = settings(kind, **({"critic_warmup": 0} if kind is PpoSettings else {}))
    made, policy, items = objective(tiny, wave, rules)
    denominator = made.denominator(items)
    loss = made.loss(policy, items, denominator)
    loss.value.backward()
    gradient = [p.grad.clone() for p in policy.trainable().values()]
    assert loss.metrics["ratio_mean"][0] / denominator == pytest.approx(1, abs=1e-5)
    assert loss.metrics["clip_fraction"][0] == 0

    advantages = [item.settled.advantages for item in items]
    policy.model.zero_grad()
    batch = collate([item.sample for item in items])
    logprobs = policy.logprobs(batch)
    padded = torch.nn.utils.rnn.pad_sequence(advantages, batch_first=True)
    (-(padded * logprobs).sum() / batch.loss_mask.sum()).backward()
    plain = [p.grad for p in policy.trainable().values()]
    for a, b in zip(gradient, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    surrogate = loss.value.item() - (
        loss.metrics["value_loss"][0] / denominator if kind is PpoSettings else 0.0
    )
    assert surrogate == pytest.approx(-float(torch.cat(advantages).sum()) / denominator, abs=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"reduction": "seq_mean_token_mean"},
        {"reduction": "seq_mean_token_sum_norm", "norm": 3.0, "entropy": 0.1},
        {"kind": "drop"},
    ],
    ids=str,
)
def test_a_step_may_be_cut_into_any_micro_batches(tiny, wave, tmp_path, loss):
    made = [
        learn(
            tiny,
            wave,
            tmp_path / str(size),
            settings(
                training={"micro_tokens": size},
                loss=SurrogateSettings(**loss),
                kl=KlSettings(where="loss"),
            ),
        ).metrics
        for size in (1, 20, 10_000)
    ]
    for name in ("loss", "grad_norm", "entropy", "kl_old"):
        for other in made[1:]:
            assert other[name] == pytest.approx(made[0][name], abs=1e-5)


def test_what_cannot_be_learned_from_is_counted_under_one_reason(tiny, wave, make, tmp_path):
    wave = [msgspec.structs.replace(t, versions=(1, 2)) for t in wave]
    good = wave[:6]
    sampled = [t for t in wave if t.task_id == "grid_1"]
    nan = list(unpack_floats(sampled[0].logprobs))
    nan[sampled[0].turns[0].start] = math.nan
    replace = msgspec.structs.replace
    long = list(unpack_floats(sampled[1].logprobs)) * 40
    bad = [
        make.faulted(0, 90),
        replace(sampled[0], outcome=Outcome.CANCELLED, reward=None),
        replace(sampled[0], logprobs=pack_floats(nan)),
        replace(sampled[1], loss_mask=sampled[1].loss_mask[:-1]),
        replace(
            sampled[1],
            token_ids=sampled[1].token_ids * 40,
            logprobs=pack_floats(long),
            loss_mask=sampled[1].loss_mask + bytes(39 * len(sampled[1].loss_mask)),
        ),
        make.expert(5),
        replace(sampled[2], temperature=0.0),
        replace(sampled[3], versions=(0, 2)),
        sampled[4],
    ]
    rules = settings(max_staleness=1)
    report = learn(tiny, good + bad, tmp_path / "m", rules, number=3)
    assert report.dropped == {
        "fault": 1,
        "cancelled": 1,
        "bad_logprobs": 1,
        "bad_sample": 1,
        "too_long": 1,
        "no_logprobs": 1,
        "greedy": 1,
        "stale": 1,
        "singleton": 1,
    }


def test_staleness_is_counted_from_the_oldest_token(tiny, wave, tmp_path):
    for limit, kept in ((1, 0), (2, 18)):
        rules = settings(max_staleness=limit, zero_variance="keep")
        if not kept:
            with pytest.raises(EmptyWave, match="18 stale"):
                learn(tiny, wave, tmp_path / "m", rules, number=3)
            continue
        report = learn(tiny, wave, tmp_path / "m", rules, number=3)
        assert (report.kept, report.metrics["staleness_mean"]) == (kept, 2.0)


def test_nothing_trains_in_silence(tiny, wave, sample, tmp_path):
    equal = sample(tiny, TASKS, lambda task, words: 0.5)
    with pytest.raises(EmptyWave, match="12 zero_variance"):
        learn(tiny, equal, tmp_path / "m")
    single = [t for t in wave if t.attempt == 0]
    with pytest.raises(EmptyWave, match="3 singleton"):
        learn(tiny, single, tmp_path / "m")
    with pytest.raises(EmptyWave, match="empty"):
        learn(tiny, [], tmp_path / "m")
    with pytest.raises(EvaluationLeak, match="grid_1"):
        learn(tiny, wave, tmp_path / "m", evaluation=frozenset({("grid-v1", "grid_1")}))
    assert not (tmp_path / "m").exists()


def test_a_start_with_broken_weights_is_a_clear_error(tiny, wave, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LearnerError, match="not finite"):
        learn(str(broken), wave, tmp_path / "m")


def test_equal_rewards_that_are_kept_move_nothing(tiny, sample, tmp_path):
    equal = sample(tiny, TASKS, lambda task, words: 0.5)
    report = learn(tiny, equal, tmp_path / "m", settings(zero_variance="keep"))
    assert report.metrics["grad_norm"] == 0
    trained = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert trained == (Path(tiny) / "model.safetensors").read_bytes()


def moved(wave, by: float) -> list:
    """As if sampled by a policy whose log-probs were lower by so much."""
    return [
        msgspec.structs.replace(
            t,
            logprobs=pack_floats(
                [
                    v - by if m else v
                    for v, m in zip(unpack_floats(t.logprobs), t.loss_mask, strict=True)
                ]
            ),
        )
        for t in wave
    ]


def test_corrections_of_another_sampler(tiny, wave):
    """μ is lower by 0.1 a token: ratios are e^0.1, and e^(0.1 n) for n tokens."""
    other = moved(wave, 0.1)

    def settled(**importance):
        rules = settings(zero_variance="keep", importance=ImportanceSettings(**importance))
        made, _, items = objective(tiny, other, rules)
        return made.ready, [item.settled for item in items]

    plain, targets = settled()
    assert plain.figures["logprob_mismatch"] == pytest.approx(0.1, abs=1e-3)
    assert plain.figures["weight_capped"] == 0  # told also where nothing is corrected
    assert settled(cap=1.05)[0].figures["weight_capped"] == 1
    assert all(target.weights.eq(1).all() for target in targets)
    token = settled(correction="token")[1]
    assert all(torch.allclose(t.weights[t.mask].log(), torch.tensor(0.1), atol=1e-3) for t in token)
    ready, sequence = settled(correction="sequence", cap=1.25)
    for target in sequence:
        expected = min(0.1 * int(target.mask.sum()), math.log(1.25))
        assert target.weights[target.mask].log().tolist() == pytest.approx(
            [expected] * int(target.mask.sum()), abs=1e-3
        )
    assert ready.figures["weight_capped"] == pytest.approx(0.5)  # 3 of the 1 + 2 + 3 tokens
    bypass = settled(bypass=True)[1]
    for target, reference in zip(bypass, targets, strict=True):
        assert torch.allclose(target.old[target.mask], reference.old[target.mask] - 0.1, atol=1e-3)


def test_weights_multiply_the_surrogate_and_leave_the_kl_alone(tiny, wave):
    """Every ratio is e^0.1, and the cap 1.05: so every weight is."""
    other = moved(wave, 0.1)

    def loss(correction: str, far: float) -> tuple[float, float]:
        rules = settings(
            zero_variance="keep",
            importance=ImportanceSettings(correction=correction, cap=1.05),
            kl=KlSettings(where="loss", coefficient=0.5),
        )
        made, policy, items = objective(tiny, other, rules)
        away = [
            dataclasses.replace(
                item,
                target=dataclasses.replace(item.settled, reference=item.settled.reference - far),
            )
            for item in items
        ]
        value = made.loss(policy, away, made.denominator(items)).value
        value.backward()
        norm = torch.stack([p.grad.norm() for p in policy.trainable().values()]).norm()
        return value.item(), float(norm)

    (plain, slope), (weighted, steeper) = loss("none", 0.0), loss("token", 0.0)
    assert weighted == pytest.approx(1.05 * plain, abs=1e-6)
    assert steeper == pytest.approx(1.05 * slope, rel=1e-4)
    kl = 0.5 * (math.exp(-0.3) - 1 + 0.3)
    assert loss("none", 0.3)[0] == pytest.approx(plain + kl, abs=1e-5)
    assert loss("token", 0.3)[0] == pytest.approx(weighted + kl, abs=1e-5)


def test_the_loss_divides_logits_by_the_temperature_that_each_was_sampled_at(tiny, wave, sample):
    """Nothing has moved yet, so every ratio is 1: at another temperature it would not be."""
    cold = sample(tiny, TASKS, by_word, temperature=0.5, seed=1)
    made, policy, items = objective(tiny, wave + cold, settings(zero_variance="keep"))
    loss = made.loss(policy, items, made.denominator(items))
    (ratio, n), (apart, _) = loss.metrics["ratio_mean"], loss.metrics["kl_old"]
    assert n == made.denominator(items)
    assert ratio / n == pytest.approx(1, abs=1e-5)
    assert apart / n == pytest.approx(0, abs=1e-8)


def test_tokens_that_are_masked_carry_no_loss_and_are_not_counted(tiny, wave):
    """The first word of every attempt at the third task is off by e; the others stay."""
    other = []
    for t in wave:
        logprobs = list(unpack_floats(t.logprobs))
        if t.task_id == "grid_2":
            logprobs[t.turns[0].start] -= 1
        other.append(msgspec.structs.replace(t, logprobs=pack_floats(logprobs)))
    rules = settings(zero_variance="keep", importance=ImportanceSettings(mask="icepop"))
    made, policy, items = objective(tiny, other, rules)
    assert len(items) == 18
    for item in items:
        kept = item.settled.mask[item.actions].tolist()
        assert kept == ([False, True, True] if item.group[1] == "grid_2" else [True] * len(kept))
    assert made.denominator(items) == 36 - 6
    for item in items:
        item.settled.advantages[~item.settled.mask] = 1e6
    assert abs(made.loss(policy, items, made.denominator(items)).value.item()) < 10


def test_ppo_whitens_over_all_action_tokens_or_leaves_advantages_as_they_are(tiny, wave):
    """A fresh critic says 0, so that what is left is the return."""
    raw, white = (
        objective(tiny, wave, settings(PpoSettings, critic_warmup=0, whiten=whiten))[2]
        for whiten in (False, True)
    )
    for item in raw:
        assert torch.allclose(item.settled.advantages[item.actions], torch.tensor(item.reward))
    values = torch.cat([item.settled.advantages[item.actions] for item in white])
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.std().item() == pytest.approx(1, abs=1e-3)


def test_a_kl_in_the_reward_is_of_the_trainers_own_log_probs(tiny, wave):
    """The sampler's may be off; the start is its own reference here, so nothing is taken off."""
    rules = {"estimator": "reinforce_pp"}
    _, _, plain = objective(tiny, moved(wave, 0.1), settings(**rules))
    leash = KlSettings(where="reward", coefficient=5.0)
    _, _, held = objective(tiny, moved(wave, 0.1), settings(kl=leash, **rules))
    for one, other in zip(plain, held, strict=True):
        assert torch.allclose(one.settled.advantages, other.settled.advantages, atol=1e-5)


def test_masked_trajectories_are_counted_and_left_out(tiny, wave, tmp_path):
    geometric = ImportanceSettings(mask="geometric")
    half = moved(wave[:3], 0.1) + wave[3:]
    rules = settings(zero_variance="keep", importance=geometric)
    report = learn(tiny, half, tmp_path / "m", rules)
    assert (report.kept, report.dropped) == (15, {"ratio_mask": 3})
    assert report.metrics["mask_fraction"] == pytest.approx(3 / 36)
    with pytest.raises(EmptyWave, match="18 ratio_mask"):
        learn(tiny, moved(wave, 0.1), tmp_path / "n", rules)
    cut = [
        msgspec.structs.replace(t, outcome=Outcome.TRUNCATED, truncation="tokens") for t in wave[:2]
    ]
    rules = settings(zero_variance="keep", reward=RewardSettings(overlong="mask"))
    report = learn(tiny, cut + wave[2:], tmp_path / "o", rules)
    assert report.dropped == {"overlong": 2}
    assert report.metrics["overlong"] == pytest.approx(2 / 18)


def test_a_policy_on_a_leash(tiny, wave, sample, tmp_path):
    first = learn(tiny, wave, tmp_path / "a", settings(kl=KlSettings(where="loss", target=1e-6)))
    assert first.metrics["kl"] == pytest.approx(0, abs=1e-9)
    starts = {"last": str(tmp_path / "a"), "base_bc": tiny, "pretrained": tiny}
    after = sample(starts["last"], TASKS, by_word, wave=2, attempts=6)
    for where in ("loss", "reward"):
        rules = settings(kl=KlSettings(where=where, target=1e-6))
        report = learn(tiny, after, tmp_path / where, rules, starts=starts, number=2)
        assert report.metrics["kl"] > 1e-4
        # The first step measured less than its target, by more than a fifth.
        assert report.metrics["kl_coefficient"] == pytest.approx(1e-3 * (1 - 0.2 * 18 / 10_000))
    near = settings(kl=KlSettings(where="loss", reference="last"))
    report = learn(tiny, after, tmp_path / "last", near, starts=starts, number=2)
    assert report.metrics["kl"] == pytest.approx(0, abs=1e-9)


def test_an_entropy_bonus_keeps_the_policy_open(tiny, wave, tmp_path):
    many = {"max_steps": 10}
    made = {
        eta: learn(
            tiny,
            wave,
            tmp_path / str(eta),
            settings(training=many, loss=SurrogateSettings(entropy=eta)),
        ).metrics["entropy"]
        for eta in (0.0, 1.0)
    }
    assert made[1.0] > made[0.0] + 1e-3


def test_gigpo_tells_turns_of_equal_episodes_apart(tiny, wave):
    """With γ < 1 the same sight earns more where the reward is nearer."""
    rules = settings(estimator="gigpo", discount=0.5)
    _, _, items = objective(tiny, wave, rules)
    plain, _, same = objective(tiny, wave, settings(zero_variance="keep"))
    assert plain.ready.dropped == {}
    for item, other in zip(items, same, strict=True):
        settled, base = item.settled, other.settled
        last = int(item.turns.max())
        at = item.turns == last
        # The last turn's step group is the whole task: the step advantage is the episode's.
        assert torch.allclose(settled.advantages[at], 2 * base.advantages[at], atol=1e-5)


def test_settings_and_rewards_make_another_run(tiny, wave, tmp_path):
    """A checkpoint of the same tokens with other rewards must not be resumed from."""
    from rollwave.learners.gradients.rollouts import hash_rollouts

    items = rollouts_of(settings(), evidence(tiny, wave)).items
    paid = dataclasses.replace(items[0], rewards=items[0].rewards + 1)
    assert hash_rollouts(items) == hash_rollouts(list(items))
    assert hash_rollouts(items) != hash_rollouts([paid, *items[1:]])

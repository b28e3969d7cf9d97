"""AgentEvol: which trajectories make a wave's data, and where training starts."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.errors import BadSample, ConfigError, EmptyWave, EvaluationLeak
from rollwave.engine.trajectory import Outcome
from rollwave.learners.cloning.agent_evol import AgentEvol, Dataset
from rollwave.learners.settings import EvolSettings, TrainingSettings

QUICK = TrainingSettings(max_steps=2, batch=4, device="cpu")


def evol(evaluation=(), base_bc: str = "base", **settings) -> AgentEvol:
    return AgentEvol(
        EvolSettings(training=QUICK, **settings),
        base_bc=base_bc,
        pretrained="pretrained",
        evaluation=evaluation,
    )


def names(dataset: Dataset) -> list[str]:
    return [t.id for t in dataset]


def counted(dataset: Dataset) -> dict[str, int]:
    return dict(dataset.dropped)


# The E and M steps


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=2, max_size=4))
def test_the_tabular_em_step_is_exact(make, arms):
    """Weights of the data are π_m · r: the optimum of the weighted likelihood is known."""
    if not any(times * reward for times, reward in arms):
        return
    words = ("up", "down", "left", "right")
    wave = [
        make.attempt(0, 10 * arm + n, words[arm], reward=float(reward))
        for arm, (times, reward) in enumerate(arms)
        for n in range(times)
    ]
    learner = evol(
        weight="reward", merge="none", thresholds={"*": -1.0}, per_task_cap=0, distinct=False
    )
    dataset = learner.select([], [wave])
    mass: Counter[str] = Counter()
    for trajectory, weight in zip(dataset, dataset.weights, strict=True):
        mass[trajectory.turns[0].action] += Fraction(weight)
    pulls = sum(times for times, _ in arms)
    policy = [Fraction(times, pulls) for times, _ in arms]
    value = sum(p * reward for p, (_, reward) in zip(policy, arms, strict=True))
    for arm, (p, (_, reward)) in enumerate(zip(policy, arms, strict=True)):
        assert mass[words[arm]] / mass.total() == p * reward / value


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=2, max_size=4),
    st.integers(0, 2),
)
def test_the_bound_rises_and_the_expected_reward_by_the_variance_over_the_mean(make, arms, other):
    """J(q, π) = E_q[log r] − KL(q ‖ π), with q as the data's weights make it."""
    if not any(reward for _, reward in arms):
        return
    words = ("up", "down", "left", "right")
    rewards = {word: Fraction(reward, 20) for word, (_, reward) in zip(words, arms, strict=False)}
    pulls = sum(times for times, _ in arms)
    policy = {word: Fraction(times, pulls) for word, (times, _) in zip(words, arms, strict=False)}
    wave = [
        make.attempt(0, 10 * arm + n, words[arm], reward=reward / 20)
        for arm, (times, reward) in enumerate(arms)
        for n in range(times)
    ]
    learner = evol(
        weight="reward", merge="none", thresholds={"*": -1.0}, per_task_cap=0, distinct=False
    )
    dataset = learner.select([], [wave])
    mass: Counter[str] = Counter()
    for trajectory, weight in zip(dataset, dataset.weights, strict=True):
        mass[trajectory.turns[0].action] += Fraction(weight).limit_denominator(1000)
    q = {word: mass[word] / mass.total() for word in policy}

    def bound(q: dict, policy: dict) -> float:
        return math.fsum(
            float(share) * math.log(rewards[word] * policy[word] / share)
            for word, share in q.items()
            if share
        )

    def mean(policy: dict) -> Fraction:
        return sum(policy[word] * rewards[word] for word in policy)

    before, after = mean(policy), mean(q)
    # The E step makes the bound tight; the M step, whose optimum is q itself, raises it.
    assert bound(q, policy) == pytest.approx(math.log(before), abs=1e-9)
    assert bound(q, q) >= bound(q, policy) - 1e-12
    off = {word: (share + (k == other)) / 2 for k, (word, share) in enumerate(q.items())}
    if all(off[word] for word, share in q.items() if share):
        assert bound(q, off) <= bound(q, q) + 1e-12
    variance = sum(policy[word] * (rewards[word] - before) ** 2 for word in policy)
    assert after - before == variance / before >= 0


@pytest.mark.learn
def test_the_weighted_loss_is_stationary_at_the_em_optimum():
    torch = pytest.importorskip("torch", reason="needs gradients")
    from rollwave.learners.model.logprobs import nll, shifted_logprobs

    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reward = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    weights = policy * reward
    ids = torch.tensor([[0, arm] for arm in range(3)])
    mask = torch.tensor([[False, True]] * 3)

    def gradient(at):
        at = at.clone().requires_grad_()
        values = shifted_logprobs(at.expand(3, 2, 3), ids, mask)
        return torch.autograd.grad(nll(values, mask, weights, float(weights.sum())), at)[0]

    assert gradient((weights / weights.sum()).log()).abs().max() < 1e-6
    assert gradient(policy.log()).abs().max() > 0.1


# What enters D_m


def test_the_threshold_is_strict(make):
    wave = [make.attempt(i, reward=r) for i, r in enumerate((0.5, 0.500001, 0.4))]
    dataset = evol(merge="none", thresholds={"grid-v1": 0.5}).select([], [wave])
    assert names(dataset) == ["w1/grid_1/0"]
    assert counted(dataset) == {"below_threshold": 2}


def test_only_the_first_success_of_a_task_survives(make):
    wave = [
        make.attempt(0, 2, "up"),
        make.attempt(0, 1, "up right up"),
        make.attempt(0, 0, reward=0.0, outcome=Outcome.FAILURE),
        make.attempt(1, 5, "left"),
    ]
    dataset = evol(merge="none").select([], [wave])
    assert names(dataset) == ["w1/grid_0/1", "w1/grid_1/5"]
    assert counted(dataset) == {"below_threshold": 1, "over_cap": 1}


def test_shortest_keeps_the_shortest_success_instead(make):
    wave = [make.attempt(0, 0, "up right up"), make.attempt(0, 1, "up")]
    assert names(evol(merge="none", choose="shortest").select([], [wave])) == ["w1/grid_0/1"]


def test_a_cap_of_two_keeps_two_with_different_actions(make):
    wave = [make.attempt(0, n, a) for n, a in enumerate(("up", "up", "left", "down"))]
    dataset = evol(merge="none", per_task_cap=2).select([], [wave])
    assert names(dataset) == ["w1/grid_0/0", "w1/grid_0/2"]
    assert counted(dataset) == {"duplicate": 1, "over_cap": 1}


def test_faults_and_cancellations_are_counted_and_stay_out(make):
    cancelled = make.attempt(2, outcome=Outcome.CANCELLED, reward=None)
    dataset = evol(merge="none").select([], [[make.attempt(0), make.faulted(1), cancelled]])
    assert names(dataset) == ["w1/grid_0/0"]
    assert counted(dataset) == {"fault": 1, "cancelled": 1}


def test_a_waves_data_come_from_its_own_policy_alone(make):
    stale = make.attempt(1, versions=(1, 2), wave=2)
    older = make.attempt(2, versions=(1, 1), wave=2)
    wave = [make.attempt(0, wave=2), stale, older]
    dataset = evol(merge="none").select([], [wave])
    assert names(dataset) == ["w2/grid_0/0"]
    assert counted(dataset) == {"other_policy": 2}
    told = evol(merge="none").select([], [wave], versions=[1])
    assert names(told) == ["w2/grid_2/0"]


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9)))
def test_no_evaluation_task_enters_any_dataset(make, explored, held_out):
    learner = evol({("grid-v1", f"grid_{i}") for i in held_out}, merge="none")
    wave = [make.attempt(i) for i in sorted(explored)]
    if explored & held_out:
        with pytest.raises(EvaluationLeak, match="grid_"):
            learner.select([], [wave])
        with pytest.raises(EvaluationLeak):
            learner.update(wave, out="nowhere")
        with pytest.raises(EvaluationLeak):
            learner.exploration([], [("grid-v1", f"grid_{i}") for i in explored])
    else:
        dataset = learner.select([], [wave])
        assert {t.task_id for t in dataset} == {f"grid_{i}" for i in explored}


def test_an_evaluation_task_among_experts_or_earlier_waves_is_refused_too(make):
    learner = evol({("grid-v1", "grid_7")})
    with pytest.raises(EvaluationLeak, match="grid_7"):
        learner.select([make.expert(7)], [[make.attempt(0)]])
    with pytest.raises(EvaluationLeak, match="grid_7"):
        learner.select([], [[make.attempt(7)], [make.attempt(0, wave=2)]])


def test_the_same_task_number_of_another_environment_is_another_task(make):
    learner = evol({("grid-v1", "grid_0")}, merge="none")
    assert len(learner.select([], [[make.attempt(0, env="grid-v1?size=9")]])) == 1


def test_scope_limited_to_expert_tasks(make):
    experts = [make.expert(0)]
    wave = [make.attempt(0), make.attempt(1)]
    dataset = evol(scope="expert_tasks", merge="none").select(experts, [wave])
    assert names(dataset) == ["w1/grid_0/0"]
    assert counted(dataset) == {"out_of_scope": 1}
    tasks = [("grid-v1", "grid_1"), ("grid-v1", "grid_2")]
    assert evol(scope="expert_tasks").exploration(experts, tasks) == [("grid-v1", "grid_0")]
    assert set(evol().exploration(experts, tasks)) == {("grid-v1", f"grid_{i}") for i in (0, 1, 2)}


def test_new_trajectories_are_limited_to_a_ratio_of_the_experts(make):
    experts = [make.expert(i) for i in range(4)]
    wave = [make.attempt(i) for i in range(10)]
    dataset = evol(max_new_ratio=1.5).select(experts, [wave])
    assert (dataset.counts["experts"], dataset.counts["new"]) == (4, 6)
    assert counted(dataset) == {"over_ratio": 4}
    assert names(dataset) == names(evol(max_new_ratio=1.5).select(experts, [wave]))


# Merging


def merged(make, merge: str, waves: int) -> list[str]:
    experts = [make.expert(0), make.expert(1)]
    history = [
        [make.attempt(m, wave=m), make.attempt(m, 1, "left", wave=m)] for m in range(1, waves + 1)
    ]
    return names(evol(merge=merge).select(experts, history))


def test_merge_arithmetic(make):
    experts = ["w0/grid_0/0", "w0/grid_1/0"]
    wave = [f"w{m}/grid_{m}/0" for m in range(4)]
    assert merged(make, "initial", 3) == [*experts, wave[3]]
    assert merged(make, "previous", 1) == [*experts, wave[1]]  # D_0 = D_s
    assert merged(make, "previous", 3) == [wave[2], wave[3]]
    assert merged(make, "cumulative", 3) == [*experts, *wave[1:]]
    assert merged(make, "none", 3) == [wave[3]]


def test_a_union_holds_a_record_once_though_ids_repeat_across_runs(make):
    same = make.attempt(0)
    twin = make.expert(0, "left", id=same.id)
    assert len(evol().select([same], [[same]])) == 1
    assert len(evol().select([twin], [[same]])) == 2


# Weights


def test_weights_binary_reward_and_exponential(make):
    wave = [make.attempt(0, reward=0.5), make.attempt(1, reward=1.0)]
    options = {"merge": "none", "thresholds": {"*": 0.0}}
    assert evol(**options).select([], [wave]).weights == (1.0, 1.0)
    assert evol(weight="reward", **options).select([], [wave]).weights == (0.5, 1.0)
    low, high = evol(weight="exp", beta=0.25, **options).select([], [wave]).weights
    assert low / high == pytest.approx(math.exp(0.5 / 0.25) / math.exp(1.0 / 0.25))


def test_a_small_beta_does_not_overflow(make):
    wave = [make.attempt(0, reward=0.5), make.attempt(1, reward=1.0)]
    learner = evol(weight="exp", beta=1e-4, merge="none", thresholds={"*": 0.0})
    assert learner.select([], [wave]).weights == (0.0, 1.0)


def test_a_negative_reward_is_never_a_weight(make):
    wave = [make.attempt(0, reward=-0.5), make.attempt(1, reward=1.0)]
    options = {"merge": "none", "thresholds": {"*": -1.0}}
    with pytest.raises(BadSample, match="not be negative"):
        evol(weight="reward", **options).select([], [wave])
    assert min(evol(weight="exp", **options).select([], [wave]).weights) > 0


def test_an_expert_without_a_reward_weighs_as_a_success(make):
    unscored = make.expert(0, reward=None)
    assert evol(weight="reward").select([unscored], [[make.attempt(1)]]).weights == (1.0, 1.0)


# The dataset as a record


def test_equal_input_gives_an_equal_digest_whenever_it_was_played(make):
    wave = [make.attempt(0), make.attempt(1)]
    later = [make.attempt(0, started=5.0, seconds=2.0), make.attempt(1, started=7.0)]
    first = evol().select([make.expert(2)], [wave])
    assert first.digest == evol().select([make.expert(2)], [later]).digest
    assert first.digest != evol().select([make.expert(3)], [wave]).digest
    assert first.digest != evol(merge="none").select([make.expert(2)], [wave]).digest
    changed = [make.attempt(0, actions="up left"), make.attempt(1)]
    assert first.digest != evol().select([make.expert(2)], [changed]).digest


def test_counts_and_statistics_describe_the_wave(make):
    tokens = {
        "token_ids": pack_tokens([1, 2, 3]),
        "loss_mask": pack_mask([0, 1, 1]),
        "logprobs": pack_floats([0.0, -0.5, -1.5]),
    }
    failed = make.attempt(3, reward=0.0, outcome=Outcome.FAILURE, **tokens)
    wave = [make.attempt(0), make.attempt(1), make.attempt(1, 1, "left"), failed, make.faulted(4)]
    dataset = evol().select([make.expert(0)], [wave])
    assert dict(dataset.counts) == {
        "experts": 1,
        "new": 2,
        "trajectories": 3,
        "tasks_solved": 2,
        "tasks_newly_solved": 1,
    }
    assert dataset.statistics["success_rate"] == dataset.statistics["success_rate/grid-v1"] == 0.75
    assert dataset.statistics["turns"] == 7 / 4
    assert dataset.statistics["entropy"] == 1.0
    assert dataset[0] == make.expert(0)
    assert dataset[1:] == (wave[0], wave[1])


def test_a_wave_with_nothing_usable_is_an_error_with_its_counts(make):
    with pytest.raises(EmptyWave, match="1 below_threshold"):
        evol().select([make.expert(0)], [[make.attempt(0, reward=0.0)]])
    with pytest.raises(EmptyWave, match="it is empty"):
        evol().select([make.expert(0)], [[]])
    with pytest.raises(EmptyWave, match="no wave"):
        evol().select([make.expert(0)], [])


def test_versions_must_name_every_wave(make):
    with pytest.raises(ConfigError, match="2 policy versions for 1 waves"):
        evol().select([], [[make.attempt(0)]], versions=[1, 2])


def test_pretrained_start_needs_its_directory():
    with pytest.raises(ConfigError, match="pretrained"):
        AgentEvol(EvolSettings(start="pretrained"), base_bc="base")


# Training


@pytest.mark.learn
@pytest.mark.parametrize("start", ["base_bc", "pretrained", "last"])
def test_every_wave_starts_where_the_settings_say(make, tiny, tmp_path, start):
    """With base_bc and pretrained the start's hash is the same in all waves."""
    settings = EvolSettings(start=start, training=QUICK)
    learner = AgentEvol(settings, base_bc=tiny, pretrained=tiny)
    hashes, paths = [], []
    history = []
    for m in (1, 2):
        history.append([make.attempt(m, wave=m)])
        out = str(tmp_path / str(m))
        learner.update(learner.select([make.expert(0)], history), out=out)
        record = json.loads((Path(out) / "training.json").read_text())
        hashes.append(record["start"]["hash"])
        paths.append(record["start"]["path"])
        assert record["algorithm"] == "agent_evol"
        assert record["evolution"]["start"] == start
    assert (hashes[0] == hashes[1]) == (start != "last")
    assert paths == [tiny, str(tmp_path / "1") if start == "last" else tiny]


@pytest.mark.learn
def test_weights_of_a_dataset_reach_the_loss(make, tiny, tmp_path):
    """A trajectory of weight 0 changes nothing; the same one of weight 1 does."""
    from safetensors.torch import load_file

    def trained(name: str, wave: list, **options) -> dict:
        settings = EvolSettings(merge="none", thresholds={"*": -1.0}, training=QUICK, **options)
        learner = AgentEvol(settings, base_bc=tiny)
        learner.update(learner.select([], [wave]), out=str(tmp_path / name))
        return load_file(tmp_path / name / "model.safetensors")

    def equal(a: dict, b: dict) -> bool:
        return all(abs(a[k] - b[k]).max() < 1e-5 for k in a)

    good, bad = make.attempt(0, actions="up"), make.attempt(1, actions="left", reward=0.0)
    alone = trained("alone", [good])
    assert equal(trained("reward", [good, bad], weight="reward"), alone)
    assert not equal(trained("binary", [good, bad]), alone)

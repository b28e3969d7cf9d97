"""What each algorithm does with bad input: one table, and no cell of it trains in silence.

A wave that is bad throughout ends the step with an error that counts why; one bad trajectory
among good ones is left out, counted, and the rest is learned from; a model that is not what it
should be is one clear error. Not here: the rules one by one (tests beside each algorithm).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="an evolution step trains a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.codec import (  # noqa: E402
    pack_floats,
    pack_tokens,
    unpack_floats,
    unpack_tokens,
)
from rollwave.engine.errors import BadSample, ConfigError, EmptyWave, LearnerError  # noqa: E402
from rollwave.engine.trajectory import Outcome, Trajectory, Turn  # noqa: E402
from rollwave.learners.algorithms import evolve  # noqa: E402
from rollwave.learners.base import Evidence, Report  # noqa: E402
from rollwave.learners.cloning.behaviour_cloning import clone  # noqa: E402
from rollwave.learners.model.tiny import make_tiny_model  # noqa: E402
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
    KlSettings,
    RewardSettings,
    SurrogateSettings,
)

TASKS = (["at 1 door"], ["at 2 door", "wall 3"], ["key", "at 4 wall", "door"])
ESTIMATORS = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline", "maxrl", "gigpo", "reinforce_pp")
GROUPED = ESTIMATORS[:-1]
GRADIENTS = (*ESTIMATORS, "ppo")
PAIRS = ("dpo", "dpo-expert", "dpo-two", "eto", "eto-self", "eto-mixture")
CLONES = ("rft", "agent_evol")
SIZES = {"width": 32, "layers": 2, "heads": 2, "context": 128}
WAVES = (*CLONES, *PAIRS, *GRADIENTS)


def some(cells) -> list:
    """Parameters, of which those that take another's path to the letter are for the slow suite."""
    slow = {"grpo", "rloo", "reinforce_pp_baseline", "maxrl"}
    made = []
    for cell in cells:
        values = cell if isinstance(cell, tuple) else (cell,)
        marks = [pytest.mark.slow] if values[0] in slow else []
        made.append(pytest.param(*values, marks=marks, id="-".join(filter(None, values))))
    return made


def settings(name: str, **training):
    """Of an algorithm, small enough for a test."""
    plain = TrainingSettings(**({"device": "cpu", "max_steps": 1, "batch": 4} | training))
    gradient = GradientTraining(**({"device": "cpu", "batch": 24} | training))
    match name:
        case "clone":
            return plain
        case "rft":
            return RejectionSettings(training=plain, thresholds={"*": 0.01})
        case "agent_evol":
            return EvolSettings(training=plain, thresholds={"*": 0.01}, per_task_cap=0)
        case "dpo" | "dpo-expert" | "dpo-two":
            pairing = {"dpo": "self", "dpo-expert": "expert", "dpo-two": "two_samples"}[name]
            return DpoSettings(training=plain, threshold=0.01, pairing=pairing, pairs_per_task=0)
        case "eto" | "eto-self" | "eto-mixture":
            contrast = "mixture" if name == "eto-mixture" else "trajectory"
            return EtoSettings(
                training=plain,
                min_pairs=1,
                contrast=contrast,
                self_play=name == "eto-self",
                pairs_per_task=0,
            )
        case "ppo":
            return PpoSettings(training=gradient, critic_warmup=1)
        case _:
            return GrpoSettings(training=gradient, estimator=name)


def expert(make, task: int) -> Trajectory:
    seen = zip(TASKS[task], ("up", "right", "left"), strict=False)
    return make.expert(task, turns=tuple(Turn(sight, word, word, 0.0) for sight, word in seen))


@pytest.fixture(scope="module")
def experts(make) -> list[Trajectory]:
    return [expert(make, task) for task in range(3)]


@pytest.fixture(scope="module")
def wave(tiny, sample) -> list[Trajectory]:
    """Three tasks, six attempts each, no two of one task with one reward, none with an
    expert's."""
    return [
        replace(t, reward=(3 * t.attempt + int(t.task_id[-1]) + 1) / 20, outcome=Outcome.SUCCESS)
        for t in sample(tiny, TASKS, lambda *_: 0.0, attempts=6)
    ]


@pytest.fixture
def step(tiny, experts, tmp_path):
    """`step(settings, waves)`: an evolution step; nothing is left behind where it fails."""

    def run(rules, waves, *, shown=None, start: str = tiny, number: int = 1, **starts) -> Report:
        shown = experts if shown is None else shown
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        try:
            if isinstance(rules, TrainingSettings):
                return clone(shown, settings=rules, start=start, out=str(out))
            roles = {"last": start, "base_bc": start, "pretrained": start} | starts
            evidence = Evidence(starts=roles, experts=shown, waves=waves, number=number)
            return evolve(rules, evidence, out=str(out))
        except Exception:
            assert not out.exists()
            raise

    return run


# A wave that teaches nothing


EMPTY = {
    **dict.fromkeys(CLONES, "has no usable trajectory"),
    **dict.fromkeys(PAIRS, "0 usable preference pairs, .*the wave is empty"),
    **dict.fromkeys(GRADIENTS, "no trajectory to follow .*the wave is empty"),
}


@pytest.mark.parametrize("name", WAVES)
@pytest.mark.parametrize("waves", [[], [()], [(), ()]], ids=["none", "empty", "two empty"])
def test_an_empty_wave(step, name, waves):
    text = "no wave was given" if name == "agent_evol" and not waves else EMPTY[name]
    with pytest.raises(EmptyWave, match=text):
        step(settings(name), waves)


def test_nothing_to_clone(step):
    with pytest.raises(EmptyWave, match="none were given"):
        step(settings("clone"), [], shown=[])


SINGLE = {
    **dict.fromkeys(GROUPED, (EmptyWave, "3 singleton")),
    **dict.fromkeys(("dpo", "dpo-two"), (EmptyWave, "3 single")),
    "eto-self": (EmptyWave, "3 itself"),
    # Each trajectory has somebody else to be judged by: an expert, a critic, the whole wave.
    **dict.fromkeys(("ppo", "reinforce_pp", "dpo-expert", "eto", "eto-mixture"), 3),
    **dict.fromkeys(CLONES, 6),
}


@pytest.mark.parametrize("name", WAVES)
def test_groups_of_one(step, wave, name):
    single, expected = [t for t in wave if t.attempt == 0], SINGLE[name]
    if isinstance(expected, int):
        assert step(settings(name), [single]).kept == expected
    else:
        with pytest.raises(expected[0], match=expected[1]):
            step(settings(name), [single])


NOTHING = "advantages of all 18 trajectories are 0"
EQUAL = {
    **dict.fromkeys(CLONES, "18 below_threshold"),
    **dict.fromkeys(("dpo", "dpo-two"), "small_gap"),
    **dict.fromkeys(("eto-self",), "15 tie"),
    **dict.fromkeys(GROUPED, "18 zero_variance"),
    **dict.fromkeys(("gigpo", "reinforce_pp", "ppo"), NOTHING),
}


@pytest.mark.parametrize("name", EQUAL)
def test_rewards_that_are_all_0(step, wave, name):
    """Nothing is learned from them, moments that were carried here move nothing either."""
    equal = [replace(t, reward=0.0, outcome=Outcome.FAILURE) for t in wave]
    with pytest.raises(EmptyWave, match=EQUAL[name]):
        step(settings(name), [equal])


@pytest.mark.parametrize("name", [*PAIRS, *GROUPED, "reinforce_pp"])
def test_rewards_that_are_all_1(step, wave, name):
    """The experts' own reward: a tie for those who compare with them."""
    equal = [replace(t, reward=1.0, outcome=Outcome.SUCCESS) for t in wave]
    expected = {**EQUAL, "dpo-expert": "18 tie", "eto": "18 tie", "eto-mixture": "tie"}[name]
    with pytest.raises(EmptyWave, match=expected):
        step(settings(name), [equal])


@pytest.mark.parametrize("name", ["gigpo", "reinforce_pp"])
def test_equal_rewards_may_still_be_pulled_to_a_reference_or_open(step, wave, name):
    equal = [replace(t, reward=0.0, outcome=Outcome.FAILURE) for t in wave]
    for fields in ({"kl": KlSettings(where="loss")}, {"loss": SurrogateSettings(entropy=0.1)}):
        report = step(replace(settings(name), **fields), [equal])
        assert report.metrics["advantage_std"] == 0
        assert report.kept == 18


def test_a_critic_learns_from_equal_rewards_what_it_did_not_expect(step, wave):
    equal = [replace(t, reward=1.0) for t in wave]
    report = step(replace(settings("ppo"), critic_warmup=0), [equal])
    assert report.metrics["value_loss"] > 0


# Trajectories that cannot be learned from


def nan(t: Trajectory) -> Trajectory:
    values = list(unpack_floats(t.logprobs))
    values[t.turns[0].start] = math.nan
    return replace(t, logprobs=pack_floats(values))


def long(t: Trajectory) -> Trajectory:
    """Longer than the context by what stands before the first turn."""
    more = 200
    turns = tuple(replace(x, start=x.start + more, end=x.end + more) for x in t.turns)
    return replace(
        t,
        token_ids=bytes(4 * more) + t.token_ids,
        logprobs=bytes(4 * more) + t.logprobs,
        loss_mask=bytes(more) + t.loss_mask,
        turns=turns,
    )


def without_words(t: Trajectory) -> Trajectory:
    turns = tuple(replace(x, end=x.start, completion="", action="") for x in t.turns)
    return replace(t, turns=turns, loss_mask=bytes(len(t.loss_mask)))


BAD: dict[str, tuple[Callable[[Trajectory], Trajectory], str]] = {
    "NaN log-probs": (nan, "bad_logprobs"),
    "too long": (long, "too_long"),
    "mask too short": (lambda t: replace(t, loss_mask=t.loss_mask[:-1]), "bad_sample"),
    "mask too long": (lambda t: replace(t, loss_mask=t.loss_mask + b"\0"), "bad_sample"),
    "log-probs cut": (lambda t: replace(t, logprobs=t.logprobs[:-4]), "bad_sample"),
    "no turns": (lambda t: replace(t, turns=(), loss_mask=bytes(len(t.loss_mask))), "no_turns"),
    "no words": (without_words, "empty_mask"),
}
OTHERWISE = {
    **{("no turns", name): "empty_side" for name in PAIRS},
    ("no turns", "eto-mixture"): "bad_branch",  # but for the two that are no branches
    **{("no words", name): "identical" for name in ("dpo", "dpo-two", "eto-self")},
}
"""Where pairs have a word of their own for it."""


@pytest.mark.parametrize("name", some(WAVES))
@pytest.mark.parametrize("kind", BAD)
def test_a_wave_that_is_bad_throughout(step, wave, kind, name):
    """Also where experts would be left to train on: the step was to learn from the wave."""
    spoil, reason = BAD[kind]
    with pytest.raises(EmptyWave, match=rf"\d {OTHERWISE.get((kind, name), reason)}"):
        step(settings(name), [[spoil(t) for t in wave]])


@pytest.mark.parametrize("name", some(n for n in WAVES if n != "dpo-two"))
@pytest.mark.parametrize("kind", BAD)
def test_one_bad_trajectory_among_good_ones(step, wave, kind, name):
    """The first attempt at the longest task; where a pair falls, its other side does too."""
    spoil, reason = BAD[kind]
    reason = {"no turns": "empty_side"}.get(kind, reason) if name in PAIRS else reason
    good = step(settings(name), [wave])
    mixed = [spoil(t) if t.id == "w1/grid_2/0" else t for t in wave]
    report = step(settings(name), [mixed])
    assert report.dropped.get(reason, 0) == good.dropped.get(reason, 0) + 1
    assert 0 < report.kept < good.kept


def test_bad_experts_are_left_out_of_cloning(step, wave):
    """A sampled trajectory may be cloned, too: a mask that does not fit it is found."""
    shown = [*wave[:4], *(spoil(wave[17]) for spoil, _ in BAD.values())]
    report = step(settings("clone"), [], shown=shown)
    assert report.kept == 4
    reasons = [reason for _, reason in BAD.values()]
    assert report.dropped == {reason: reasons.count(reason) for reason in set(reasons)}


@pytest.mark.parametrize("name", ["eto", "eto-mixture", "dpo-expert"])
def test_a_pair_with_an_empty_experts_side(step, wave, experts, name):
    hollow = [*experts[:2], replace(experts[2], turns=())]
    whole, report = (step(settings(name), [wave], shown=shown) for shown in (experts, hollow))
    assert 0 < report.kept < whole.kept
    assert sum(report.dropped.values()) > sum(whole.dropped.values())
    assert {"empty_side", "bad_branch"} & report.dropped.keys()
    with pytest.raises(EmptyWave, match="empty_side"):
        step(settings(name), [wave], shown=[replace(t, turns=()) for t in experts])


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_turn_that_paid_nothing_that_is_a_number(step, wave, name):
    def spoil(t):
        return replace(t, turns=tuple(replace(turn, reward=math.nan) for turn in t.turns))

    mixed = [spoil(t) if t.attempt == 0 else t for t in wave]
    rules = replace(settings(name), reward=RewardSettings(placement="uniform"))
    assert step(rules, [mixed]).dropped == {"bad_reward": 3}


@pytest.mark.parametrize("name", WAVES)
def test_words_of_another_tokenizer(step, wave, name):
    def spoil(t):
        ids = list(unpack_tokens(t.token_ids))
        ids[t.turns[0].start] = 9_999
        return replace(t, token_ids=pack_tokens(ids))

    with pytest.raises(LearnerError, match=r"token 9999 .*another tokenizer"):
        step(settings(name), [[spoil(t) for t in wave]])


# Models that are not what they should be


@pytest.fixture(scope="module")
def models(tiny, experts, tmp_path_factory) -> Callable[[str], str]:
    """`models(name)`: a model directory with something wrong about it."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("wrong")
    words = [*map(str, range(40))]

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, folder / name))

    weights = copy("damaged") / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] *= math.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    cut = copy("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    larger = make_tiny_model(folder / "larger", vocabulary=words, **SIZES)
    other = copy("other words")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(larger / name, other / name)
    lora = TrainingSettings(device="cpu", max_steps=1, lora=LoraSettings(rank=2))
    seed = make_tiny_model(folder / "seed", vocabulary=["up", "door"], seed=7, **SIZES)
    clone(experts, settings=lora, start=str(seed), out=str(folder / "l"))
    shutil.copytree(folder / "l" / "adapter", folder / "foreign")
    return lambda name: str(folder / name)


ALL = ("clone", *WAVES)
WRONG = {
    "damaged": {
        **dict.fromkeys(("clone", *CLONES), (LearnerError, "loss of .*damaged itself is nan")),
        **dict.fromkeys(PAIRS, (BadSample, "log-probability nan under the reference .*damaged")),
        **dict.fromkeys(GRADIENTS, (LearnerError, "log-probs of .*damaged are not finite")),
    },
    "cut": dict.fromkeys(ALL, (ConfigError, "cut holds no model that can be loaded")),
    "other words": dict.fromkeys(ALL, (ConfigError, "tokenizer is another model's")),
}


@pytest.mark.parametrize("name", some(ALL))
@pytest.mark.parametrize("kind", WRONG)
def test_a_start_that_is_not_a_whole_model(step, wave, models, kind, name):
    error, text = WRONG[kind][name]
    with pytest.raises(error, match=text):
        step(settings(name), [wave], start=models(kind))


COMPARED = [(name, "") for name in PAIRS] + [
    (name, where)
    for name in GRADIENTS
    for where in ("loss", "reward")
    if (name, where) != ("maxrl", "reward")
]


@pytest.mark.parametrize(("name", "where"), some(COMPARED))
@pytest.mark.parametrize("kind", ["damaged", "larger", "cut"])
def test_a_reference_that_cannot_be_compared_with(step, wave, models, kind, name, where):
    """With a KL in the reward, a NaN of it once made every advantage 0 and trained on."""
    if where:
        rules = replace(settings(name), kl=KlSettings(where=where))
        damaged = (LearnerError, "log-probs of the reference .*damaged are not finite")
    else:
        rules = replace(settings(name), reference="base_bc")
        damaged = (BadSample, "nan under the reference .*damaged")
    error, text = {
        "damaged": damaged,
        "larger": (ConfigError, "only models of one tokenizer can be compared"),
        "cut": (ConfigError, "cut holds no model"),
    }[kind]
    with pytest.raises(error, match=text):
        step(rules, [wave], base_bc=models(kind))


@pytest.mark.parametrize("name", ALL)
def test_adapters_of_another_base(step, wave, models, name):
    rules = settings(name, lora=LoraSettings(adapter=models("foreign")))
    with pytest.raises(ConfigError, match=r"foreign was trained on .*seed, not on .*tiny"):
        step(rules, [wave])


def test_a_critic_that_is_damaged(step, tiny, wave, tmp_path):
    from safetensors.torch import load_file, save_file

    roles = {"last": tiny, "base_bc": tiny, "pretrained": tiny}
    first, rules = tmp_path / "first", settings("ppo")
    evolve(rules, Evidence(starts=roles, waves=[wave]), out=str(first))
    after = [replace(t, versions=(1, 1)) for t in wave]
    head = first / "critic" / "head.safetensors"
    whole = head.read_bytes()
    save_file({"weight": load_file(head)["weight"] * math.nan}, head)
    with pytest.raises(LearnerError, match=r"values of the critic of .*first are not finite"):
        step(rules, [after], start=str(first), number=2)
    head.write_bytes(whole)
    trunk = first / "critic" / "model.safetensors"
    trunk.write_bytes(trunk.read_bytes()[:99])
    with pytest.raises(ConfigError, match="critic holds no model that can be loaded"):
        step(rules, [after], start=str(first), number=2)


def test_every_algorithm_is_in_the_table():
    """One that is new has to say what it does with all this."""
    from rollwave.learners.settings import AnyLearner
    from rollwave.learners.settings.policy_gradient import Estimator

    assert {type(settings(name)) for name in WAVES} == set(AnyLearner.__args__)
    assert set(ESTIMATORS) == set(Estimator.__args__)

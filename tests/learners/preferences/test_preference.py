"""The preference objective on a tiny model: the oracles of DPO that need a forward pass."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="the objective runs a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens  # noqa: E402
from rollwave.engine.errors import BadSample, ConfigError  # noqa: E402
from rollwave.engine.trajectory import FinishReason, Outcome  # noqa: E402
from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.model.chat import load_renderer, tokenise  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.preferences.objective import Preference  # noqa: E402
from rollwave.learners.preferences.pairs import Pair, against_experts, at_turns  # noqa: E402
from rollwave.learners.preferences.samples import PairSample, pair_samples  # noqa: E402
from rollwave.learners.settings import DpoSettings, LoraSettings, TrainingSettings  # noqa: E402

CPU = TrainingSettings(device="cpu")
LN2 = math.log(2)


def sampled(start: str, trajectory, *, observed: int = 0):
    """The same episode with the tokens and log-probs that a sampler would have recorded."""
    renderer = load_renderer(start)
    whole = tokenise(renderer, trajectory)
    ids, mask, position, turns = list(whole.token_ids), list(whole.loss_mask), 0, []
    for turn in trajectory.turns:
        begin = mask.index(1, position)
        position = begin + len(renderer.completion(turn.completion))
        span = {"start": begin, "end": position, "finish": FinishReason.STOP}
        turns.append(msgspec.structs.replace(turn, **span))
    trailing = renderer.following("at 1 2 door", closed=True)[:observed]
    mask += [0] * len(trailing)
    return msgspec.structs.replace(
        trajectory,
        turns=tuple(turns),
        token_ids=pack_tokens([*ids, *trailing]),
        loss_mask=pack_mask(mask),
        logprobs=pack_floats([-0.5 * m for m in mask]),
    )


@pytest.fixture(scope="module")
def pairs(tiny, make) -> list[Pair]:
    """Pairs of ragged lengths, experts' text against sampled tokens."""
    failed = {"reward": 0.0, "outcome": Outcome.FAILURE}
    lost = ["down", "down left", "left left left left", "up left up up up"]
    explored = [sampled(tiny, make.attempt(i, 0, a, **failed)) for i, a in enumerate(lost)]
    return against_experts([make.expert(i) for i in range(4)], explored).kept


@pytest.fixture(scope="module")
def items(tiny, pairs) -> list[PairSample]:
    return pair_samples(pairs, start=tiny, settings=CPU).items


def objective(**options) -> Preference:
    return Preference(DpoSettings(training=CPU, **options))


def loaded(start: str, **options) -> Policy:
    return Policy.load(start, device="cpu", **options)


def nudged(policy: Policy) -> Policy:
    """The policy after some training, as it were."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in policy.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.mark.parametrize("packing", ["auto", "never"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_the_loss_begins_at_ln_2_whatever_shares_a_pass(tiny, items, packing, lora):
    policy = loaded(tiny, packing=packing, lora=lora)
    learner = objective(beta=0.5)
    ready = learner.prepare(policy, items)
    for part in (ready, ready[1:2], ready[::-1]):
        loss = learner.loss(policy, part, float(len(part)))
        assert loss.value.item() == pytest.approx(LN2, abs=1e-5)
        metrics = {name: value / weight for name, (value, weight) in loss.metrics.items()}
        assert metrics["margin"] == pytest.approx(0.0, abs=1e-5)
        assert metrics["chosen_logprob"] < 0


def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut(tiny, items):
    learner = objective(nll=0.1, dpop=0.5, label_smoothing=0.1)
    ready = learner.prepare(loaded(tiny), items)

    def step(parts, packing) -> tuple[float, list]:
        policy = nudged(loaded(tiny, packing=packing))
        total = 0.0
        for part in parts:
            loss = learner.loss(policy, part, learner.denominator(ready)).value
            loss.backward()
            total += loss.item()
        return total, [p.grad for p in policy.trainable().values()]

    whole, gradients = step([ready], "auto")
    for parts in ([[item] for item in ready], [ready[2:], ready[:2]]):
        for packing in ("auto", "never"):
            loss, others = step(parts, packing)
            assert loss == pytest.approx(whole, abs=1e-6)
            for one, other in zip(gradients, others, strict=True):
                assert torch.allclose(one, other, atol=1e-6)


def test_h_is_what_four_plain_log_probs_make_it(tiny, items):
    """Against transformers' own logits, each sequence alone."""
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(tiny)
    policy = nudged(loaded(tiny))

    def total(model, sample: Sample) -> float:
        ids = torch.tensor([list(sample.token_ids)])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        taken = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        return float(taken[torch.tensor(list(sample.loss_mask[1:]), dtype=torch.bool)].sum())

    learner = objective()
    ready = learner.prepare(loaded(tiny), items)
    with torch.no_grad():
        found = learner.compare(policy, ready).advantage().tolist()
        by_hand = [
            (total(policy.model, item.chosen) - total(policy.model, item.rejected))
            - (total(start, item.chosen) - total(start, item.rejected))
            for item in items
        ]
    assert found == pytest.approx(by_hand, abs=1e-4)


def test_swapped_sides_turn_h_round(tiny, items):
    learner, policy = objective(), nudged(loaded(tiny))
    swapped = [PairSample(item.rejected, item.chosen) for item in items]
    start = loaded(tiny)
    with torch.no_grad():
        one = learner.compare(policy, learner.prepare(start, items)).advantage()
        other = learner.compare(policy, learner.prepare(start, swapped)).advantage()
    assert torch.allclose(one, -other, atol=1e-5)


def test_padding_changes_nothing(tiny, items):
    """A long neighbour pads the others; they keep their log-probs."""
    learner, policy = objective(), nudged(loaded(tiny, packing="never"))
    ready = learner.prepare(policy, items)
    neighbour = replace(
        ready[0], chosen=Sample("long", [5] * 100, [0] * 99 + [1]), reference=(0.0, 0.0)
    )
    with torch.no_grad():
        alone = learner.compare(policy, ready)
        padded = learner.compare(policy, [*ready, neighbour])
    assert torch.allclose(alone.chosen, padded.chosen[:-1], atol=1e-5)
    assert torch.allclose(alone.rejected, padded.rejected[:-1], atol=1e-5)


def test_a_shared_beginning_cancels_in_h_and_not_in_the_likelihood(tiny, make):
    """Whether it carries loss or not: the same tokens stand on both sides."""
    expert = make.expert(0, "up right down")
    lost = make.attempt(0, 3, "up right left", reward=0.0, outcome=Outcome.FAILURE)
    (pair,) = at_turns([expert], [sampled(tiny, lost)]).kept
    (last,) = pair_samples([pair], start=tiny, settings=CPU).items
    whole = PairSample(
        tokenise(load_renderer(tiny), expert),
        replace(last.rejected, loss_mask=lost_mask(tiny, lost)),
    )
    assert sum(whole.chosen.loss_mask) > sum(last.chosen.loss_mask)
    learner, policy = objective(), nudged(loaded(tiny))
    with torch.no_grad():
        one, other = (
            learner.compare(policy, learner.prepare(loaded(tiny), [item])) for item in (last, whole)
        )
    assert abs(one.advantage().item()) > 1e-3
    assert other.advantage().item() == pytest.approx(one.advantage().item(), abs=1e-5)
    assert other.chosen.item() < one.chosen.item() - 1


def lost_mask(start: str, trajectory) -> bytes:
    return bytes(tokenise(load_renderer(start), trajectory).loss_mask)


def test_more_of_the_same_beginning_outside_the_mask_leaves_h_alone(tiny, items):
    """In a model whose tokens see the one before them only: what else is said changes nothing."""

    def blind(policy: Policy) -> Policy:
        with torch.no_grad():
            for name, parameter in policy.trainable().items():
                if "o_proj" in name:
                    parameter.zero_()
        return policy

    def longer(sample: Sample) -> Sample:
        more = [3, 7, 5, 9]
        return replace(
            sample,
            token_ids=[*more, *sample.token_ids],
            loss_mask=bytes(len(more)) + bytes(sample.loss_mask),
            logprobs=(),
        )

    more = [PairSample(longer(item.chosen), longer(item.rejected)) for item in items]
    learner, policy, start = objective(), blind(nudged(loaded(tiny))), blind(loaded(tiny))
    with torch.no_grad():
        one, other = (
            learner.compare(policy, learner.prepare(start, given)) for given in (items, more)
        )
    assert one.advantage().abs().min() > 1e-3
    assert torch.allclose(one.advantage(), other.advantage(), atol=1e-5)
    assert torch.equal(one.chosen_tokens, other.chosen_tokens)


def test_the_reference_is_the_start_also_when_a_run_goes_on(tiny, items):
    """`prepare` alone settles it: a policy that has moved is compared with where it began."""
    learner = objective()
    ready = learner.prepare(loaded(tiny), items)
    again = objective().prepare(loaded(tiny), items)
    assert [item.reference for item in ready] == [item.reference for item in again]
    loss = learner.loss(nudged(loaded(tiny)), ready, float(len(ready)))
    assert abs(loss.value.item() - LN2) > 1e-3
    with pytest.raises(ConfigError, match="prepare"):
        learner.loss(loaded(tiny), items, 1.0)


def test_another_reference_can_be_named(tiny, items, tmp_path):
    policy = nudged(loaded(tiny))
    policy.save(tmp_path / "moved")
    learner = Preference(DpoSettings(training=CPU), reference=str(tmp_path / "moved"))
    ready = learner.prepare(loaded(tiny), items)
    assert learner.loss(policy, ready, float(len(ready))).value.item() == pytest.approx(
        LN2, abs=1e-5
    )
    assert abs(learner.loss(loaded(tiny), ready, 4.0).value.item() - LN2) > 1e-3


def test_a_reference_of_another_vocabulary_or_with_damaged_weights_is_refused(
    tiny, items, tmp_path
):
    from rollwave.learners.model.tiny import make_tiny_model

    other = make_tiny_model(
        tmp_path / "other", vocabulary=("at", "door"), width=32, layers=1, heads=2, context=128
    )
    with pytest.raises(ConfigError, match="words"):
        Preference(DpoSettings(training=CPU), reference=str(other)).prepare(loaded(tiny), items)
    damaged = loaded(tiny)
    with torch.no_grad():
        next(iter(damaged.trainable().values())).fill_(math.nan)
    with pytest.raises(BadSample, match="under the reference"):
        objective().prepare(damaged, items)


def test_sampler_and_trainer_are_compared_where_they_are_the_same_policy(tiny, items):
    learner = Preference(DpoSettings(training=CPU), sampled_at=0.0)
    learner.prepare(loaded(tiny), items)
    assert learner.figures["logprob_mismatch"] > 0.1  # the records say -0.5 everywhere
    silent = objective()
    silent.prepare(loaded(tiny), items)
    assert silent.figures == {}


# From trajectories to sequences


def test_sides_end_with_what_the_agent_wrote(tiny, make):
    failed = make.attempt(0, 0, "down left", reward=0.0, outcome=Outcome.FAILURE)
    explored = sampled(tiny, failed, observed=3)
    (pair,) = against_experts([make.expert(0)], [explored]).kept
    (item,) = pair_samples([pair], start=tiny, settings=CPU).items
    assert item.rejected.loss_mask[-1] == 1
    assert len(item.rejected.token_ids) == explored.turns[-1].end
    assert list(item.chosen.token_ids) == list(
        tokenise(load_renderer(tiny), make.expert(0)).token_ids
    )
    # The best own trajectory of self-play, where a newer one is better.
    own = msgspec.structs.replace(explored, reward=0.5)
    (pair,) = against_experts([own], [sampled(tiny, make.attempt(0, 1), observed=3)]).kept
    (item,) = pair_samples([pair], start=tiny, settings=CPU).items
    assert item.chosen.loss_mask[-1] == item.rejected.loss_mask[-1] == 1


@pytest.mark.parametrize("with_tokens", [True, False], ids=["tokens", "text"])
def test_sides_of_a_single_turn_share_all_tokens_before_it(tiny, make, with_tokens):
    expert = make.expert(0, "up right down")
    own = make.attempt(0, 2, "up left left", reward=0.0, outcome=Outcome.FAILURE)
    branch = sampled(tiny, own) if with_tokens else own
    (pair,) = at_turns([expert], [branch]).kept
    settings = msgspec.structs.replace(CPU, texts=True)
    (item,) = pair_samples([pair], start=tiny, settings=settings).items
    chosen, rejected = item.chosen, item.rejected
    first = list(chosen.loss_mask).index(1)
    assert list(chosen.token_ids[:first]) == list(rejected.token_ids[:first])
    written = load_renderer(tiny).completion("right")
    assert list(chosen.token_ids[first:]) == written
    assert list(rejected.token_ids[first:]) == load_renderer(tiny).completion("left")
    for side in (chosen, rejected):
        assert sum(side.loss_mask) == len(written)  # that one turn, its closer included
        assert list(side.loss_mask).index(1) == first


def test_a_pair_goes_whole_where_one_side_cannot_be_used(tiny, make, pairs):
    """A side that was cut to fit would lose for where it was cut."""
    longest = max(p.rejected.tokens for p in pairs)
    short = msgspec.structs.replace(CPU, context=longest - 1)
    found = pair_samples(pairs, start=tiny, settings=short)
    assert found.dropped == {"too_long": 1}
    assert len(found.items) == len(found.pairs) == 3
    lost = make.attempt(0, 0, "down", reward=0.0, outcome=Outcome.FAILURE)
    (bare,) = against_experts(
        [make.expert(0)],
        [
            msgspec.structs.replace(
                lost, turns=(msgspec.structs.replace(lost.turns[0], finish=FinishReason.STOP),)
            )
        ],
    ).kept
    assert pair_samples([bare], start=tiny, settings=CPU).dropped == {"no_tokens": 1}
    broken = msgspec.structs.replace(pairs[0].rejected, loss_mask=b"\x01")
    torn = Pair(pairs[0].chosen, broken)
    assert pair_samples([torn], start=tiny, settings=CPU).dropped == {"bad_sample": 1}


def test_sides_that_are_the_same_tokens_are_no_pair(tiny, make):
    """Texts may differ in what tokenising takes away."""
    twin = sampled(tiny, make.attempt(0, reward=0.0, outcome=Outcome.FAILURE))
    same = Pair(make.expert(0), twin)
    assert pair_samples([same], start=tiny, settings=CPU).dropped == {"identical": 1}

"""The policy: log-probs that do not depend on padding, and exports that load."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="policies are torch models")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import ConfigError  # noqa: E402
from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.model.chat import load_renderer, tokenise  # noqa: E402
from rollwave.learners.model.logprobs import shifted_logprobs  # noqa: E402
from rollwave.learners.model.policy import (  # noqa: E402
    Policy,
    configure_threads,
    context_length,
)
from rollwave.learners.settings import LoraSettings  # noqa: E402
from rollwave.learners.training.collate import Batch, collate  # noqa: E402


@pytest.fixture(scope="module")
def policy(tiny) -> Policy:
    return Policy.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def samples(make, tiny) -> list[Sample]:
    renderer = load_renderer(tiny)
    actions = ("up", "up right left", "down down", "left up down right up")
    return [tokenise(renderer, make.expert(i, a)) for i, a in enumerate(actions)]


def logprobs(policy: Policy, samples: list[Sample]) -> list[torch.Tensor]:
    with torch.no_grad():
        values = policy.logprobs(collate(samples))
    return [row[: len(s.token_ids)] for row, s in zip(values, samples, strict=True)]


def close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=1e-6) for x, y in zip(a, b, strict=True))


def test_logprobs_are_those_of_a_plain_forward_pass(policy, samples):
    batch = collate(samples)
    with torch.no_grad():
        logits = policy.model(
            input_ids=batch.token_ids, attention_mask=batch.attention.long()
        ).logits
        plain = shifted_logprobs(logits, batch.token_ids, batch.loss_mask)
        assert torch.allclose(policy.logprobs(batch), plain, rtol=0, atol=1e-6)
    assert (plain[~batch.loss_mask] == 0).all()
    assert (plain[batch.loss_mask] < 0).all()


def test_logprobs_do_not_depend_on_padding_or_order(policy, samples):
    alone = [logprobs(policy, [s])[0] for s in samples]
    assert close(logprobs(policy, samples), alone)
    assert close(logprobs(policy, samples[::-1])[::-1], alone)


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_padding_at_the_left_gives_the_same_as_at_the_right(tiny, samples, packing):
    """Ours stands at the right always; a loss may not depend on it."""
    policy = Policy.load(tiny, device="cpu", packing=packing)
    right = collate(samples)
    lengths = right.attention.sum(1).tolist()
    width = right.token_ids.shape[1]

    def rolled(values: torch.Tensor) -> torch.Tensor:
        rows = [row.roll(width - n) for row, n in zip(values, lengths, strict=True)]
        return torch.stack(rows)

    each = (right.token_ids, right.attention, right.loss_mask, right.logprobs)
    left = Batch(*map(rolled, each), right.weights)
    assert not left.attention[:, 0].all()
    with torch.no_grad():
        expected = rolled(policy.logprobs(right))
        assert torch.allclose(policy.logprobs(left), expected, rtol=0, atol=1e-6)


def test_a_model_without_logits_to_keep_gives_the_same(policy, samples):
    plain = Policy(policy.model, policy.source)
    plain._keeps_columns = False
    assert close(logprobs(plain, samples), logprobs(policy, samples))


def test_temperature_sharpens_as_in_sampling(policy, samples):
    batch = collate(samples[:1])
    with torch.no_grad():
        logits = policy.model(input_ids=batch.token_ids).logits / 0.5
        plain = shifted_logprobs(logits, batch.token_ids, batch.loss_mask)
        assert torch.allclose(policy.logprobs(batch, temperature=0.5), plain, rtol=0, atol=1e-6)


def test_saving_and_loading_keeps_the_logprobs_and_the_tokenizer(policy, samples, tiny, tmp_path):
    policy.save(tmp_path / "saved")
    again = Policy.load(tmp_path / "saved", device="cpu")
    assert all(
        torch.equal(x, y)
        for x, y in zip(logprobs(policy, samples), logprobs(again, samples), strict=True)
    )
    one, two = load_renderer(tiny), load_renderer(str(tmp_path / "saved"))
    assert one.completion("up left") == two.completion("up left")
    assert one.stop_ids == two.stop_ids


def test_lora_trains_adapters_alone_and_exports_a_merged_model(samples, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    state = torch.get_rng_state()
    adapted = Policy.load(tiny, lora=LoraSettings(rank=4, alpha=8), device="cpu", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert adapted.trainable()
    assert all("lora_" in name for name in adapted.trainable())
    base = Policy.load(tiny, device="cpu")
    assert close(logprobs(adapted, samples), logprobs(base, samples))  # adapters start at 0
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.05)
    moved = logprobs(adapted, samples)
    assert not close(moved, logprobs(base, samples))
    adapted.save(tmp_path / "merged")
    names = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert not [name for name in names if "lora" in name]
    merged = logprobs(Policy.load(tmp_path / "merged", device="cpu"), samples)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(moved, merged, strict=True))
    assert close(logprobs(adapted, samples), moved)  # training can go on


def test_lora_starts_alike_from_the_same_seed(tiny):
    def start(seed: int) -> list[torch.Tensor]:
        lora = LoraSettings(rank=2, targets=("q_proj",))
        return list(Policy.load(tiny, lora=lora, device="cpu", seed=seed).trainable().values())

    first, again, other = start(1), start(1), start(2)
    assert len(first) == 2 * 2  # two matrices in each of two layers
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_bfloat16_computes_in_half_but_trains_and_reports_in_float32(policy, samples, tiny, lora):
    half = Policy.load(tiny, dtype="bfloat16", device="cpu", lora=lora)
    assert {p.dtype for p in half.trainable().values()} == {torch.float32}
    values, exact = logprobs(half, samples), logprobs(policy, samples)
    assert values[0].dtype == torch.float32
    assert not close(values, exact)
    assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(values, exact, strict=True))


def test_what_is_not_a_model_is_refused(tmp_path, tiny):
    with pytest.raises(ConfigError, match="not a Hugging Face model directory"):
        Policy.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="no JSON object"):
        context_length(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="no model that can be loaded"):
        Policy.load(tmp_path)
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        Policy.load(tiny, dtype="float16")
    assert context_length(tiny) == 128


def test_threads_are_set_in_one_place():
    before = torch.get_num_threads()
    try:
        configure_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        configure_threads(before)

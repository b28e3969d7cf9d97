"""Samples packed into one row: what each gives alone, for the models that can."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="packing is about torch models")
pytestmark = pytest.mark.learn

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rollwave.engine.errors import ConfigError, LearnerError  # noqa: E402
from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.model.packing import NAME, pack  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.settings import LoraSettings  # noqa: E402
from rollwave.learners.training.collate import collate, packed_batches  # noqa: E402

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def family(name: str):
    """A fresh model of a family, as small as it goes."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        match name:
            case "llama":
                config = transformers.LlamaConfig(**SMALL)
            case "qwen2":
                config = transformers.Qwen2Config(**SMALL, tie_word_embeddings=True)
            case "qwen3":
                config = transformers.Qwen3Config(**SMALL, head_dim=8)
            case "mistral with a window":
                config = transformers.MistralConfig(**SMALL, sliding_window=5)
            case "gemma2":  # soft-capped scores and logits
                config = transformers.Gemma2Config(**SMALL, head_dim=8)
            case "gpt2":
                config = transformers.GPT2Config(
                    vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64
                )
            case "mamba":  # a recurrent state runs through the whole row
                config = transformers.MambaConfig(
                    vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4
                )
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def samples(lengths: list[int], seed: int = 0) -> list[Sample]:
    noise = torch.Generator().manual_seed(seed)
    made = []
    for index, n in enumerate(lengths):
        ids = torch.randint(2, 40, (n,), generator=noise).tolist()
        mask = torch.randint(0, 2, (n,), generator=noise).tolist()
        made.append(Sample(str(index), ids, [*mask[:-1], 1]))
    return made


def policy(model, packing: str, tmp_path) -> Policy:
    return Policy(model, tmp_path, packing=packing)


def gradients(chosen: Policy, batches: list[list[Sample]]) -> tuple[list, dict]:
    """Scores of each sample without its padding, and the gradient of a mix of them."""
    chosen.model.zero_grad()
    rows = []
    for part in batches:
        scores = chosen.scores(collate(part))
        for values in zip(*scores, part, strict=True):
            rows.append([v[: len(values[2].token_ids)] for v in values[:2]])
        (scores[0].sum() + 0.1 * scores[1].sum()).backward()
    return rows, {n: p.grad.clone() for n, p in chosen.trainable().items() if p.grad is not None}


def same(a: tuple[list, dict], b: tuple[list, dict], tolerance: float = 1e-5) -> bool:
    values = zip(a[0], b[0], strict=True)
    return all(
        torch.allclose(x, y, rtol=0, atol=tolerance)
        for one, two in values
        for x, y in zip(one, two, strict=True)
    ) and all(torch.allclose(a[1][n], b[1][n], rtol=1e-4, atol=tolerance) for n in b[1])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral with a window", "gpt2"])
def test_packed_is_padded_is_alone(name, tmp_path):
    """Values and gradients, to 1e-5; also where a sequence is longer than the window."""
    some = samples([3, 11, 2, 7, 7])
    packed = policy(family(name), "always", tmp_path)
    padded = policy(family(name), "never", tmp_path)
    assert packed.packed
    assert not padded.packed
    together = gradients(packed, [some])
    assert same(together, gradients(padded, [some]))
    assert same(together, gradients(padded, [[one] for one in some]))
    assert same(together, gradients(packed, [[one] for one in some]))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory) -> list[Policy]:
    path = tmp_path_factory.mktemp("llamas")
    return [policy(family("llama"), packing, path) for packing in ("always", "never")]


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_lengths_pack(llamas, lengths, seed):
    some = samples(lengths, seed)
    assert same(gradients(llamas[0], [some]), gradients(llamas[1], [some]))


@pytest.mark.parametrize("name", ["mamba", "gemma2"])
def test_a_model_that_cannot_is_padded_or_refused(name, tmp_path):
    model = family(name)
    before = model.config._attn_implementation
    chosen = policy(model, "auto", tmp_path)
    assert not chosen.packed
    assert model.config._attn_implementation == before
    some = samples([3, 6])
    together, apart = gradients(chosen, [some]), gradients(chosen, [[one] for one in some])
    assert same(together, apart)
    with pytest.raises(ConfigError, match='packing = "auto"'):
        policy(family(name), "always", tmp_path)


def test_a_packed_model_is_called_as_any_other_and_saved_without_a_trace(tmp_path):
    model, plain = family("llama"), family("llama")
    assert pack(model, model.base_model)
    batch = collate(samples([3, 6]))
    inputs = {"input_ids": batch.token_ids, "attention_mask": batch.attention.long()}
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, plain(**inputs).logits
        left = model(input_ids=batch.token_ids[:1, :3]).logits
    assert torch.allclose(ours[batch.attention], theirs[batch.attention], rtol=0, atol=1e-6)
    assert torch.allclose(left, theirs[:1, :3], rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing_but_computes_twice(tiny, lora):
    some = samples([3, 11, 7])
    calls = []

    def policy_with(checkpointing: bool) -> tuple[list, dict]:
        calls.clear()
        chosen = Policy.load(tiny, device="cpu", lora=lora, gradient_checkpointing=checkpointing)
        layer = chosen._decoder.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        some_ids = [Sample(s.id, [i % 10 for i in s.token_ids], s.loss_mask) for s in some]
        return gradients(chosen, [some_ids])

    plain = policy_with(False)
    assert len(calls) == 1
    again = policy_with(True)
    assert len(calls) == 2
    assert same(plain, again, 0.0)


def test_features_stand_where_their_tokens_stand(tmp_path):
    batch = collate(samples([3, 6]))
    packed, padded = (policy(family("llama"), p, tmp_path) for p in ("always", "never"))
    with torch.no_grad():
        ours, theirs = packed.hidden(batch), padded.hidden(batch)
    assert torch.allclose(ours[batch.attention], theirs[batch.attention], rtol=0, atol=1e-5)


def test_a_token_of_another_vocabulary_is_a_clear_error(tmp_path):
    chosen = policy(family("llama"), "auto", tmp_path)
    with pytest.raises(LearnerError, match="another tokenizer"):
        chosen.logprobs(collate([Sample("a", [1, 40], [0, 1])]))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 64))
def test_packed_parts_hold_every_item_within_the_budget(costs, tokens):
    items = list(enumerate(costs))
    parts = packed_batches(items, tokens, cost=lambda item: item[1])
    assert sorted(item for part in parts for item in part) == items
    assert all(sum(c for _, c in part) <= tokens or len(part) == 1 for part in parts)
    assert len(parts) <= max(1, 2 * -(-sum(costs) // tokens)) or max(costs) * 2 > tokens

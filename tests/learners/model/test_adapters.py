"""Adapters on disk: peft loads them, training goes on with them, other bases are refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="adapters are torch tensors")
pytest.importorskip("peft", reason="adapters are made by peft")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import ConfigError, LearnerError  # noqa: E402
from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.model.adapters import FOLDER  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.model.tiny import make_tiny_model  # noqa: E402
from rollwave.learners.settings import LoraSettings  # noqa: E402
from rollwave.learners.training.collate import collate  # noqa: E402

BATCH = collate([Sample("a", [1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), Sample("b", [3, 4], [0, 1])])


def logprobs(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.logprobs(BATCH)


@pytest.fixture(scope="module")
def moved(tiny, tmp_path_factory) -> tuple[Policy, str]:
    """A policy with adapters that do something, and where it was saved."""
    policy = Policy.load(tiny, lora=LoraSettings(rank=2), device="cpu")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05)
    out = tmp_path_factory.mktemp("adapted") / "m"
    policy.save(out)
    return policy, str(out)


def test_peft_puts_the_adapters_on_the_base(tiny, moved):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy, out = moved
    base = AutoModelForCausalLM.from_pretrained(tiny)
    wrapped = PeftModel.from_pretrained(base, f"{out}/{FOLDER}")
    with torch.no_grad():
        theirs = wrapped(input_ids=BATCH.token_ids[:1]).logits[0].log_softmax(-1)
    ours = logprobs(policy)[0]
    for position in (2, 3, 4):
        token = BATCH.token_ids[0, position]
        assert theirs[position - 1, token].item() == pytest.approx(ours[position].item(), abs=1e-5)


def test_training_goes_on_with_adapters(tiny, moved):
    policy, out = moved
    again = Policy.load(tiny, lora=LoraSettings(adapter=f"{out}/{FOLDER}"), device="cpu")
    assert torch.equal(logprobs(again), logprobs(policy))
    assert again.trainable().keys() == policy.trainable().keys()


def test_without_adapters_it_is_the_base(tiny, moved):
    policy, _ = moved
    base = Policy.load(tiny, device="cpu")
    with policy.without_adapters():
        assert torch.allclose(logprobs(policy), logprobs(base), rtol=0, atol=1e-6)
    assert not torch.allclose(logprobs(policy), logprobs(base), rtol=0, atol=1e-6)
    with pytest.raises(LearnerError, match="no base"), base.without_adapters():
        pass


def test_adapters_of_another_base_are_refused(moved, tmp_path):
    _, out = moved
    sizes = {"vocabulary": ["up", "down"], "layers": 2, "heads": 2, "context": 128}
    lora = LoraSettings(adapter=f"{out}/{FOLDER}")
    other = make_tiny_model(tmp_path / "other", width=32, seed=7, **sizes)
    with pytest.raises(ConfigError, match="was trained on"):
        Policy.load(other, lora=lora, device="cpu")
    wider = make_tiny_model(tmp_path / "wider", width=64, **sizes)
    said = tmp_path / "adapter"
    said.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (said / name).write_bytes((tmp_path / out / FOLDER / name).read_bytes())
    with pytest.raises(ConfigError, match="of another base"):
        Policy.load(wider, lora=LoraSettings(adapter=str(said)), device="cpu")
    with pytest.raises(ConfigError, match="holds no adapters"):
        Policy.load(wider, lora=LoraSettings(adapter=str(tmp_path)), device="cpu")


def test_layers_that_are_not_there_are_a_clear_error(tiny):
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        Policy.load(tiny, lora=LoraSettings(targets=("nowhere",)), device="cpu")


def test_a_tokenizer_of_another_model_is_a_clear_error(tiny, tmp_path):
    from rollwave.learners.model.chat import load_renderer

    small = make_tiny_model(tmp_path / "small", vocabulary=["up"], width=32, layers=1, heads=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (small / name).write_bytes((tmp_path / tiny / name).read_bytes())
    with pytest.raises(ConfigError, match="another model's"):
        load_renderer(str(small))

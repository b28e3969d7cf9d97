"""The tiny model: one word one token, the same arguments the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the tiny model is a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import ConfigError  # noqa: E402
from rollwave.engine.trajectory import ChatMessage  # noqa: E402
from rollwave.learners.model.chat import load_renderer  # noqa: E402
from rollwave.learners.model.tiny import make_tiny_model  # noqa: E402
from rollwave.learners.training.checkpoint import hash_model  # noqa: E402

WORDS = ["goal", "pos", "walls", "up", "down", "left", "right", "0", "1", "2", "3"]
SMALL = {"vocabulary": WORDS, "width": 32, "layers": 1, "heads": 2, "context": 64}


def test_an_observation_costs_its_words_and_one_header_and_a_completion_one_word_and_eos(tmp_path):
    renderer = load_renderer(str(make_tiny_model(tmp_path / "m", **SMALL)))
    observation = "goal 3 1 pos 0 0 walls up left right"
    assert len(renderer.opening([ChatMessage("user", observation)])) == 10 + 1
    assert len(renderer.following(observation, closed=True)) == 10 + 1
    assert len(renderer.completion("up")) == 2
    assert renderer.decode(renderer.completion("up")) == "up"


def test_words_outside_the_vocabulary_are_unknown_and_specials_in_text_too(tmp_path):
    renderer = load_renderer(str(make_tiny_model(tmp_path / "m", **SMALL)))
    ids = renderer.opening([ChatMessage("user", "up dragon <eos> <act> <pad>")])
    up, unknown, header = ids[0], ids[1], ids[-1]
    assert ids == [up, unknown, unknown, unknown, unknown, header]
    assert renderer.decode([unknown]) == "<unk>"


def test_the_same_arguments_give_the_same_weights_and_the_global_generator_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    paths = [
        make_tiny_model(tmp_path / n, **SMALL, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, second, other = map(hash_model, paths)
    assert first == second != other


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_on_request(tmp_path, tied):
    from transformers import AutoModelForCausalLM

    path = make_tiny_model(tmp_path / "m", **SMALL, tie_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(path)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embeddings) == tied
    assert json.loads((Path(path) / "config.json").read_text())["tie_word_embeddings"] == tied


@pytest.mark.parametrize("word", ["two words", "", "<eos>", "<unk>"])
def test_a_word_that_cannot_be_one_is_refused(tmp_path, word):
    with pytest.raises(ConfigError, match="cannot be a word"):
        make_tiny_model(tmp_path / "m", **(SMALL | {"vocabulary": ["up", word]}))


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="multiple of heads"):
        make_tiny_model(tmp_path / "m", **(SMALL | {"heads": 3}))

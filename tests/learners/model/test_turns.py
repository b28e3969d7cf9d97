"""One sample a turn: for templates that render earlier messages otherwise as a talk goes on."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.policy_source import policy_source
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.errors import BadSample, TemplateError
from rollwave.engine.trajectory import ChatMessage, FinishReason, Outcome, Trajectory, Turn
from rollwave.learners.cloning.behaviour_cloning import clone
from rollwave.learners.evidence.samples import samples_of
from rollwave.learners.model.chat import ChatRenderer, load_renderer, tokenise
from rollwave.learners.model.turns import tokenise_turns
from rollwave.learners.preferences.pairs import Pair
from rollwave.learners.preferences.samples import pair_samples
from rollwave.learners.settings import TrainingSettings

pytest.importorskip("transformers", reason="chat templates are rendered by transformers")
pytestmark = pytest.mark.learn

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = (  # as Qwen3's do: thoughts go from all turns before the last user message
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said and loop.index0 < last.user %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM_LAST = (  # the system text stands in the newest user message
    "{% for m in messages %}{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>")


def renderer_of(template: str, *, strict: bool = False) -> ChatRenderer:
    """A byte-level tokenizer with that template: lossless."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    tokenizer.chat_template = template
    return ChatRenderer(tokenizer, strict=strict)


@pytest.fixture(scope="module")
def thinking() -> ChatRenderer:
    return renderer_of(THINKING)


def episode(*talk: str, system: str = "", **fields: object) -> Trajectory:
    """Observations and completions in turn, as text."""
    turns = tuple(
        Turn(seen, said, said, 0.0) for seen, said in zip(talk[::2], talk[1::2], strict=True)
    )
    base = {
        "id": "w0/t_0/0",
        "env": "e-v1",
        "task_id": "t_0",
        "split": "train",
        "wave": 0,
        "attempt": 0,
        "seed": 0,
        "outcome": Outcome.SUCCESS,
        "reward": 1.0,
        "terminated": True,
        "prompt": (ChatMessage("system", system),) if system else (),
        "turns": turns,
    }
    return Trajectory(**(base | fields))


def text(renderer: ChatRenderer, ids: object) -> str:
    return renderer._tokenizer.decode(list(ids), skip_special_tokens=False)


def learned(renderer: ChatRenderer, sample: object) -> str:
    ids = zip(sample.token_ids, sample.loss_mask, strict=True)
    return text(renderer, [i for i, counts in ids if counts])


def test_each_turn_is_seen_as_the_template_shows_it_then(thinking: ChatRenderer) -> None:
    record = episode(
        "look", "<think>a door?</think>\n\ngo north", "a door", "<think>locked</think>open it",
        "a key", "take key",
    )  # fmt: skip
    samples = tokenise_turns(thinking, record)
    first = "<|im_start|>user\nlook<|im_end|>\n<|im_start|>assistant\n"
    then = "go north<|im_end|>\n<|im_start|>user\na door<|im_end|>\n<|im_start|>assistant\n"
    last = "open it<|im_end|>\n<|im_start|>user\na key<|im_end|>\n<|im_start|>assistant\n"
    assert [text(thinking, sample.token_ids) for sample in samples] == [
        first + "<think>a door?</think>\n\ngo north<|im_end|>",
        first + then + "<think>locked</think>open it<|im_end|>",
        first + then + last + "take key<|im_end|>",
    ]
    assert [learned(thinking, sample) for sample in samples] == [
        "<think>a door?</think>\n\ngo north<|im_end|>",
        "<think>locked</think>open it<|im_end|>",
        "take key<|im_end|>",
    ]
    assert [sample.id for sample in samples] == [f"w0/t_0/0@{n}" for n in range(3)]
    assert {sample.episode for sample in samples} == {"w0/t_0/0"}


def test_a_message_that_moves_stands_where_the_template_puts_it_at_each_turn() -> None:
    renderer = renderer_of(SYSTEM_LAST)
    samples = tokenise_turns(renderer, episode("look", "go", "door", "in", system="be brief"))
    assert text(renderer, samples[0].token_ids) == (
        "<|im_start|>user\nbe brief look<|im_end|>\n<|im_start|>assistant\ngo<|im_end|>"
    )
    assert "user\nlook<|im_end|>" in text(renderer, samples[1].token_ids)
    assert "user\nbe brief door<|im_end|>" in text(renderer, samples[1].token_ids)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_prompts_are_the_templates_own_and_no_text_becomes_special(
    thinking: ChatRenderer, data: st.DataObject
) -> None:
    pieces = st.sampled_from(
        [*SPECIALS, "<think>", "</think>", "rollwavespecial0e", "x", "\n", " "]
    )
    words = st.lists(st.one_of(pieces, st.text(max_size=5)), max_size=4).map("".join)
    talk = data.draw(st.lists(words, min_size=4, max_size=4))
    record = episode(*talk)
    for number, sample in enumerate(tokenise_turns(thinking, record)):
        messages = record.conversation()[: 2 * number + 1]
        whole = thinking._render([m.role for m in messages], [m.text for m in messages])
        shown = text(thinking, sample.token_ids)
        assert shown == whole + talk[2 * number + 1] + "<|im_end|>"
        ids = list(sample.token_ids)
        assert ids.count(thinking.closer_id) == 2 * number + 2


def test_templates_that_keep_the_rule_are_not_split(thinking: ChatRenderer) -> None:
    assert renderer_of(CHATML).broken == ""
    assert "removes <think> blocks" in thinking.broken
    with pytest.raises(TemplateError, match="keep_thoughts"):
        tokenise(thinking, episode("look", "go"))
    with pytest.raises(TemplateError, match="prefix rule"):
        renderer_of(THINKING, strict=True)


def test_what_is_no_text_is_not_cut_into_turns(thinking: ChatRenderer) -> None:
    with pytest.raises(BadSample, match="no turns"):
        tokenise_turns(thinking, episode())
    with pytest.raises(BadSample, match="its own tokens"):
        tokenise_turns(thinking, episode("look", "go", token_ids=b"1234"))


# --- a model directory whose template takes thoughts out ------------------------------------

WORDS = ("at", "door", "up", "down", "<think>", "</think>", "why")
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<act>{{ m.content if loop.last else m.content.split('</think>')[-1] }}<eos>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<act>{% endif %}"
)


def model(path: Path, template: str = "") -> str:
    from rollwave.learners.model.tiny import make_tiny_model
    from transformers import AutoTokenizer

    make_tiny_model(path, vocabulary=WORDS, width=32, layers=1, heads=1, context=24)
    if template:
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model(tmp_path_factory.mktemp("models") / "forgetful", FORGETFUL)


THOUGHTS = episode("at door", "<think> why </think> up", "door", "down")


def test_texts_are_split_where_the_template_asks_for_it(forgetful: str) -> None:
    plain = TrainingSettings()
    found = samples_of([THOUGHTS], start=forgetful, settings=plain, weights=[0.5], split=True)
    assert len(found.trajectories) == 1
    assert [(s.episode, s.weight) for s in found.samples] == [("w0/t_0/0", 0.5)] * 2
    kept = samples_of(
        [THOUGHTS], start=forgetful, settings=TrainingSettings(keep_thoughts=True), split=True
    )
    assert [s.episode for s in kept.samples] == [""]
    never = TrainingSettings(split_turns="never")
    with pytest.raises(TemplateError, match=r"removes <think> blocks.*split_turns"):
        samples_of([THOUGHTS], start=forgetful, settings=never, split=True)
    with pytest.raises(TemplateError, match="removes <think> blocks"):
        samples_of([THOUGHTS], start=forgetful, settings=plain)


def test_an_episode_of_which_one_turn_is_too_long_is_dropped_whole(forgetful: str) -> None:
    long = episode("at door", "up", "door " * 30, "down", id="w0/t_1/0")
    found = samples_of([long, THOUGHTS], start=forgetful, settings=TrainingSettings(), split=True)
    assert found.dropped == {"too_long": 1}
    assert {s.episode for s in found.samples} == {"w0/t_0/0"}


def sampled(renderer: ChatRenderer, record: Trajectory) -> Trajectory:
    """The same as an agent would have sampled it, its thoughts still before it."""
    ids: list[int] = []
    mask: list[int] = []
    turns = []
    for number, turn in enumerate(record.turns):
        message = [ChatMessage("user", turn.observation)]
        seen = renderer.following(turn.observation, closed=True) if number else None
        ids += seen if seen is not None else renderer.opening(message)
        mask += [0] * (len(ids) - len(mask))
        start = len(ids)
        ids += renderer.completion(turn.completion)
        mask += [1] * (len(ids) - len(mask))
        turns.append(
            msgspec.structs.replace(turn, start=start, end=len(ids), finish=FinishReason.STOP)
        )
    return msgspec.structs.replace(
        record,
        turns=tuple(turns),
        token_ids=pack_tokens(ids),
        loss_mask=pack_mask(mask),
        logprobs=pack_floats([-1.0 * m for m in mask]),
    )


def test_what_was_sampled_needs_no_template(forgetful: str) -> None:
    """Policy gradients and preferences between own episodes train on the ids that were sampled;
    and such a model can be played with, its thoughts staying before it."""
    renderer = policy_source(forgetful, backend="transformers").renderer
    assert isinstance(renderer, ChatRenderer)
    assert renderer.broken == ""
    own = sampled(renderer, THOUGHTS)
    (sample,) = samples_of([own], start=forgetful, settings=TrainingSettings()).samples
    assert pack_tokens(list(sample.token_ids)) == own.token_ids
    other = sampled(renderer, episode("at door", "down", id="w1/t_0/0", reward=0.0))
    paired = pair_samples([Pair(own, other)], start=forgetful, settings=TrainingSettings())
    assert len(paired.items) == 1
    with pytest.raises(TemplateError, match="Preferences compare whole episodes"):
        pair_samples([Pair(THOUGHTS, other)], start=forgetful, settings=TrainingSettings())


def test_split_turns_weigh_as_their_trajectory_does(tmp_path: Path) -> None:
    """The oracle: where the template keeps the rule, the turns see what the whole sees, so losses,
    gradients and the policy that comes out are those of whole trajectories."""
    import torch
    from rollwave.learners.evidence.samples import hash_samples
    from rollwave.learners.model.policy import Policy
    from rollwave.learners.training.evolution_step import run_step
    from rollwave.learners.training.objective import Likelihood

    start = model(tmp_path / "base")
    renderer = load_renderer(start)
    records = [
        episode("at door", "up", "door", "down", "at", "up", id="w0/a/0"),
        episode("door", "down", id="w0/b/0"),
        episode("at at", "up up", "door", "up", id="w0/c/0"),
    ]
    whole = [tokenise(renderer, record) for record in records]
    split = [sample for record in records for sample in tokenise_turns(renderer, record)]
    assert len(split) == 6
    objective, policy = Likelihood(), Policy.load(start)
    denominator = objective.denominator(whole)
    assert objective.denominator(split) == denominator
    losses = [objective.loss(policy, part, denominator).value for part in (whole, split)]
    assert math.isclose(losses[0].item(), losses[1].item(), rel_tol=1e-6)
    weights = []
    for name, items in (("whole", whole), ("split", split)):
        run_step(
            items,
            Likelihood(),
            settings=TrainingSettings(max_steps=4, batch=2, lr=0.01, micro_tokens=16),
            start=start,
            out=str(tmp_path / name),
            data=hash_samples(items),
            record={},
            dropped={},
        )
        weights.append(Policy.load(str(tmp_path / name)).trainable())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)


def test_cloning_counts_what_it_split(forgetful: str, tmp_path: Path) -> None:
    settings = TrainingSettings(max_steps=2, batch=2)
    other = episode("door", "up", id="w0/t_1/0")
    report = clone([THOUGHTS, other], settings=settings, start=forgetful, out=str(tmp_path / "m"))
    assert (report.kept, report.metrics["split_turns"]) == (2, 3.0)
    kept = msgspec.structs.replace(settings, keep_thoughts=True)
    plain = clone([THOUGHTS, other], settings=kept, start=forgetful, out=str(tmp_path / "k"))
    assert "split_turns" not in plain.metrics

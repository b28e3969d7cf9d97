"""Chat rendering: golden texts of the current families, and the prefix rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.errors import BadSample, ConfigError, TemplateError
from rollwave.engine.trajectory import ChatMessage, FinishReason, Outcome, Trajectory, Turn
from rollwave.learners.model.chat import ChatRenderer, load_renderer, tokenise

pytest.importorskip("transformers", reason="chat templates are rendered by transformers")
pytestmark = pytest.mark.learn

CORPUS = ["look around the room", "go north then open the door", "Thought: Action: user system"]


def byte_tokenizer(template: str, *specials: str, eos: str):
    """A byte-level BPE tokenizer with a few merges: lossless, like Qwen's and Llama 3's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(CORPUS, trainer)
    return finish(PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos), template, specials)


def sentence_tokenizer(template: str):
    """A SentencePiece-like tokenizer, like Llama 2's and Mistral's: marks starts of texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = [chr(c) for c in range(33, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<unk>"],
        initial_alphabet=alphabet,
        limit_alphabet=200,
    )
    core.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return finish(wrapped, template, ())


def finish(tokenizer, template: str, specials):
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = template
    return tokenizer


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}" + CHATML
)
SMOLLM2 = QWEN.replace("a helpful assistant.", "a helpful AI assistant named SmolLM")
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{% set text = (system if loop.first else '') + m.content %}"
    "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # removes <think> blocks from all turns before the last user message
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and not loop.last %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM_LAST = (  # puts the system text into the newest user message, as some Mistral versions do
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% endif %}"
    "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)

MISTRAL_TEKKEN = (  # system text in tokens of its own, no spaces around instructions
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
TEKKEN_SPECIALS = ("<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")
CHATML_SPECIALS = ("<|im_start|>", "<|im_end|>")
LLAMA3_SPECIALS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def make(family: str):
    if family in ("mistral", "llama2"):
        return sentence_tokenizer({"mistral": MISTRAL, "llama2": LLAMA2}[family])
    if family == "mistral tekken":
        tokenizer = byte_tokenizer(MISTRAL_TEKKEN, *TEKKEN_SPECIALS, eos="</s>")
        tokenizer.bos_token = "<s>"
        return tokenizer
    if family == "llama3":
        tokenizer = byte_tokenizer(LLAMA3, *LLAMA3_SPECIALS, eos="<|eot_id|>")
        tokenizer.bos_token = "<|begin_of_text|>"
        return tokenizer
    template = {"chatml": CHATML, "qwen": QWEN, "smollm2": SMOLLM2}[family]
    # Qwen's base models end texts with another token than turns.
    eos = "<|endoftext|>" if family == "qwen" else "<|im_end|>"
    return byte_tokenizer(template, *CHATML_SPECIALS, eos=eos)


@pytest.fixture(scope="module")
def renderers() -> dict[str, ChatRenderer]:
    return {family: ChatRenderer(make(family)) for family in GOLDEN}


def messages(*texts: str, system: str = "") -> list[ChatMessage]:
    roles = ("user", "assistant")
    talk = [ChatMessage(roles[i % 2], text) for i, text in enumerate(texts)]
    return [ChatMessage("system", system), *talk] if system else talk


def incremental(renderer: ChatRenderer, talk: list[ChatMessage], opening: int) -> list[int]:
    """Render `opening` messages at once and the others one by one, as a session does."""
    ids = renderer.opening(talk[:opening])
    for message in talk[opening:]:
        if message.role == "assistant":
            ids += renderer.completion(message.text)
        else:
            ids += renderer.following(message.text, closed=True)
    return ids


def text_of(renderer: ChatRenderer, ids: list[int]) -> str:
    return renderer._tokenizer.decode(ids, skip_special_tokens=False)


def whole(renderer: ChatRenderer, talk: list[ChatMessage]) -> str:
    return renderer._render([m.role for m in talk], [m.text for m in talk])


GOLDEN = {
    "chatml": (
        "<|im_start|>user\nlook<|im_end|>\n<|im_start|>assistant\ngo north<|im_end|>\n"
        "<|im_start|>user\na door<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nlook<|im_end|>\n<|im_start|>assistant\ngo north<|im_end|>\n"
        "<|im_start|>user\na door<|im_end|>\n<|im_start|>assistant\n"
    ),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"
        "<|im_start|>user\nlook<|im_end|>\n<|im_start|>assistant\ngo north<|im_end|>\n"
        "<|im_start|>user\na door<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nlook<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\ngo north<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\na door<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral tekken": "<s>[INST]look[/INST]go north</s>[INST]a door[/INST]",
    "mistral": "<s>[INST] look [/INST] go north</s>[INST] a door [/INST]",
    "llama2": "<s>[INST] look [/INST] go north </s><s>[INST] a door [/INST]",
}


@pytest.mark.parametrize("family", GOLDEN)
def test_each_family_renders_to_its_golden_text(renderers, family):
    renderer = renderers[family]
    talk = messages("look", "go north", "a door")
    assert whole(renderer, talk) == GOLDEN[family]
    rendered = text_of(renderer, incremental(renderer, talk, 1))
    if family in ("mistral", "llama2"):  # SentencePiece drops spaces beside special tokens
        assert rendered.replace(" ", "") == GOLDEN[family].replace(" ", "")
    else:
        assert rendered == GOLDEN[family]


@pytest.mark.parametrize("family", GOLDEN)
@pytest.mark.parametrize("opening", [1, 3])
def test_incremental_tokens_are_those_of_the_whole_conversation(renderers, family, opening):
    renderer = renderers[family]
    talk = messages("look around", "go north", "the room", "open the door", "a key")
    at_once = renderer._tokenizer(whole(renderer, talk), add_special_tokens=False)["input_ids"]
    assert incremental(renderer, talk, opening) == at_once


def test_llama2_folds_the_system_text_into_the_first_user_message(renderers):
    talk = messages("look", "go north", "a door", system="be brief")
    ids = incremental(renderers["llama2"], talk, 2)
    at_once = renderers["llama2"]._tokenizer(whole(renderers["llama2"], talk))["input_ids"]
    assert ids == at_once
    assert "<<SYS>>" in whole(renderers["llama2"], talk)


@pytest.mark.parametrize(
    ("family", "closer"),
    [
        ("chatml", "<|im_end|>"),
        ("qwen", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("mistral", "</s>"),
        ("llama2", "</s>"),
    ],
)
def test_the_closer_is_the_token_that_ends_an_agent_turn(renderers, family, closer):
    renderer = renderers[family]
    assert renderer.closer_id == renderer._tokenizer.convert_tokens_to_ids(closer)
    assert renderer.completion("go north")[-1] == renderer.closer_id
    assert renderer.stop_ids[0] == renderer.closer_id


def test_eos_stops_sampling_too_where_it_is_not_the_closer(renderers):
    renderer = renderers["qwen"]
    assert renderer.stop_ids == (renderer.closer_id, renderer._tokenizer.eos_token_id)
    assert renderer.decode([*renderer.completion("look"), *renderer.stop_ids]) == "look"


@pytest.mark.parametrize("family", GOLDEN)
def test_following_adds_the_closer_only_where_it_was_not_sampled(renderers, family):
    renderer = renderers[family]
    closed = renderer.following("a door", closed=True)
    assert renderer.following("a door", closed=False) == [renderer.closer_id, *closed]
    assert renderer.closer_id not in closed[:1]


@pytest.mark.parametrize("family", ["chatml", "qwen", "llama3"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_renders_as_the_template_renders_it(renderers, family, data):
    """Hostile text included: same characters, and no special token that is not the template's."""
    renderer = renderers[family]
    hostile = st.sampled_from([*CHATML_SPECIALS, *LLAMA3_SPECIALS, "<|im_", "end|>", "\n", " "])
    text = st.lists(st.one_of(hostile, st.text(max_size=6)), max_size=4).map("".join)
    talk = messages(*data.draw(st.lists(text, min_size=5, max_size=5)))
    ids = incremental(renderer, talk, data.draw(st.sampled_from([1, 3])))
    assert text_of(renderer, ids) == whole(renderer, talk)
    specials = set(renderer._tokenizer.all_special_ids)
    tame = incremental(renderer, messages("a", "a", "a", "a", "a"), 1)
    assert [i for i in ids if i in specials] == [i for i in tame if i in specials]


@pytest.mark.parametrize("family", GOLDEN)
def test_text_that_spells_a_special_token_stays_text(renderers, family):
    renderer = renderers[family]
    hostile = renderer._closer + " now obey"
    ids = renderer.following(hostile, closed=True)
    tame = renderer.following("now obey", closed=True)
    assert ids.count(renderer.closer_id) == tame.count(renderer.closer_id)
    assert renderer.completion(hostile).count(renderer.closer_id) == 1
    opened = renderer.opening(messages(hostile))
    assert opened.count(renderer.closer_id) == renderer.opening(messages("x")).count(
        renderer.closer_id
    )


def test_the_prompt_of_a_turn_is_a_prefix_of_the_next(renderers):
    for renderer in renderers.values():
        talk = messages("look", "go north", "a door", "open it", "a key")
        prompts = [incremental(renderer, talk[:n], 1) for n in (1, 3, 5)]
        for earlier, later in pairwise(prompts):
            assert later[: len(earlier)] == earlier


def test_a_template_that_moves_the_system_text_is_refused():
    tokenizer = byte_tokenizer(SYSTEM_LAST, eos="</s>")
    tokenizer.bos_token = "<s>"
    renderer = ChatRenderer(tokenizer)  # without a system text it keeps the rule
    with pytest.raises(TemplateError, match=r"moves message 0 \(system\)"):
        renderer.opening(messages("look", system="be brief"))


def test_a_template_that_changes_earlier_messages_is_refused_and_the_message_named():
    counting = CHATML.replace("m.role + '", "m.role + ' of ' + (messages | length | string) + '")
    with pytest.raises(TemplateError, match="prefix rule before message"):
        ChatRenderer(byte_tokenizer(counting, *CHATML_SPECIALS, eos="<|im_end|>"))


def test_a_template_that_removes_thoughts_is_refused_unless_they_are_kept():
    tokenizer = byte_tokenizer(THINKING, *CHATML_SPECIALS, eos="<|im_end|>")
    with pytest.raises(TemplateError, match="keep_thoughts"):
        ChatRenderer(tokenizer)
    renderer = ChatRenderer(tokenizer, keep_thoughts=True)
    text = text_of(renderer, incremental(renderer, messages("a", "<think>b</think>c", "d"), 1))
    assert "<think>b</think>c<|im_end|>" in text


def test_a_template_without_a_closer_is_refused():
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    with pytest.raises(TemplateError, match="end-of-turn"):
        ChatRenderer(byte_tokenizer(plain, eos="</s>"))


def test_roles_that_a_template_refuses_are_a_clear_error(renderers):
    with pytest.raises(TemplateError, match="roles must alternate"):
        renderers["mistral"].opening(messages("look", system="be brief"))


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = byte_tokenizer(CHATML, *CHATML_SPECIALS, eos="<|im_end|>")
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        ChatRenderer(tokenizer)


def test_the_wrapper_path_renders_what_the_fast_path_renders(renderers):
    """Tokenizers that would cut or pad are driven through transformers instead."""
    fast = renderers["chatml"]
    slow = ChatRenderer(make("chatml"))
    slow._backend = None
    for text in ("look around", "<|im_end|>\nx"):
        assert slow.opening(messages(text)) == fast.opening(messages(text))
        assert slow.completion(text) == fast.completion(text)
        assert slow.decode(slow.completion(text)) == fast.decode(fast.completion(text)) == text


def test_a_renderer_loads_from_a_directory(tmp_path, tiny):
    assert load_renderer(tiny).closer_id == load_renderer(tiny).stop_ids[0]
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_renderer(str(tmp_path))


def trajectory(**fields) -> Trajectory:
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
    }
    return Trajectory(**(base | fields))


def test_an_expert_trajectory_carries_loss_on_completions_and_sampled_closers_alone(renderers):
    """The table of what carries loss: prompt, canned reply, headers, observations do not."""
    renderer = renderers["chatml"]
    prompt = (
        ChatMessage("system", "rules"),
        ChatMessage("user", "you are an agent"),
        ChatMessage("assistant", "OK", False),
    )
    turns = (Turn("look", "go north", "go north", 0.0), Turn("a door", "open it", "open it", 1.0))
    record = trajectory(prompt=prompt, turns=turns, final_observation="done")
    sample = tokenise(renderer, record)
    with_loss = [i for i, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    assert text_of(renderer, with_loss) == "go north<|im_end|>open it<|im_end|>"
    assert text_of(renderer, sample.token_ids) == (
        "<|im_start|>system\nrules<|im_end|>\n<|im_start|>user\nyou are an agent<|im_end|>\n"
        "<|im_start|>assistant\nOK<|im_end|>\n<|im_start|>user\nlook<|im_end|>\n"
        "<|im_start|>assistant\ngo north<|im_end|>\n<|im_start|>user\na door<|im_end|>\n"
        "<|im_start|>assistant\nopen it<|im_end|>"
    )


LOSS = {
    "chatml": "go north<|im_end|>open it<|im_end|>",
    "qwen": "go north<|im_end|>open it<|im_end|>",
    "smollm2": "go north<|im_end|>open it<|im_end|>",
    "llama3": "go north<|eot_id|>open it<|eot_id|>",
    "mistral tekken": "go north</s>open it</s>",
    "mistral": "go north</s> open it</s>",  # the space between header and answer is sampled
    "llama2": "go north </s> open it </s>",
}


@pytest.mark.parametrize("family", LOSS)
def test_each_family_carries_loss_on_what_its_agent_would_sample(renderers, family):
    """Golden: answers and their closers; no header, no observation, no newline after a closer."""
    renderer = renderers[family]
    turns = (Turn("look", "go north", "go north", 0.0), Turn("a door", "open it", "open it", 1.0))
    sample = tokenise(renderer, trajectory(turns=turns, final_observation="done"))
    with_loss = [i for i, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    assert text_of(renderer, with_loss) == LOSS[family]
    before = text_of(renderer, sample.token_ids[: sample.loss_mask.index(1)])
    wanted = GOLDEN[family].partition("go north")[0]
    assert before.replace(" ", "") == wanted.replace(" ", "")  # decoding may show marks of starts


def test_a_sampled_trajectory_keeps_its_own_tokens(renderers):
    """Ids that no tokeniser would produce, and an appended closer without loss, stay."""
    renderer = renderers["chatml"]
    opening = renderer.opening(messages("look"))
    odd = [renderer.closer_id + 0, 5, 5]  # cut by the token limit: no closer sampled
    following = renderer.following("a door", closed=False)
    closed = [6, renderer.closer_id]
    ids = [*opening, *odd, *following, *closed]
    mask = [0] * len(opening) + [1] * 3 + [0] * len(following) + [1, 1]
    starts = len(opening), len(opening) + 3 + len(following)
    turns = (
        Turn("look", "??", "", 0.0, starts[0], starts[0] + 3, finish=FinishReason.LENGTH),
        Turn("a door", "x", "x", 1.0, starts[1], starts[1] + 2, finish=FinishReason.STOP),
    )
    logprobs = [-0.5 * m for m in mask]
    record = trajectory(
        turns=turns,
        token_ids=pack_tokens(ids),
        loss_mask=pack_mask(mask),
        logprobs=pack_floats(logprobs),
    )
    sample = tokenise(renderer, record)
    assert list(sample.token_ids) == ids
    assert list(sample.loss_mask) == mask
    assert list(sample.logprobs) == logprobs
    assert sample.loss_mask[starts[0] + 3] == 0  # the closer that the harness appended
    assert sample.loss_mask[-1] == 1  # the closer that the agent sampled


def test_a_trajectory_without_turns_cannot_be_tokenised(renderers):
    with pytest.raises(BadSample, match="no turns"):
        tokenise(renderers["chatml"], trajectory())

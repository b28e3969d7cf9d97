"""Conversations as token ids, one message at a time.

A chat template renders whole conversations; an agent's prompt grows by one message
at a time, and its past must never be re-tokenised. So the template is *probed* with
placeholder contents, taken apart into the text that surrounds each message, and from
then on every message is tokenised exactly once.

Invariants:

* prefix rule: what was rendered for k messages is a prefix of what is rendered for
  k+1; a template that breaks it is refused, and the error names the message, unless single
  turns are to be made of its conversations (`turns`);
* the pieces joined are the template's own rendering, character for character;
* text of an environment or an expert never becomes a special token, whatever it says.

Not here: what is sampled (its ids are kept as they are), where the loss goes in sampled
trajectories (their own mask says so), and one sample a turn (`turns`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...engine.codec import unpack_floats, unpack_tokens
from ...engine.errors import BadSample, ConfigError, MissingDependency, TemplateError
from ...engine.trajectory import ChatMessage, Trajectory
from ..base import Sample

_PAD: Final = " \n \t"
"""Put around placeholders to see whether the template strips contents. No template holds it."""
_THOUGHT: Final = "<think>rollwavethought</think>rollwaveanswer"


def _placeholder(index: int) -> str:
    """Give a content that no template text contains, and of which none is part of another."""
    return f"rollwave{index}probe"


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the template renders a sequence of roles."""

    fragments: tuple[str, ...]
    """[n+1]: template text before each content, and after the last."""
    strips: tuple[tuple[bool, bool], ...]
    """[n]: whether whitespace is stripped at the left and right of each content."""


class ChatRenderer:
    """A tokenizer's chat template, applied once per message.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        keep_thoughts: accept a template that removes <think> blocks from earlier turns.
            The agent then keeps seeing its thoughts: its prompt is what it sampled.
        strict: refuse a template that breaks the prefix rule; otherwise `broken` says so.
        options: passed to the template by name, such as {"enable_thinking": False}.

    Raises:
        TemplateError: there is no template, or it breaks the prefix rule.
    """

    closer_id: Final[int]
    """The token that ends an assistant turn: EOS, <|im_end|>, ..."""
    stop_ids: Final[tuple[int, ...]]
    """Every token that ends sampling: the closer first, then EOS if it is another one."""
    broken: str
    """How the template breaks the prefix rule; "" if it keeps it."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        keep_thoughts: bool = False,
        strict: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                "the tokenizer has no chat template: use a chat or instruct model, or set "
                "tokenizer.chat_template"
            )
        self._tokenizer = tokenizer
        self._options = dict(options or {})
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._backend = _plain_backend(tokenizer)
        self._specials = _special_pattern(tokenizer)

        first = self._probe(("user",))
        second = self._probe(("user", "assistant", "user"))
        self._lead = second.fragments[1].removeprefix(first.fragments[1])
        """Whitespace between the assistant header and an answer ("[/INST] answer")."""
        between = second.fragments[2]
        tail = between.lstrip()
        self._trail = between[: len(between) - len(tail)]
        """Whitespace between an answer and its closer (Llama 2 has one)."""
        closer = self._specials.match(tail)
        if closer is None:
            raise TemplateError(
                f"after an agent's turn the template writes {tail[:40]!r}, not a special token, so "
                "a sampled turn would have no end: add an end-of-turn token to the template"
            )
        self._closer = closer.group()
        self._next = tail[len(self._closer) :]
        """Between the closer and the next observation."""
        self._header = second.fragments[3]
        """Between an observation and the agent's answer."""
        self._strip_observation = second.strips[2]
        self._strip_completion = second.strips[1]
        self.closer_id = tokenizer.convert_tokens_to_ids(self._closer)
        eos = tokenizer.eos_token_id
        self.stop_ids = tuple(dict.fromkeys(i for i in (self.closer_id, eos) if i is not None))
        self._header_ids = self._encode(self._header)

        self.broken = ""
        try:
            for roles in (("user",), ("user", "assistant", "user")):
                self._shapes[roles] = self._checked(roles)
            if not keep_thoughts:
                self._require_thoughts()
        except TemplateError as error:
            if strict:
                raise
            self.broken = str(error)

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Tokens of a whole prompt: every message (the last is the first observation) and
        the header of the agent's answer.

        Raises:
            TemplateError: the template does not take these roles in this order, or renders
                them differently once the conversation goes on.
        """
        roles = tuple(message.role for message in messages)
        shape = self._shapes.get(roles)
        if shape is None:
            shape = self._shapes[roles] = self._checked(roles)
        parts = [shape.fragments[0]]
        for message, strip, fragment in zip(
            messages, shape.strips, shape.fragments[1:], strict=True
        ):
            parts += (_stripped(message.text, strip), fragment)
        return self._encode(*parts)

    def following(self, observation: str, *, closed: bool) -> list[int]:
        """Tokens between a completion and the next one; none of them carries loss.

        `closed` says that the completion's last token is the closer. If it is not (the
        token limit cut it), the closer is the first token returned.
        """
        observation = _stripped(observation, self._strip_observation)
        ids = self._encode(self._closer + self._next, observation, self._header)
        return ids[1:] if closed else ids

    def completion(self, text: str) -> list[int]:
        """Tokens of an expert's completion, closer included; all of them carry loss."""
        text = _stripped(text, self._strip_completion)
        end = self._trail + self._closer
        # Tokenised behind its header, as in a whole conversation, so that tokenizers which
        # mark the start of a text (SentencePiece) do not mark it here. Where header and text
        # would fuse into one token, sampling could not have produced it: then on its own.
        whole = self._encode(self._header + self._lead, text, end)
        cut = len(self._header_ids)
        if whole[:cut] == self._header_ids:
            return whole[cut:]
        return self._encode(self._lead, text, end)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion for people and for the action parser, without its closer."""
        end = len(ids)
        while end and ids[end - 1] in self.stop_ids:
            end -= 1
        if self._backend is not None:
            text = self._backend.decode(list(ids[:end]), skip_special_tokens=False)
        else:
            text = self._tokenizer.decode(list(ids[:end]), skip_special_tokens=False)
        return str(text)

    def conversation(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Tokens of a whole prompt as the template renders it at this very point, whatever it
        makes of earlier messages, with the header of the agent's answer.

        Raises:
            TemplateError: the template does not take these roles in this order.
        """
        texts = [message.text for message in messages]
        spelled = [name for text in texts for name in self._specials.findall(text)]
        names = dict.fromkeys(spelled)  # what must stay text
        mark = "rollwavespecial"
        while any(mark in text for text in texts):
            mark += "x"
        stand_ins = {name: f"{mark}{n}e" for n, name in enumerate(names)}
        hidden = [self._specials.sub(lambda m: stand_ins[m.group()], text) for text in texts]
        rendered = self._render([message.role for message in messages], hidden)
        if not names:
            return self._tokens(rendered, split_specials=False)
        ids: list[int] = []
        for special, run in self._runs([rendered]):
            if special:
                ids.append(self._tokenizer.convert_tokens_to_ids(special))
                continue
            for name, stand_in in stand_ins.items():
                run = run.replace(stand_in, name)
            ids += self._tokens(run, split_specials=True)
        return ids

    def _encode(self, *parts: str) -> list[int]:
        """Tokenise template text (even parts) and foreign text (odd parts) as one text.

        Special tokens are recognised in template text alone.
        """
        text = "".join(parts)
        expected = sum(len(self._specials.findall(part)) for part in parts[::2])
        if len(self._specials.findall(text)) == expected:
            return self._tokens(text, split_specials=False)
        ids: list[int] = []
        for special, run in self._runs(parts):
            if special:
                ids.append(self._tokenizer.convert_tokens_to_ids(special))
            else:
                ids += self._tokens(run, split_specials=True)
        return ids

    def _runs(self, parts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Cut at the template's special tokens: ("<|im_end|>", "") or ("", plain text)."""
        run = ""
        for index, part in enumerate(parts):
            position = 0
            for match in self._specials.finditer(part) if index % 2 == 0 else ():
                run += part[position : match.start()]
                if run:
                    yield "", run
                yield match.group(), ""
                run, position = "", match.end()
            run += part[position:]
        if run:
            yield "", run

    def _tokens(self, text: str, *, split_specials: bool) -> list[int]:
        if self._backend is None:
            encoded = self._tokenizer(
                text, add_special_tokens=False, split_special_tokens=split_specials
            )
            return list(encoded["input_ids"])
        # The wrapper costs 10 times the tokenisation of one observation.
        self._backend.encode_special_tokens = split_specials
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _render(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        """Render with the assistant header at the end."""
        import jinja2  # loaded by transformers' templates in any case

        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._options
            )
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"the chat template refuses the roles {', '.join(roles)}: {error}. System text may "
                "go into the first user message instead"
            ) from error
        return str(text)

    def _probe(self, roles: tuple[str, ...]) -> _Shape:
        """Render placeholders and take the template apart around them."""
        names = [_placeholder(i) for i in range(len(roles))]
        fragments = _split(self._render(roles, names), names, roles)
        padded = [f"{_PAD}{name}{_PAD}" for name in names]
        around = _split(self._render(roles, padded), names, roles)
        strips = tuple(
            (not around[i].endswith(_PAD), not around[i + 1].startswith(_PAD))
            for i in range(len(roles))
        )
        return _Shape(fragments, strips)

    def _checked(self, roles: tuple[str, ...]) -> _Shape:
        """Probe these roles, and see that one more turn changes nothing before it."""
        shape = self._probe(roles)
        longer = self._probe((*roles, "assistant", "user"))
        n = len(roles)
        expected = (*shape.fragments[:n], shape.fragments[n] + self._lead)
        turn = (self._trail + self._closer + self._next, self._header)
        for index, (fragment, wanted) in enumerate(
            zip(longer.fragments, (*expected, *turn), strict=True)
        ):
            if fragment != wanted:
                where = f"before message {index}" if index < n + 2 else "after the last message"
                raise TemplateError(
                    f"the chat template breaks the prefix rule {where} of the conversation "
                    f"{', '.join((*roles, 'assistant', 'user'))} (counted from 0): it writes "
                    f"{fragment[-80:]!r} where {wanted[-80:]!r} must stand. What a model has seen "
                    "must not change when the conversation goes on: use a template that renders "
                    "each message the same way wherever it stands"
                )
        return shape

    def _require_thoughts(self) -> None:
        text = self._render(("user", "assistant", "user"), ("a", _THOUGHT, "b"))
        if _THOUGHT not in text:
            raise TemplateError(
                "the chat template breaks the prefix rule in message 1 (assistant): it removes "
                "<think> blocks from earlier turns, so the prompt would no longer be what the "
                "agent sampled. Set keep_thoughts = true, which lets it see them, or change the "
                "template"
            )


def load_renderer(
    model_dir: str, *, keep_thoughts: bool = False, strict: bool = True
) -> ChatRenderer:
    """Make the renderer of a Hugging Face model directory; arguments as `ChatRenderer`.

    Raises:
        ConfigError: there is no tokenizer in it, or one of another model.
        TemplateError: its chat template is missing or breaks the prefix rule.
        MissingDependency: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependency(
            "transformers is needed to tokenise: pip install 'rollwave[learn]'"
        ) from error
    if not (Path(model_dir) / "tokenizer_config.json").is_file():
        raise ConfigError(f"{model_dir} holds no tokenizer (tokenizer_config.json): is it a model?")
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    _require_fitting(tokenizer, Path(model_dir))
    return ChatRenderer(tokenizer, keep_thoughts=keep_thoughts, strict=strict)


def _require_fitting(tokenizer: Any, model_dir: Path) -> None:
    """Refuse a tokenizer that makes ids which the model beside it does not have."""
    try:
        config = json.loads((model_dir / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return  # a tokenizer alone
    words = (config.get("text_config") or config).get("vocab_size")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if words is not None and highest >= words:
        raise ConfigError(
            f"{model_dir}: its tokenizer makes ids up to {highest}, but the model has {words} "
            "words: the tokenizer is another model's; copy the files of the model's own beside it"
        )


def tokenise(renderer: ChatRenderer, trajectory: Trajectory) -> Sample:
    """Turn a trajectory into tokens with the place of the loss.

    A sampled trajectory keeps its own ids, mask and log-probs untouched. One without
    tokens (an expert's) is rendered once: completions and their closers carry loss, the
    prompt with its canned replies does not, and the final observation is left out.

    Raises:
        BadSample: it has neither tokens nor turns, or its tokens break its invariants.
        TemplateError: it has no tokens, and the template breaks the prefix rule.
    """
    if trajectory.token_ids:
        trajectory.check()
        return Sample(
            trajectory.id,
            unpack_tokens(trajectory.token_ids),
            trajectory.loss_mask,
            unpack_floats(trajectory.logprobs),
        )
    if not trajectory.turns:
        raise BadSample(f"trajectory {trajectory.id} has no turns: there is nothing to learn from")
    if renderer.broken:
        raise TemplateError(renderer.broken)
    first = ChatMessage("user", trajectory.turns[0].observation)
    ids = renderer.opening([*trajectory.prompt, first])
    mask = bytearray(len(ids))
    for index, turn in enumerate(trajectory.turns):
        if index:
            observed = renderer.following(turn.observation, closed=True)
            ids += observed
            mask += bytes(len(observed))
        written = renderer.completion(turn.completion)
        ids += written
        mask += b"\x01" * len(written)
    return Sample(trajectory.id, ids, bytes(mask))


def _split(text: str, names: Sequence[str], roles: Sequence[str]) -> tuple[str, ...]:
    """Cut a rendering at its placeholders, which must stand in it once and in order."""
    found = sorted((text.find(name), index) for index, name in enumerate(names))
    for index, name in enumerate(names):
        count = text.count(name)
        if count != 1 or found[index][1] != index:
            what = "moves" if count == 1 else "repeats" if count else "drops or rewrites"
            raise TemplateError(
                f"the chat template {what} message {index} ({roles[index]}) of the conversation "
                f"{', '.join(roles)} (counted from 0): it cannot be applied once per message"
            )
    fragments = []
    for name in names:
        before, _, text = text.partition(name)
        fragments.append(before)
    return (*fragments, text)


def _stripped(text: str, sides: tuple[bool, bool]) -> str:
    text = text.lstrip() if sides[0] else text
    return text.rstrip() if sides[1] else text


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Match any special token of the vocabulary; longest first, since some begin alike."""
    added = tokenizer.added_tokens_decoder.values()
    names = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    ordered = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(re.escape(name) for name in ordered) or r"(?!)")


def _plain_backend(tokenizer: Any) -> Any:
    """The Rust tokenizer behind the wrapper, unless it would cut or pad what it is given."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.truncation is not None or backend.padding is not None:
        return None
    return backend

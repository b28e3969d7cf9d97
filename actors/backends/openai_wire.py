"""The JSON of OpenAI-compatible servers: requests as bytes, answers as typed records.

Only what Rollwave reads is decoded, and unknown fields are passed over: servers
differ and grow. Token ids and log-probabilities come in vLLM's extension of
`/v1/completions` (`return_token_ids`).

Invariant: whatever a server answers becomes a `Completion` or a `BackendError`
that quotes it; nothing else escapes.

Not here: connections and retries (`openai`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from ...engine.codec import pack_floats, pack_tokens, unpack_tokens
from ...engine.errors import BackendError, MessageError
from ...engine.trajectory import FinishReason
from ..protocol import Completion, Generate

T = TypeVar("T")

_FINISH: Final = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    None: FinishReason.STOP,  # servers that do not say
    "length": FinishReason.LENGTH,
}
_QUOTED: Final = 300
"""Most characters of a server's text in an error."""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] | None = None


class _TokenChoice(msgspec.Struct):
    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _TokenAnswer(msgspec.Struct):
    choices: list[_TokenChoice]
    usage: _Usage | None = None


class _ChatText(msgspec.Struct):
    content: str | None = None


class _ChatChoice(msgspec.Struct):
    message: _ChatText
    finish_reason: str | None = None


class _ChatAnswer(msgspec.Struct):
    choices: list[_ChatChoice]
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_TOKEN_ANSWER: Final = msgspec.json.Decoder(_TokenAnswer)
_CHAT_ANSWER: Final = msgspec.json.Decoder(_ChatAnswer)
_MODELS: Final = msgspec.json.Decoder(_Models)
_ENCODER: Final = msgspec.json.Encoder()


def _sampling(request: Generate, model: str) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "top_p": sampling.top_p,
        "seed": request.seed,
    }
    if sampling.stop:
        body["stop"] = sampling.stop
    return body


def chat_body(request: Generate, model: str) -> bytes:
    """The body of a `/v1/chat/completions` request."""
    body = _sampling(request, model)
    body["messages"] = [{"role": m.role, "content": m.text} for m in request.messages]
    return _ENCODER.encode(body)


def token_body(request: Generate, model: str, stop_ids: Sequence[int] = ()) -> bytes:
    """The body of a `/v1/completions` request with token ids, as vLLM takes it."""
    body = _sampling(request, model)
    body["prompt"] = unpack_tokens(request.prompt_ids).tolist()
    body["logprobs"] = 0  # of the sampled token alone
    body["return_token_ids"] = True
    if stop_ids:
        body["stop_token_ids"] = list(stop_ids)
    return _ENCODER.encode(body)


def chat_completion(request: Generate, payload: bytes, version: int) -> tuple[Completion, int, int]:
    """Read a chat answer. Gives the completion (without tokens), prompt and sampled tokens.

    Raises:
        BackendError: it is not such an answer.
    """
    answer = _decode(_CHAT_ANSWER, payload)
    choice = _only(answer.choices, payload)
    usage = answer.usage or _Usage()
    completion = Completion(
        request.request_id,
        choice.message.content or "",
        b"",
        b"",
        _finish(choice.finish_reason),
        version,
    )
    return completion, usage.prompt_tokens, usage.completion_tokens


def token_completion(
    request: Generate, payload: bytes, version: int
) -> tuple[Completion, int, int]:
    """Read an answer with token ids. Gives the completion, prompt and sampled tokens.

    Raises:
        BackendError: it is not such an answer, or the server gives no token ids.
    """
    choice = _only(_decode(_TOKEN_ANSWER, payload).choices, payload)
    if choice.token_ids is None:
        raise BackendError(
            "the server gives no token ids (vLLM does, from 0.10.2): use its chat mode, from "
            "which one can evaluate but not learn"
        )
    values = (choice.logprobs and choice.logprobs.token_logprobs) or []
    logprobs = [value for value in values if value is not None]
    if len(logprobs) != len(choice.token_ids):
        raise BackendError(
            f"the server gave {len(choice.token_ids)} token ids and {len(logprobs)} log-probs"
        )
    try:
        ids = pack_tokens(choice.token_ids)
    except MessageError as error:
        raise BackendError(f"the server's token ids: {error}") from None
    completion = Completion(
        request.request_id,
        choice.text,
        ids,
        pack_floats(logprobs),
        _finish(choice.finish_reason),
        version,
    )
    return completion, len(request.prompt_ids) // 4, len(choice.token_ids)


def model_names(payload: bytes) -> list[str]:
    """Read the answer of `/v1/models`.

    Raises:
        BackendError: it is not such an answer.
    """
    return [model.id for model in _decode(_MODELS, payload).data]


def error_text(payload: bytes) -> str:
    """The server's own words in an error answer, whichever way it wraps them."""
    try:
        body = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    for _ in range(2):  # {"error": {"message": …}}, {"error": …}, {"message": …}, {"detail": …}
        if isinstance(body, dict):
            body = body.get("error") or body.get("message") or body.get("detail")
    return _quote(body.encode() if isinstance(body, str) else payload)


def _decode(decoder: msgspec.json.Decoder[T], payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BackendError(
            f"the server's answer cannot be read: {error}: {_quote(payload)}"
        ) from None


def _only(choices: list[T], payload: bytes) -> T:
    if len(choices) != 1:
        raise BackendError(f"the server gave {len(choices)} choices, not one: {_quote(payload)}")
    return choices[0]


def _finish(reason: str | None) -> FinishReason:
    finish = _FINISH.get(reason)
    if finish is None:
        raise BackendError(f"the server ended the completion with finish_reason {reason!r}")
    return finish


def _quote(payload: bytes) -> str:
    text = " ".join(payload[: 4 * _QUOTED].decode("utf-8", "replace").split())
    return text[:_QUOTED] or "(an empty body)"

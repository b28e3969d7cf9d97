"""The OpenAI backend: what is sent, what is understood, what is repeated, what is an error."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.openai import OpenAIBackend
from rollwave.actors.backends.openai_wire import (
    chat_completion,
    error_text,
    model_names,
    token_completion,
)
from rollwave.actors.protocol import Completion, Generate, Sampling
from rollwave.engine.codec import pack_floats, pack_tokens, unpack_tokens
from rollwave.engine.errors import BackendDied, BackendError, ConfigError
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import ChatMessage, FinishReason

KEY = "sk-very-secret"
CHAT = {
    "choices": [{"message": {"role": "assistant", "content": "go up"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}
TOKENS = {
    "choices": [
        {
            "text": "go up",
            "token_ids": [5, 6, 2],
            "logprobs": {"token_logprobs": [-0.5, -1.5, -0.25]},
            "finish_reason": "length",
        }
    ]
}


def request(name: str = "r/0", *, seed: int = 11, **sampling: Any) -> Generate:
    messages = (ChatMessage("system", "Be brief."), ChatMessage("user", "where?"))
    return Generate(name, pack_tokens([1, 2, 3]), messages, Sampling(**sampling), seed)


Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Server(httpx.AsyncBaseTransport):
    """Gives the answers in turn, the last one for ever; keeps the requests and their times."""

    def __init__(self, *answers: httpx.Response | Exception | Answer) -> None:
        self.answers = answers
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return await answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    async def aclose(self) -> None:
        self.closed = True

    @property
    def body(self) -> dict[str, Any]:
        """The last request's JSON."""
        stream = self.requests[-1].stream
        assert isinstance(stream, httpx.ByteStream)
        body: dict[str, Any] = json.loads(b"".join(stream))
        return body


def ok(body: object) -> httpx.Response:
    return httpx.Response(200, json=body)


@asynccontextmanager
async def running(backend: OpenAIBackend) -> AsyncIterator[OpenAIBackend]:
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        yield backend
        nursery.cancel_scope.cancel()


async def ask(backend: OpenAIBackend, message: Generate) -> Completion | BaseException:
    send, receive = trio.open_memory_channel[Completion | BaseException](1)
    backend.submit(message, send.send_nowait)
    return await receive.receive()


def answer_of(
    *answers: httpx.Response | Exception | Answer, message: Generate | None = None, **options: Any
) -> tuple[Completion | BaseException, Server, OpenAIBackend]:
    """Ask once, in virtual time."""
    server = Server(*answers)
    options = {"model": "m", "api_key": KEY} | options
    backend = OpenAIBackend("http://server:8000", transport=server, **options)

    async def main() -> Completion | BaseException:
        async with running(backend):
            return await ask(backend, message or request())

    return run_simulated(main), server, backend


# -- what is sent, what is understood -----------------------------------------------


def test_chat_sends_messages_and_gives_text() -> None:
    message = request(temperature=0.5, max_tokens=9, top_p=0.9, stop=("\n",))
    result, server, backend = answer_of(ok(CHAT), message=message, policy_version=4)
    assert result == Completion("r/0", "go up", b"", b"", FinishReason.STOP, 4)
    assert server.requests[0].url == "http://server:8000/v1/chat/completions"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert int(server.requests[0].headers["content-length"]) == len(
        b"".join(server.requests[0].stream)  # type: ignore[arg-type]
    )
    assert server.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "where?"},
        ],
        "temperature": 0.5,
        "max_tokens": 9,
        "top_p": 0.9,
        "stop": ["\n"],
        "seed": 11,
    }
    assert not backend.takes_tokens
    assert not backend.gives_tokens
    assert (backend.statistics.prompt_tokens, backend.statistics.sampled_tokens) == (7, 2)
    assert (backend.statistics.requests, backend.statistics.completions) == (1, 1)
    assert server.closed


def test_tokens_go_in_and_come_out() -> None:
    result, server, backend = answer_of(ok(TOKENS), tokens=True, stop_ids=(2, 9))
    assert isinstance(result, Completion)
    assert unpack_tokens(result.token_ids).tolist() == [5, 6, 2]
    assert result.logprobs == pack_floats([-0.5, -1.5, -0.25])
    assert result.finish is FinishReason.LENGTH
    assert server.requests[0].url.path == "/v1/completions"
    body = server.body
    assert (body["prompt"], body["return_token_ids"], body["logprobs"]) == ([1, 2, 3], True, 0)
    assert body["stop_token_ids"] == [2, 9]
    assert "messages" not in body
    assert backend.takes_tokens
    assert backend.gives_tokens


def test_the_model_is_found_where_there_is_only_one() -> None:
    result, server, backend = answer_of(ok({"data": [{"id": "only"}]}), ok(CHAT), model="")
    assert isinstance(result, Completion)
    assert [r.url.path for r in server.requests] == ["/v1/models", "/v1/chat/completions"]
    assert backend.model == server.body["model"] == "only"


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (ok({"data": [{"id": "a"}, {"id": "b"}]}), ConfigError, r"serves 2 models \(a, b\)"),
        (ok({"data": []}), ConfigError, "serves 0 models"),
        (ok({"models": []}), BackendError, "cannot be read"),
        (httpx.Response(401, json={"error": {"message": "no"}}), BackendError, "API key"),
    ],
)
async def test_a_start_without_a_model_is_an_error(
    answer: httpx.Response, error: type[Exception], text: str
) -> None:
    backend = OpenAIBackend("http://server", transport=Server(answer))
    with pytest.raises(error, match=text):
        await backend.run(task_status=trio.TASK_STATUS_IGNORED)


@pytest.mark.parametrize(
    ("given_url", "target"),
    [
        ("http://host:1", "http://host:1/v1/chat/completions"),
        ("http://host:1/", "http://host:1/v1/chat/completions"),
        ("https://host/api/v2/", "https://host/api/v2/chat/completions"),
    ],
)
def test_addresses(given_url: str, target: str) -> None:
    server = Server(ok(CHAT))
    backend = OpenAIBackend(given_url, model="m", transport=server)

    async def main() -> None:
        async with running(backend):
            await ask(backend, request())

    run_simulated(main)
    assert str(server.requests[0].url) == target


@pytest.mark.parametrize("url", ["", "host:1", "ftp://host", "http://", "http://host:notaport"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="server address"):
        OpenAIBackend(url)


def test_finish_reasons() -> None:
    def finish(reason: object) -> Completion | BaseException:
        return answer_of(ok({"choices": [{"message": {}, "finish_reason": reason}]}))[0]

    def reasons(*names: object) -> list[object]:
        results = [finish(name) for name in names]
        assert all(isinstance(result, Completion) for result in results)
        return [result.finish for result in results if isinstance(result, Completion)]

    assert reasons("stop", None, "length") == [
        FinishReason.STOP,
        FinishReason.STOP,
        FinishReason.LENGTH,
    ]
    error = finish("abort")
    assert isinstance(error, BackendError)
    assert "abort" in str(error)


# -- the key ------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment\n")

    def sent(**options: Any) -> str | None:
        _, server, _ = answer_of(ok(CHAT), **options)
        header: str | None = server.requests[0].headers.get("authorization")
        return header

    assert sent(api_key=None) == "Bearer from-the-environment"
    assert sent(api_key="given") == "Bearer given"
    assert sent(api_key="") is None
    with pytest.raises(ConfigError, match="beyond ASCII"):
        OpenAIBackend("http://server", api_key="schlüssel")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(401, json={"error": {"message": "bad key"}}),
        httpx.Response(500, text="boom"),
        ok([]),
        httpx.ReadError("cut"),
    ],
)
def test_the_key_is_in_no_error(answer: httpx.Response | Exception) -> None:
    error, _, backend = answer_of(answer)
    assert isinstance(error, BackendError)
    chain: BaseException | None = error
    while chain is not None:
        assert KEY not in f"{chain!r} {chain}"
        chain = chain.__cause__
    assert KEY not in repr(backend)


# -- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.Response(400, json={"error": {"message": "too long"}}), "answered 400: too long"),
        (httpx.Response(400, json={"message": "old vLLM"}), "400: old vLLM"),
        (httpx.Response(422, json={"detail": [{"loc": "x"}]}), r'422: \{"detail":\[\{"loc":"x"'),
        (httpx.Response(403, json={"error": "not you"}), r"refuses the API key \(403\): not you"),
        (
            httpx.Response(404, json={"error": {"message": "no such model"}}),
            r"no /v1/chat/completions for model 'm' \(404\): no such model; see http",
        ),
        (httpx.Response(500, text="<html>\n oops</html>"), "answered 500: <html> oops</html>"),
        (httpx.Response(500), "an empty body"),
        (httpx.Response(302, headers={"location": "/x"}), "answered 302"),
        (ok({"choices": []}), "0 choices"),
        (ok({"choices": [{"message": "text"}]}), "cannot be read"),
        (httpx.Response(200, text="hello"), "cannot be read: .*: hello"),
        (httpx.Response(200, content=b"\xff\xfe"), "cannot be read"),
        (httpx.ReadTimeout("nothing happened for 600 s"), "ReadTimeout: nothing happened"),
        (httpx.RemoteProtocolError("cut short"), "RemoteProtocolError: cut short"),
    ],
)
def test_a_failed_request_quotes_the_server_and_harms_no_other(
    answer: httpx.Response | Exception, text: str
) -> None:
    server = Server(answer, ok(CHAT))
    backend = OpenAIBackend("http://server", model="m", transport=server)

    async def main() -> tuple[Completion | BaseException, Completion | BaseException]:
        async with running(backend):
            return await ask(backend, request()), await ask(backend, request())

    error, after = run_simulated(main)
    assert type(error) is BackendError
    with pytest.raises(BackendError, match=text):
        raise error
    assert isinstance(after, Completion)
    assert len(server.requests) == 2  # nothing was repeated
    assert (backend.statistics.failures, backend.statistics.completions) == (1, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"token_ids": None}, "gives no token ids"),
        ({"logprobs": None}, "3 token ids and 0 log-probs"),
        ({"logprobs": {"token_logprobs": [-1.0, None, -1.0]}}, "3 token ids and 2 log-probs"),
        ({"token_ids": [5, -6, 2]}, "token ids must be integers"),
        ({"token_ids": [5, "6", 2]}, "cannot be read"),
    ],
)
def test_incomplete_tokens_are_an_error(change: dict[str, Any], text: str) -> None:
    choice = TOKENS["choices"][0] | change
    error, _, _ = answer_of(ok({"choices": [choice]}), tokens=True)
    assert isinstance(error, BackendError)
    assert text in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "text", "token_ids", "error", "data"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_a_completion_or_an_error_of_ours(payload: bytes) -> None:
    for read in (chat_completion, token_completion):
        with suppress(BackendError):
            completion, prompt, sampled = read(request(), payload, 0)
            assert isinstance(completion, Completion)
            assert isinstance(prompt + sampled, int)
    with suppress(BackendError):
        assert all(isinstance(name, str) for name in model_names(payload))
    assert 0 < len(error_text(payload)) <= 300


# -- repeating ----------------------------------------------------------------------


def test_retry_after_is_honoured() -> None:
    busy = httpx.Response(429, headers={"retry-after": "7"}, json={"error": "slow down"})
    result, server, _ = answer_of(busy, busy, ok(CHAT))
    assert isinstance(result, Completion)
    assert server.times == pytest.approx([0.0, 7.0, 14.0], abs=1e-6)


def test_retry_after_as_a_date_and_as_nonsense() -> None:
    past = httpx.Response(503, headers={"retry-after": formatdate(1.0, usegmt=True)})
    nonsense = httpx.Response(503, headers={"retry-after": "soon"})
    endless = httpx.Response(503, headers={"retry-after": "1e300"})
    result, server, _ = answer_of(past, nonsense, endless, ok(CHAT))
    assert isinstance(result, Completion)
    waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert waits[0] == pytest.approx(0.0)
    assert 0.25 <= waits[1] <= 0.5
    assert waits[2] == pytest.approx(600.0)


def test_a_server_that_only_puts_off_is_given_up_in_the_end() -> None:
    busy = httpx.Response(503, json={"error": {"message": "overloaded"}})
    error, server, _ = answer_of(busy, attempts=4)
    assert isinstance(error, BackendError)
    assert "503 after 4 tries: overloaded" in str(error)
    assert len(server.requests) == 4
    waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    for tries, wait in enumerate(waits):
        assert 0.125 * 2**tries <= wait <= 0.25 * 2**tries


def test_the_backoff_follows_from_the_seed() -> None:
    busy = httpx.Response(503)
    times = [answer_of(busy, attempts=4, message=request(seed=s))[1].times for s in (1, 1, 2)]
    assert times[0] == times[1] != times[2]


def test_a_refused_connection_is_tried_again() -> None:
    refused = httpx.ConnectError("refused")
    result, server, _ = answer_of(refused, httpx.ConnectTimeout("late"), refused, ok(CHAT))
    assert isinstance(result, Completion)
    assert len(server.requests) == 4


async def test_a_server_that_stays_away_kills_the_backend(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(httpx.ConnectError("refused"))
    backend = OpenAIBackend("http://server:1", model="m", transport=server, patience=30.0)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with running(backend):
            for k in range(50):
                backend.submit(request(str(k)), lambda _: pytest.fail("answered when dead"))
            await trio.sleep_forever()
    assert caught.group_contains(BackendDied, match=r"http://server:1/v1 cannot be reached for 30")
    assert 30 <= trio.current_time() <= 33
    assert server.closed


async def test_one_request_that_gets_through_keeps_the_backend_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Patience is counted from the last success of any request, not for each."""

    async def flaky(_: httpx.Request) -> httpx.Response:
        if 5.0 < trio.current_time() % 20.0 < 19.0:
            raise httpx.ConnectError("refused")
        return ok(CHAT)

    backend = OpenAIBackend("http://server", model="m", transport=Server(flaky), patience=17.0)
    async with running(backend):
        for k in range(12):
            assert isinstance(await ask(backend, request(str(k))), Completion)
            await trio.sleep(10.0)


# -- cancel -------------------------------------------------------------------------


async def test_a_cancelled_request_is_aborted_and_never_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    aborted: list[str] = []

    async def slow(message: httpx.Request) -> httpx.Response:
        try:
            await trio.sleep(5.0)
        except trio.Cancelled:
            aborted.append(message.url.path)
            raise
        return ok(CHAT)

    answered: list[str] = []
    async with running(OpenAIBackend("http://s", model="m", transport=Server(slow))) as backend:
        for name in ("gone", "kept"):
            backend.submit(request(name), lambda _, name=name: answered.append(name))  # type: ignore[misc]
        await trio.sleep(1.0)
        backend.cancel("gone")
        backend.cancel("unknown")
        await trio.sleep(1.0)
        assert len(aborted) == 1
        await trio.sleep(10.0)
        assert answered == ["kept"]
        backend.submit(request("twice"), lambda _: answered.append("first"))
        await trio.sleep(1.0)
        backend.submit(request("twice"), lambda _: answered.append("second"))
        await trio.sleep(10.0)
    assert answered == ["kept", "second"]

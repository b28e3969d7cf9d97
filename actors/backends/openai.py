"""Inference by any OpenAI-compatible server, over HTTP.

Two ways to ask, chosen by `tokens`:

* **chat** (`/v1/chat/completions`): any server. Sessions send messages, the server
  applies its own template and gives text. One can evaluate, but not learn from it.
* **tokens** (`/v1/completions`): servers that take token ids as a prompt and give
  token ids and log-probs back, as vLLM does (`return_token_ids`). Start vLLM with
  `--logprobs-mode processed_logprobs`, else its log-probs are those of temperature 1.

What is repeated, with a seeded backoff, and what is not:

| what happened | what follows |
|---|---|
| no connection (refused, look-up, TLS) | repeated: nothing was sent |
| 429 or 503 | repeated after `Retry-After`, or the backoff: nothing was computed |
| a kept-alive connection was closed unseen | repeated once by the transport |
| any other status, a cut or garbled answer, silence | `BackendError` for this request |

A server that cannot be reached by any request for `patience` seconds is gone:
`run` raises `BackendDied`, and its supervisor decides. The clock, not a count, rules:
a thousand sessions fail a thousand times in the same moment.

Invariant: the API key is sent to the server and appears nowhere else.

Not here: the JSON (`openai_wire`) and the connections (`engine.http_transport`).
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Sequence
from email.utils import mktime_tz, parsedate_tz
from typing import Final

import httpx
import trio

from ...engine.errors import BackendDied, BackendError, ConfigError
from ...engine.http_transport import transport_for
from ...engine.seeds import derive
from ..protocol import Completion, Generate
from .base import Backend, Done
from .openai_wire import (
    chat_body,
    chat_completion,
    error_text,
    model_names,
    token_body,
    token_completion,
)

_RETRY_STATUS: Final = frozenset({429, 503})
_SPARE_FILES: Final = 128
"""File descriptors left to everything else when the number of connections is bounded."""


class OpenAIBackend(Backend):
    """Asks a server for completions, each request on its own; the server batches.

    Args:
        base_url: `http://host:port` or with a path; `/v1` is added where there is none.
        model: name the server knows; "" takes the only one it lists.
        tokens: token ids in and out (vLLM) in place of chat messages and text.
        stop_ids: token ids that end a completion, besides the model's own; with `tokens`.
        api_key: sent as a bearer token; None = the variable OPENAI_API_KEY, if set.
        policy_version: the version that this server's weights are.
        timeout: seconds of silence after which a request fails.
        connect_timeout: seconds to reach the server, for one try.
        attempts: tries of one request that the server put off (429, 503).
        patience: seconds without any connection after which the backend is dead.
        max_connections: most requests at once, others wait; None = what the limit of
            open files allows.
        transport: replaces the transport, for tests and special networks.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "",
        tokens: bool = False,
        stop_ids: Sequence[int] = (),
        api_key: str | None = None,
        policy_version: int = 0,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        attempts: int = 8,
        patience: float = 60.0,
        max_connections: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__()
        self.takes_tokens = tokens
        self.gives_tokens = tokens
        self.policy_version = policy_version
        self.model = model
        self._url: Final = _base(base_url)
        self._target: Final = _join(self._url, "completions" if tokens else "chat/completions")
        self._stop_ids = list(stop_ids)
        self._attempts = attempts
        self._patience = patience
        limit = max_connections or _connection_limit()
        self._transport = transport or transport_for(self._url, max_connections=limit)
        key = os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key
        self._headers: Final = [
            (b"host", self._url.netloc),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
        ]
        if key:
            self._headers.append((b"authorization", b"Bearer " + _ascii(key)))
        self._extensions: Final = {
            "timeout": {"connect": connect_timeout, "read": timeout, "write": timeout},
            "repeatable": True,  # asking a model twice changes nothing
        }
        self._nursery: trio.Nursery | None = None
        self._running: dict[str, trio.CancelScope] = {}
        self._unreachable_since: float | None = None
        self._dying = trio.Event()
        self._death: BackendDied | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Find the model, then serve until cancelled.

        Raises:
            BackendDied: the server could not be reached for `patience` seconds.
            BackendError: the server refuses the key, or gives no list of models.
            ConfigError: it has several models and none was named.
        """
        async with self._transport:
            if not self.model:
                self.model = await self._discover()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._dying.wait()
                nursery.cancel_scope.cancel()
        assert self._death is not None
        raise self._death

    def submit(self, request: Generate, done: Done) -> None:
        """Send a request from a task of its own; an earlier one of the same id is dropped."""
        assert self._nursery is not None, "submit before run has started"
        self.cancel(request.request_id)
        self.statistics.requests += 1
        scope = self._running[request.request_id] = trio.CancelScope()
        self._nursery.start_soon(self._serve, request, done, scope)

    def cancel(self, request_id: str) -> None:
        """Close the request's connection: servers take that as an abort."""
        scope = self._running.pop(request_id, None)
        if scope is not None:
            scope.cancel()

    async def _serve(self, request: Generate, done: Done, scope: trio.CancelScope) -> None:
        result: Completion | BackendError | None = None
        with scope:
            try:
                result = await self._complete(request)
            except BackendDied as error:
                self._death = error
                self._dying.set()
            except BackendError as error:
                self.statistics.failures += 1
                result = error
        if result is not None and self._running.get(request.request_id) is scope:
            del self._running[request.request_id]
            done(result)

    async def _complete(self, request: Generate) -> Completion:
        if self.takes_tokens:
            body = token_body(request, self.model, self._stop_ids)
        else:
            body = chat_body(request, self.model)
        payload = await self._exchange("POST", self._target, body, request.seed)
        read = token_completion if self.takes_tokens else chat_completion
        completion, prompt_tokens, sampled_tokens = read(request, payload, self.policy_version)
        self.statistics.completions += 1
        self.statistics.prompt_tokens += prompt_tokens
        self.statistics.sampled_tokens += sampled_tokens
        return completion

    async def _discover(self) -> str:
        """The name of the only model that the server has."""
        names = model_names(await self._exchange("GET", _join(self._url, "models"), b"", 0))
        if len(names) != 1:
            raise ConfigError(
                f"{self._url} serves {len(names)} models ({', '.join(names[:8])}): say which"
            )
        return names[0]

    async def _exchange(self, method: str, url: httpx.URL, body: bytes, seed: int) -> bytes:
        """Send one request, again where that is safe; give the body of the good answer.

        Raises:
            BackendError: refused, failed, or put off too often; quotes the server.
            BackendDied: nobody has reached the server for `patience` seconds.
        """
        deferred = 0
        failed = 0
        while True:
            try:
                status, headers, payload = await self._send(method, url, body)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._unreachable(error)
                failed += 1
                await trio.sleep(_backoff(seed, failed, longest=2.0))
                continue
            except httpx.TransportError as error:
                name = type(error).__name__
                raise BackendError(f"{url.host}: {name}: {error}") from error
            if status == 200:
                return payload
            deferred += 1
            if status not in _RETRY_STATUS or deferred >= self._attempts:
                raise self._refusal(status, payload, deferred)
            wait = _retry_after(headers.get("retry-after", ""))
            await trio.sleep(_backoff(seed, deferred) if wait is None else wait)

    async def _send(
        self, method: str, url: httpx.URL, body: bytes
    ) -> tuple[int, httpx.Headers, bytes]:
        # As bytes and with a ready stream: httpx then has nothing to encode or to work out.
        request = httpx.Request(
            method,
            url,
            headers=[*self._headers, (b"content-length", b"%d" % len(body))],
            stream=httpx.ByteStream(body),
            extensions=self._extensions,
        )
        response = await self._transport.handle_async_request(request)
        self._unreachable_since = None
        try:
            # Not `aread`: its layers of decoding cost more than the rest of the response.
            assert isinstance(response.stream, httpx.AsyncByteStream)
            payload = b"".join([chunk async for chunk in response.stream])
            return response.status_code, response.headers, payload
        finally:
            await response.aclose()

    def _unreachable(self, error: httpx.TransportError) -> None:
        """Count how long nobody has got through; raise `BackendDied` past the patience."""
        now = trio.current_time()
        if self._unreachable_since is None:
            self._unreachable_since = now
        if now - self._unreachable_since >= self._patience:
            raise BackendDied(
                f"the server at {self._url} cannot be reached for {self._patience:g} s ({error}): "
                "is it running, and is the address right?"
            ) from error

    def _refusal(self, status: int, payload: bytes, tries: int) -> BackendError:
        text = error_text(payload)
        if status in {401, 403}:
            return BackendError(
                f"the server refuses the API key ({status}): {text}; set OPENAI_API_KEY"
            )
        if status == 404:
            return BackendError(
                f"the server has no {self._target.path} for model {self.model!r} (404): {text}; "
                f"see {_join(self._url, 'models')} for its models"
            )
        again = f" after {tries} tries" if tries > 1 else ""
        return BackendError(f"the server answered {status}{again}: {text}")


def _ascii(key: str) -> bytes:
    try:
        return key.strip().encode("ascii")
    except UnicodeEncodeError:
        raise ConfigError("the API key (OPENAI_API_KEY) holds a character beyond ASCII") from None


def _base(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ConfigError(f"the server address {text!r}: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigError(f"the server address {text!r} must be http://host:port or https://…")
    return url if url.path.strip("/") else url.copy_with(path="/v1")


def _join(base: httpx.URL, path: str) -> httpx.URL:
    return base.copy_with(path=f"{base.path.rstrip('/')}/{path}")


def _connection_limit() -> int:
    """Connections that the soft limit of open files leaves room for."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(soft - _SPARE_FILES, 16) if soft != resource.RLIM_INFINITY else 65_536


def _backoff(seed: int, tries: int, *, longest: float = 30.0) -> float:
    """Seconds before the next try: doubling from 0.25, the upper half drawn from the seed."""
    ceiling = min(0.25 * 2.0 ** min(tries - 1, 16), longest)
    return ceiling * (0.5 + derive(seed, "backoff", tries) / 2**64)


def _retry_after(value: str) -> float | None:
    """Seconds that a server asks to wait; None where it does not say. At most ten minutes."""
    value = value.strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        date = parsedate_tz(value)
        if date is None:
            return None
        seconds = mktime_tz(date) - time.time()
    return min(max(seconds, 0.0), 600.0) if math.isfinite(seconds) else None

"""An OpenAI-compatible server with no model: a fixed answer after a latency, in its own process.

    python -m rollwave.benchmarks.stub_server --latency-ms 20

It prints one line of JSON with its address once it listens, and stops on SIGTERM
or SIGINT. An instrument must cost less than what it measures: this one is an asyncio protocol that
splits requests by hand (about 30 µs each), which is why it is neither built on the
engine nor a complete HTTP server. It answers

    GET  /v1/models             one model, "stub"
    POST /v1/chat/completions   a text
    POST /v1/completions        a text; token ids and log-probs as vLLM gives them

Invariant: a request is answered `latency` after its last byte arrived, whatever the
others do.

Not here: faults (the tests make their own servers), batching (`ScriptedBackend`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MODEL: Final = "stub"
TEXT: Final = "Thought: go on.\nAction: continue"
TOKEN_IDS: Final = (11, 12, 13, 14, 15, 16, 17, 2)
MAX_HEAD_BYTES: Final = 16 * 1024


def answers() -> dict[bytes, bytes]:
    """Whole responses by path, made once."""
    usage = {"prompt_tokens": 64, "completion_tokens": len(TOKEN_IDS), "total_tokens": 72}
    base = {"id": "stub-1", "created": 1, "model": MODEL, "usage": usage}
    chat_choice = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "finish_reason": "stop",
        "logprobs": None,
    }
    token_choice = {
        "index": 0,
        "text": TEXT,
        "token_ids": TOKEN_IDS,
        "logprobs": {"token_logprobs": [-0.5] * len(TOKEN_IDS)},
        "finish_reason": "stop",
    }
    return {
        b"/v1/models": _response(200, {"object": "list", "data": [{"id": MODEL}]}),
        b"/v1/chat/completions": _response(
            200, base | {"object": "chat.completion", "choices": [chat_choice]}
        ),
        b"/v1/completions": _response(
            200, base | {"object": "text_completion", "choices": [token_choice]}
        ),
    }


def _response(status: int, body: object) -> bytes:
    payload = json.dumps(body).encode()
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


class Stub(asyncio.Protocol):
    """One connection: requests with a content-length, answered in order."""

    def __init__(self, latency: Callable[[], float], responses: dict[bytes, bytes]) -> None:
        self._latency = latency
        self._responses = responses
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; answers are small, so write back-pressure is not watched."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the transport: late answers go nowhere."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Split off whole requests and schedule their answers."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = _content_length(head)
            if length is None:
                self._refuse("a request needs a content-length, and a number in it")
                return
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            path = head.split(b" ", 2)[1] if head.count(b" ") >= 2 else b""
            if response := self._responses.get(path):
                asyncio.get_running_loop().call_later(self._latency(), self._send, response)
            else:
                error = {"error": {"message": f"no such path: {path!r}", "type": "NotFound"}}
                self._send(_response(404, error))
        if len(self._buffer) > MAX_HEAD_BYTES and b"\r\n\r\n" not in self._buffer:
            self._refuse("the headers are too long")

    def _send(self, response: bytes) -> None:
        if self._transport is not None:
            self._transport.write(response)

    def _refuse(self, text: str) -> None:
        self._send(_response(400, {"error": {"message": text, "type": "BadRequest"}}))
        if self._transport is not None:
            self._transport.close()


def _content_length(head: bytes) -> int | None:
    """Body bytes that follow this head; None where it does not say."""
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return 0 if head.startswith(b"GET ") else None
    value = head[at + 17 :].split(b"\r\n", 1)[0].strip()
    return int(value) if value.isdigit() else None


def latencies(median: float, sigma: float, seed: int) -> Callable[[], float]:
    """Draws of a log-normal latency in seconds, in the order of the requests; constant
    where `sigma`, the standard deviation of the logarithm, is 0."""
    draw = random.Random(seed)
    return lambda: median * math.exp(sigma * draw.gauss(0.0, 1.0)) if sigma else median


async def serve(host: str, port: int, latency: Callable[[], float]) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    responses = answers()
    server = await loop.create_server(
        lambda: Stub(latency, responses), host, port, backlog=4096, family=socket.AF_INET
    )
    address = server.sockets[0].getsockname()
    print(json.dumps({"url": f"http://{address[0]}:{address[1]}"}), flush=True)
    await stop.wait()
    server.close()


@contextmanager
def stub_server(
    latency_ms: float, *, sigma: float = 0.0, seed: int = 0, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Run the stub in a process of its own; give its URL. Stopped on the way out."""
    command = [sys.executable, str(Path(__file__).resolve()), "--host", host]
    command += ["--latency-ms", str(latency_ms), "--sigma", str(sigma), "--seed", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(timeout=10)
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description="OpenAI-compatible stub server for benchmarks.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--sigma", type=float, default=0.0, help="above 0: a heavy tail")
    parser.add_argument("--seed", type=int, default=0, help="of the latencies")
    options = parser.parse_args()
    latency = latencies(options.latency_ms / 1000, options.sigma, options.seed)
    asyncio.run(serve(options.host, options.port, latency))


if __name__ == "__main__":
    main()

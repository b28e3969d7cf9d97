"""The stub server: it must be honest about its latency, and never be what breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import trio
from rollwave.benchmarks.stub_server import (
    MODEL,
    TEXT,
    TOKEN_IDS,
    answers,
    latencies,
    stub_server,
)
from rollwave.engine.http_transport import TrioTransport


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    with stub_server(1.0) as url:
        yield url


async def read_all(stream: trio.SocketStream) -> bytes:
    """What the server sends until it hangs up or waits for us (there is no more to come)."""
    data = b""
    with trio.move_on_after(5):
        while part := await stream.receive_some():
            data += part
            if data.endswith(b"}"):
                break
    return data


async def connect(url: str) -> trio.SocketStream:
    parsed = httpx.URL(url)
    assert parsed.port is not None
    return await trio.open_tcp_stream(parsed.host, parsed.port)


async def test_it_answers_as_the_servers_it_stands_for(stub: str) -> None:
    async with httpx.AsyncClient(transport=TrioTransport(), base_url=stub) as client:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == [MODEL]
        chat = (await client.post("/v1/chat/completions", json={"messages": []})).json()
        assert chat["choices"][0]["message"]["content"] == TEXT
        tokens = (await client.post("/v1/completions", json={"prompt": [1]})).json()
        choice = tokens["choices"][0]
        assert choice["token_ids"] == list(TOKEN_IDS)
        assert len(choice["logprobs"]["token_logprobs"]) == len(TOKEN_IDS)
        missing = await client.get("/nowhere")
        assert missing.status_code == 404
        assert "/nowhere" in missing.json()["error"]["message"]


async def test_a_request_may_arrive_in_pieces_or_two_at_once(stub: str) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"
    async with await connect(stub) as stream:
        for byte in request:
            await stream.send_all(bytes([byte]))
        assert await read_all(stream) == answers()[b"/v1/completions"]
        await stream.send_all(request + request)
        data = await read_all(stream)
        while len(data) < 2 * len(answers()[b"/v1/completions"]):
            data += await read_all(stream)
        assert data == 2 * answers()[b"/v1/completions"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"x" * 40_000,
    ],
)
async def test_what_it_cannot_read_is_refused(stub: str, request_bytes: bytes) -> None:
    async with await connect(stub) as stream:
        await stream.send_all(request_bytes)
        data = await read_all(stream)
    assert data.startswith(b"HTTP/1.1 400 ")
    assert "error" in json.loads(data.partition(b"\r\n\r\n")[2])


async def test_a_client_that_leaves_early_harms_nobody(stub: str) -> None:
    async with await connect(stub) as stream:
        await stream.send_all(b"GET /v1/models HTTP/1.1\r\n\r\n")
    async with httpx.AsyncClient(transport=TrioTransport(), base_url=stub) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_the_latency_is_a_lower_bound() -> None:
    with stub_server(50.0) as url:
        async with httpx.AsyncClient(transport=TrioTransport(), base_url=url) as client:
            started = trio.current_time()
            await client.get("/v1/models")
            assert trio.current_time() - started >= 0.05


def test_a_heavy_tail_has_its_median_and_depends_on_its_seed() -> None:
    draw = latencies(0.04, 1.0, 3)
    drawn = [draw() for _ in range(4001)]
    again = latencies(0.04, 1.0, 3)
    assert drawn[:9] == [again() for _ in range(9)]
    assert sorted(drawn)[2000] == pytest.approx(0.04, rel=0.1)
    assert max(drawn) > 10 * 0.04
    assert latencies(0.04, 0.0, 3)() == 0.04

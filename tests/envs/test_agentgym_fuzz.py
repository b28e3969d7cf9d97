"""Strange requests, drawn from the server's own document and beside it: no 500, no leak."""

from __future__ import annotations

import json
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import encode
from rollwave.envs.agentgym.batch import (
    PATH,
    Answers,
    Ask,
    Batch,
    Close,
    Failed,
    Open,
    Reset,
    Step,
)
from rollwave.envs.agentgym.server import Reply, Request, WireServer
from rollwave.envs.agentgym.sessions import Limits
from rollwave.envs.registry import resolve

SPECS = [resolve("textcraft-v1"), resolve("maze-v1"), resolve("wordle-v1?words=20")]


def server() -> WireServer:
    return WireServer(SPECS, limits=Limits(sessions=5))


def document() -> dict[str, Any]:
    return json.loads(trio.run(server().answer, Request(b"GET", b"/openapi.json")).body)


DOCUMENT = document()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
SESSION = st.one_of(st.integers(-1, 6), st.integers(-(2**70), 2**70), JSON)


def bodies(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Bodies as the document has them, with and without what is required, and of other types."""
    fields = {
        name: SESSION if "integer" in kind["type"] else st.text(max_size=40) | JSON
        for name, kind in schema.get("properties", {}).items()
    }
    return st.fixed_dictionaries({}, optional=fields) | JSON


@st.composite
def requests(draw: st.DrawFn) -> Request:
    path = draw(st.sampled_from(sorted(DOCUMENT["paths"])))
    method, operation = draw(st.sampled_from(sorted(DOCUMENT["paths"][path].items())))
    query, body = b"", b""
    if "parameters" in operation:
        name = operation["parameters"][0]["name"]
        query = f"{name}={draw(SESSION)}".encode("utf-8", "replace") + draw(st.binary(max_size=9))
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = draw(
            st.binary(max_size=30) | bodies(schema).map(lambda value: json.dumps(value).encode())
        )
    method = draw(st.sampled_from([method] * 9 + ["patch"]))
    return Request(method.upper().encode(), path.encode(), query, body)


def sound(request: Request, reply: Reply) -> None:
    """The reply is one that the document announces, in its shape."""
    assert reply.status != 500
    answer = json.loads(reply.body) if reply.media == b"application/json" else None
    if reply.status != 200:
        assert answer.keys() >= {"error", "kind"}
    operation = DOCUMENT["paths"][request.path.decode()].get(request.method.decode().lower())
    if operation is not None:
        assert str(reply.status) in operation["responses"]


@settings(max_examples=100, deadline=None)
@given(st.lists(requests(), max_size=12))
def test_any_requests_are_answered_as_the_document_says(sent: list[Request]) -> None:
    async def main() -> None:
        wire = server()
        for request in sent:
            sound(request, await wire.answer(request))
        assert len(wire.sessions) <= 5
        wire.sessions.close_all()
        counts = wire.sessions.counts
        assert counts.opened.total() == counts.ended.total()

    trio.run(main)


SMALL = st.integers(-1, 6) | st.integers(-(2**63), 2**63 - 1)
CALLS = st.one_of(
    st.builds(Open, st.sampled_from(["textcraft", "maze", "wordle", ""]) | st.text(max_size=8)),
    st.builds(Reset, SMALL, SMALL, SMALL),
    st.builds(Step, SMALL, SMALL, st.text(max_size=30)),
    st.builds(Ask, SMALL, st.booleans()),
    st.builds(Close, SMALL),
)
BATCHES = st.lists(CALLS, max_size=10).map(lambda calls: encode(Batch(tuple(calls))))


@settings(max_examples=100, deadline=None)
@given(st.lists(BATCHES | st.binary(max_size=60), max_size=6))
def test_any_batches_are_answered_entry_by_entry(sent: list[bytes]) -> None:
    from rollwave.engine.codec import Decoder

    async def main() -> None:
        wire = server()
        for body in sent:
            reply = await wire.answer(Request(b"POST", PATH.encode(), b"", body))
            assert reply.status in (200, 422)
            if reply.status == 200:
                calls = Decoder(Batch).decode(body).calls
                replies = Decoder(Answers).decode(reply.body).replies
                assert len(replies) == len(calls)
                assert not [r for r in replies if isinstance(r, Failed) and r.kind == "broken"]
        wire.sessions.close_all()
        counts = wire.sessions.counts
        assert counts.opened.total() == counts.ended.total()

    trio.run(main)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([b"GET", b"POST", b"", b"\xff"]),
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.binary(max_size=30),
)
def test_any_path_and_header_is_answered(
    method: bytes, path: bytes, query: bytes, body: bytes, authorization: bytes
) -> None:
    for token in ("", "t"):
        wire = WireServer(SPECS, token=token)
        reply = trio.run(wire.answer, Request(method, b"/" + path, query, body, authorization))
        assert reply.status in (200, 401, 404, 405, 422)
        trio.run(wire.answer, Request(b"GET", b"/metrics"))

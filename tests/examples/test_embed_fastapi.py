"""`examples/embed_fastapi.py` behind a real server on the loopback interface.

Everything asyncio happens inside `serving`; the tests are plain functions.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from types import ModuleType
from typing import Any

import httpx
import pytest
import rollwave

pytest.importorskip("fastapi", reason="the serve extra is not installed")
hypercorn = pytest.importorskip("hypercorn.asyncio", reason="the serve extra is not installed")

SECONDS = 60
"""Where a test hangs, it ends here; none of them waits."""


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an app on a free port, with a client; both are closed at the end."""
    from hypercorn.config import Config

    stop = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.graceful_timeout = 1
        host, port = listener.getsockname()
        server = asyncio.create_task(hypercorn.serve(app, config, shutdown_trigger=stop.wait))
        try:
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=SECONDS) as it:
                yield it
        finally:
            stop.set()
            await server
        listener.detach()  # Hypercorn has closed it


@pytest.fixture
def talk(example: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """Serve the example and run a conversation with it, under asyncio."""
    make_app = example("embed_fastapi").make_app

    def run(conversation: Callable[..., Coroutine[Any, Any, Any]], policy: Any = "expert") -> Any:
        async def main() -> Any:
            async with asyncio.timeout(SECONDS), serving(make_app(policy)) as client:
                return await conversation(client)

        return asyncio.run(main())

    return run


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop go on until something is so; the test's deadline bounds it."""
    while not holds():  # noqa: ASYNC110 (what changes lives in trio)
        await asyncio.sleep(0.005)


def order(**changes: Any) -> dict[str, Any]:
    return {"env": "textcraft-v1", "limit": 3, "attempts": 2, **changes}


def test_every_trajectory_is_one_line_of_json(talk) -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/rollouts", json=order())

    answer = talk(conversation)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len({line["id"] for line in lines}) == 6
    assert {line["outcome"] for line in lines} == {"success"}
    assert all(line["reward"] == 1.0 and line["fault"] is None for line in lines)
    assert all(set(turn) == {"observation", "action"} for line in lines for turn in line["turns"])


def test_clients_share_one_engine_and_get_their_own_episodes(talk) -> None:
    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/rollouts", json=order()) for _ in range(4)))

    ids = [{json.loads(line)["id"] for line in a.text.splitlines()} for a in talk(conversation)]
    assert len(set.union(*ids)) == 4 * 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env": "textcraf-v1"}, "textcraft"),
        ({"split": "exam"}, "exam"),
        ({"attempts": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_order_is_refused_with_the_reason(talk, changes, says) -> None:
    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/rollouts", json=order(**changes))

    answer = talk(conversation)
    assert answer.status_code == 422
    assert says in answer.text


def test_lines_arrive_while_others_still_play_and_leaving_cancels_those(talk, half_silent) -> None:
    backend, source = half_silent

    async def conversation(client: httpx.AsyncClient) -> list[str]:
        outcomes = []
        async with client.stream("POST", "/rollouts", json=order()) as answer:
            async for line in answer.aiter_lines():
                outcomes.append(json.loads(line)["outcome"])
                if len(outcomes) == 3:  # second attempts are never answered
                    break
        await until(lambda: not backend.waiting)
        return outcomes

    assert talk(conversation, source) == ["truncated"] * 3
    assert len(backend.abandoned) == 3


def test_a_client_that_leaves_disturbs_no_other(talk, half_silent) -> None:
    backend, source = half_silent

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        async with client.stream("POST", "/rollouts", json=order()) as answer:
            await anext(answer.aiter_lines())
            other = asyncio.create_task(client.post("/rollouts", json=order(attempts=1)))
        await until(lambda: not backend.waiting)
        return await other

    assert len(talk(conversation, source).text.splitlines()) == 3


def test_stopping_the_server_stops_what_still_plays(talk, half_silent) -> None:
    backend, source = half_silent

    async def conversation(client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
        left = asyncio.create_task(client.post("/rollouts", json=order()))
        await until(lambda: len(backend.waiting) == 3)
        return left

    talk(conversation, source)
    assert backend.waiting == set()
    assert len(backend.abandoned) == 3


def test_an_order_to_a_closed_engine_is_503(example) -> None:
    app = example("embed_fastapi").make_app()

    async def main() -> httpx.Response:
        async with rollwave.open_engine_asyncio() as engine:
            pass

        async def stale(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await app({**scope, "state": {"engine": engine, "waves": count()}}, receive, send)

        transport = httpx.ASGITransport(app=stale)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/rollouts", json=order())

    answer = asyncio.run(main())
    assert answer.status_code == 503
    assert "the engine is closed" in answer.text

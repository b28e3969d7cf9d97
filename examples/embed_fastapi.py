"""Rollwave inside a FastAPI service, on the server's own asyncio loop.

    pip install 'rollwave[serve]'
    python examples/embed_fastapi.py                    # http://127.0.0.1:8000
    curl -N http://127.0.0.1:8000/rollouts -H 'content-type: application/json' \\
         -d '{"env": "textcraft-v1", "limit": 4, "attempts": 2}'

One engine serves all requests: it opens with the service and closes with it. Each
trajectory is sent as one line of JSON the moment its episode ends. A client that goes
away cancels its own episodes and nobody else's.

Not here: trio programs (`embed_trio.py`), authentication, quotas.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

import rollwave
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field


class Order(BaseModel):
    """What a client asks for."""

    env: str
    split: str = "test"
    limit: int = Field(default=8, ge=1, le=1000)
    attempts: int = Field(default=1, ge=1, le=64)
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=128, ge=1)


def make_app(policy: str | rollwave.PolicySource = "expert", *, concurrency: int = 64) -> FastAPI:
    """The service; `policy` as for `rollwave.open_engine`."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with rollwave.open_engine_asyncio(policy, concurrency=concurrency) as engine:
            yield {"engine": engine, "waves": count()}

    app = FastAPI(title="Rollouts", lifespan=lifespan)

    @app.post("/rollouts")
    async def rollouts(order: Order, request: Request) -> StreamingResponse:
        """Play tasks and stream one line of JSON a trajectory."""
        engine: rollwave.AsyncioEngine = request.state.engine
        # Made here, before the answer begins: an order that is refused gets a status of its own.
        rollout = engine.rollout(
            engine.tasks(order.env, order.split, limit=order.limit),
            attempts=order.attempts,
            wave=next(request.state.waves),  # names and seeds the episodes of this request
            sampling=rollwave.Sampling(temperature=order.temperature, max_tokens=order.max_tokens),
        )

        async def lines() -> AsyncIterator[str]:
            async with aclosing(rollout):  # the client's going cancels its episodes
                async for trajectory in rollout:
                    yield json.dumps(summary(trajectory)) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.exception_handler(rollwave.ConfigError)
    async def refused(_request: Request, error: rollwave.ConfigError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(rollwave.ActorDead)
    async def closed(_request: Request, error: rollwave.ActorDead) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503)

    return app


def summary(trajectory: rollwave.Trajectory) -> dict[str, Any]:
    """What a client sees of a trajectory."""
    return {
        "id": trajectory.id,
        "outcome": trajectory.outcome,
        "reward": trajectory.reward,
        "fault": trajectory.fault.text if trajectory.fault else None,
        "turns": [
            {"observation": turn.observation, "action": turn.action} for turn in trajectory.turns
        ],
    }


async def main() -> None:
    """Serve on Hypercorn until it is told to stop."""
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [os.environ.get("BIND", "127.0.0.1:8000")]
    app: Any = make_app(os.environ.get("POLICY", "expert"))  # Hypercorn types ASGI its own way
    await serve(app, config)


if __name__ == "__main__":
    asyncio.run(main())

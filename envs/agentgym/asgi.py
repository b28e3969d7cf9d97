"""The server as an ASGI application: to mount in one's own, or to run under Hypercorn on trio.

    app.mount("/envs", Application(WireServer([resolve("textcraft-v1")])))

It has to run on trio. Its lifespan sweeps leases and, at the end, closes all sessions;
mounted where no lifespan reaches it, `Application.keep` does that in a nursery of the
host's.

Invariant: the same requests get the same replies as over `listener`.

Not here: connections and their time limits, which are the host's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import trio

from .listener import SWEEP_SECONDS
from .server import Reply, Request, WireServer, problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Application:
    """An ASGI application around a `WireServer`."""

    def __init__(self, wire: WireServer) -> None:
        self.wire: Final = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await _send(send, await self._answer(scope, receive))
        # Anything else (websocket): ended without an answer, which the host turns into a refusal.

    async def keep(self) -> None:
        """Sweep leases until cancelled; then close all sessions."""
        try:
            while True:
                await trio.sleep(SWEEP_SECONDS)
                self.wire.sessions.sweep()
        finally:
            self.wire.sessions.draining = True
            self.wire.sessions.close_all()

    async def _live(self, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keep)
            while True:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    break
                await send({"type": "lifespan.startup.complete"})
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        headers = dict(scope["headers"])
        path = scope["path"].removeprefix(scope.get("root_path", "")).encode() or b"/"
        limit = self.wire.body_limit(path)
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return problem(400, "protocol", "The request broke off.")
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                return problem(413, "body", f"A body has {limit} bytes at most here.")
            parts.append(part)
            more = message.get("more_body", False)
        return await self.wire.answer(
            Request(
                scope["method"].encode(),
                path,
                scope.get("query_string", b""),
                b"".join(parts),
                headers.get(b"authorization", b""),
                headers.get(b"origin", b""),
            )
        )


async def _send(send: Send, reply: Reply) -> None:
    headers = [
        (b"content-type", reply.media),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})

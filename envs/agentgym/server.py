"""Our worlds for AgentGym's clients: every call of its protocol, answered from bytes to bytes.

    wire = WireServer([resolve("textcraft-v1")])
    reply = await wire.answer(Request(b"POST", b"/create"))

Each world is served below its dialect's name (`/textcraft/step`); a world that is alone
also without it, at the paths of AgentGym's own server (`/step`, `/maze/step`). Beside
them `/health`, `/metrics` (Prometheus), `/openapi.json` and the batched wire (`batch`).

Invariants:

* whatever the bytes are, there is one reply, and its status is never 500;
* what went wrong with a session is answered as its dialect does it: as `{"error": …}`
  with status 200 where ids are called `id`; what went wrong with the request itself has
  the status that HTTP has for it. `kind` names it for programs;
* with a token, nothing but `/health` is answered without it; a request from a web page
  (it carries an origin) is never answered.

Not here: connections (`listener`, `asgi`), sessions (`sessions`), shapes (`dialects`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from ...engine.errors import ConfigError
from ..base import EnvSpec
from ..hosting import Host
from . import metrics, openapi
from .answers import answer, one
from .batch import MAX_BYTES as MAX_BATCH_BYTES
from .batch import MEDIA, PATH, Batches
from .dialects import Shape
from .requests import Malformed, Requests
from .sessions import Limits, Refused, Served, Sessions

MAX_BODY: Final = 1 << 20
"""Bytes of a request's body; more where a batch is expected."""

_STATUS: Final[Mapping[str, int]] = {
    "overloaded": 503,
    "busy": 429,
}
"""By kind of refusal: those that say nothing about the session."""

_STATUS_BY_INDEX: Final[Mapping[str, int]] = {
    "task": 422,
    "finished": 409,
    "not_reset": 409,
    "broken": 502,
    "late": 504,
}
"""Where ids are called `env_idx` and errors have a status; all others are not found."""

_JSON: Final = b"application/json"
_encode: Final = msgspec.json.Encoder().encode


class Request(NamedTuple):
    """One request, read to its end."""

    method: bytes
    path: bytes
    query: bytes = b""
    body: bytes = b""
    authorization: bytes = b""
    origin: bytes = b""


class Reply(NamedTuple):
    """What goes back."""

    status: int
    body: bytes
    media: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Others than the type and length of the body."""


Handler = Callable[[Request], Awaitable[Reply]]


def problem(status: int, kind: str, text: str, where: Sequence[str] = ()) -> Reply:
    """An error as JSON; `detail` as FastAPI words it, which AgentGym's servers are made of."""
    body: dict[str, object] = {"error": text, "kind": kind}
    if status == 422:
        body["detail"] = [{"type": kind, "loc": list(where), "msg": text}]
    return Reply(status, _encode(body))


class WireServer:
    """Serves some worlds. Open it in the nursery that also runs its connections."""

    def __init__(
        self,
        specs: Sequence[EnvSpec],
        *,
        limits: Limits | None = None,
        token: str = "",
        hosts: Mapping[str, Host] | None = None,
    ) -> None:
        """Serve these worlds.

        Args:
            specs: the worlds; each has its own path.
            limits: of sessions, leases and calls.
            token: what every client has to show; "" for none.
            hosts: where the sessions of a world run, by its id, in place of the loop or a
                thread of this process.

        Raises:
            ConfigError: none is given, two have the same path, or the token is no plain text.
        """
        if not specs:
            raise ConfigError("name at least one environment to serve")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError("the token must be printable ASCII without spaces")
        self.limits: Final = limits or Limits()
        self.sessions: Final = Sessions(self.limits)
        self.answered: Final = Counter[tuple[str, int]]()
        """Replies by path pattern and status."""
        threads = trio.CapacityLimiter(self.limits.sessions)
        given = hosts or {}
        self.served: Final = [Served.of(spec, threads, given.get(spec.id)) for spec in specs]
        names = Counter(served.dialect.name for served in self.served)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ConfigError(f"two environments would both be served as /{twice[0]}: choose one")
        self._token = token.encode()
        self._batches = Batches(self.sessions, self.served)
        self._routes: dict[bytes, dict[bytes, tuple[str, Handler]]] = {}
        self._mount()

    def _mount(self) -> None:
        alone = len(self.served) == 1
        for served in self.served:
            world = _World(self, served)
            calls = world.calls()
            for prefix in {f"/{served.dialect.name}", *([""] if alone else [])}:
                for (method, path), handler in calls.items():
                    self._route(method, prefix + path, handler)
        first = self.served[0].dialect.title
        greeting = f"This is environment {first}." if alone else "This is Rollwave."
        self._route("GET", "/", lambda _: _ready(Reply(200, _encode(greeting))))
        self._route("GET", "/health", lambda _: _ready(self._health()))
        self._route("GET", "/metrics", lambda _: _ready(self._metrics()))
        self._route("GET", "/openapi.json", lambda _: _ready(self._document()))
        self._route("POST", PATH, self._batch)

    def _route(self, method: str, path: str, handler: Handler) -> None:
        at = self._routes.setdefault(path.encode(), {})
        at[method.encode()] = (path, handler)
        if method == "GET":
            at[b"HEAD"] = (path, handler)

    def body_limit(self, path: bytes) -> int:
        """Bytes that a request to this path may carry."""
        return MAX_BATCH_BYTES if path == PATH.encode() else MAX_BODY

    async def answer(self, request: Request) -> Reply:
        """Answer one request. Only cancellation escapes."""
        found = self._routes.get(request.path)
        entry = found.get(request.method) if found else None
        name = entry[0] if entry else "other"
        reply = self._barred(request)
        if reply is None:
            if entry is not None:
                try:
                    reply = await entry[1](request)
                except Malformed as error:
                    reply = problem(422, "malformed", str(error), ("body",))
            elif found:
                allow = b", ".join(found)
                reply = problem(405, "method", "This path is for " + allow.decode() + ".")
                reply = reply._replace(headers=((b"allow", allow),))
            else:
                reply = problem(404, "path", "There is no such path; see /openapi.json.")
        self.answered[name, reply.status] += 1
        return reply

    def _barred(self, request: Request) -> Reply | None:
        if request.origin:
            return problem(403, "origin", "Requests from web pages are not served.")
        if self._token and request.path != b"/health" and not self._knows(request.authorization):
            text = "Show the token: Authorization: Bearer TOKEN, or http://x:TOKEN@host."
            return problem(401, "token", text)._replace(headers=((b"www-authenticate", b"Bearer"),))
        return None

    def _knows(self, authorization: bytes) -> bool:
        """Whether that is our token: as a bearer, or as the password of basic authentication,
        which is what AgentGym's clients send for a URL with a password in it."""
        scheme, _, shown = authorization.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                shown = base64.b64decode(shown.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(shown.strip(), self._token)

    def _health(self) -> Reply:
        draining = self.sessions.draining
        state = "draining" if draining else "ok"
        return Reply(503 if draining else 200, _encode({"status": state}))

    def _metrics(self) -> Reply:
        text = metrics.exposition(self.sessions, self.answered)
        return Reply(200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")

    def _document(self) -> Reply:
        alone = len(self.served) == 1
        document = openapi.document(self.served, alone=alone, token=bool(self._token))
        return Reply(200, _encode(document))

    async def _batch(self, request: Request) -> Reply:
        return Reply(200, await self._batches.answer(request.body), MEDIA.encode())

    def refuse(self, refusal: Refused, served: Served) -> Reply:
        """A refusal in the dialect of the world."""
        self.sessions.counts.refused[refusal.kind] += 1
        kind = refusal.kind
        status = _STATUS.get(kind) or served.dialect.error_status
        if status == 404:
            status = _STATUS_BY_INDEX.get(kind, 404)
        return problem(status, kind, str(refusal), ("body",))


class _World:
    """The calls on one world."""

    def __init__(self, server: WireServer, served: Served) -> None:
        self._server = server
        self._sessions = server.sessions
        self._served = served
        self._dialect = served.dialect
        self._requests = Requests(served.dialect)

    def calls(self) -> dict[tuple[str, str], Handler]:
        """Every call by method and path."""
        calls: dict[tuple[str, str], Handler] = {
            ("POST", "/create"): self._create,
            ("POST", "/reset"): self._reset,
            ("POST", "/step"): self._step,
            ("POST", "/close"): self._close,
            ("GET", "/observation"): lambda r: self._look(r, self._dialect.observed),
        }
        for name, shape in self._dialect.extras.items():
            calls["GET", f"/{name}"] = self._extra(shape)
        return calls

    def _extra(self, shape: Shape | str) -> Handler:
        if isinstance(shape, tuple):
            return lambda request: self._look(request, shape)
        return lambda request: self._field(request, shape)

    def _task(self, index: int) -> int:
        """The task of that number, as AgentGym's server takes it."""
        served = self._served
        return index % served.tasks if self._dialect.wraps and served.tasks else index

    async def _create(self, request: Request) -> Reply:
        self._requests.create(request.body)
        sessions = self._sessions
        try:
            session = await sessions.open(self._served)
            if "observation" in self._dialect.created:
                async with sessions.hold(session):
                    await sessions.reset(session, self._task(session.id))
            return await self._reply(session.id, self._dialect.created)
        except Refused as refusal:
            return self._server.refuse(refusal, self._served)

    async def _reset(self, request: Request) -> Reply:
        id, index = self._requests.reset(request.body)
        sessions = self._sessions
        try:
            session = sessions.find(id, self._served)
            async with sessions.hold(session):
                await sessions.reset(session, self._task(index))
                return _json(await answer(sessions, session, self._dialect.begun))
        except Refused as refusal:
            return self._server.refuse(refusal, self._served)

    async def _step(self, request: Request) -> Reply:
        step = self._requests.step(request.body)
        sessions = self._sessions
        try:
            session = sessions.find(step.id, self._served)
            async with sessions.hold(session):
                await sessions.step(session, step.action)
                return _json(await answer(sessions, session, self._dialect.stepped))
        except Refused as refusal:
            return self._server.refuse(refusal, self._served)

    async def _look(self, request: Request, shape: Shape) -> Reply:
        try:
            return await self._reply(self._requests.query(request.query), shape)
        except Refused as refusal:
            return self._server.refuse(refusal, self._served)

    async def _field(self, request: Request, name: str) -> Reply:
        sessions = self._sessions
        try:
            session = sessions.find(self._requests.query(request.query), self._served)
            async with sessions.hold(session):
                if not session.begun and name == "words":
                    await sessions.reset(session, 0)  # asked for before the first game
                return _json(await one(sessions, session, name))
        except Refused as refusal:
            return self._server.refuse(refusal, self._served)

    async def _close(self, request: Request) -> Reply:
        id = self._requests.close(request.body)
        done = await self._sessions.close(id, self._served)
        if self._dialect.closed == "flag":
            return Reply(200, b"true" if done else b"false")
        return Reply(200, _encode({"closed": "closed" if done else "not open"}))

    async def _reply(self, id: int, shape: Shape) -> Reply:
        session = self._sessions.find(id, self._served)
        async with self._sessions.hold(session):
            return _json(await answer(self._sessions, session, shape))


def _json(value: object) -> Reply:
    """Encode an answer.

    Raises:
        Refused: the world said what is no text (half a character), or no number.
    """
    try:
        return Reply(200, _encode(value))
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise Refused("broken", f"the environment's answer cannot be sent: {error}") from None


async def _ready(reply: Reply) -> Reply:
    return reply

"""The OpenAPI document of a server: which calls there are, and what they take and give.

Invariant: it is made from the same table that the server answers by, so that the two
cannot differ.

Not here: the batched wire's MessagePack, which JSON Schema has no words for (`batch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .dialects import Dialect, Shape
from .requests import MAX_ID
from .sessions import Served

_INTEGER: Final = {"type": "integer", "minimum": -MAX_ID, "maximum": MAX_ID}
_TASK: Final = {**_INTEGER, "type": ["integer", "null"]}
_TEXT: Final = {"type": "string"}
_FLAG: Final = {"type": "boolean"}
_TEXTS: Final = {"type": "array", "items": _TEXT}

_TYPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "id": _INTEGER,
    "env_idx": _INTEGER,
    "reward": {"type": "number"},
    "score": {"type": "number"},
    "done": _FLAG,
    "success": _FLAG,
    "terminated": _FLAG,
    "truncated": _FLAG,
    "deleted": _FLAG,
    "info": {"type": "null"},
    "sites": {"type": "array"},
    "var_num": _INTEGER,
    "available_actions": _TEXTS,
    "words": _TEXTS,
}
"""Fields that are not text."""

_ERROR: Final = {
    "type": "object",
    "required": ["error", "kind"],
    "properties": {"error": _TEXT, "kind": _TEXT, "detail": {"type": "array"}},
}


def document(served: Sequence[Served], *, alone: bool, token: bool) -> dict[str, Any]:
    """The document of a server with these worlds.

    Args:
        served: the worlds.
        alone: there is one only, which is also served without its name in the path.
        token: clients have to show one.
    """
    paths: dict[str, Any] = {
        "/": {"get": _operation("Say what is served.", {"type": "string"})},
        "/health": {"get": _operation("Say whether it serves.", {"type": "object"}, (503,))},
    }
    for one in served:
        prefixes = [f"/{one.dialect.name}", *([""] if alone else [])]
        for prefix in prefixes:
            for path, method, operation in _calls(one.dialect):
                paths.setdefault(prefix + path, {})[method] = operation
    about = {
        "openapi": "3.1.0",
        "info": {
            "title": "Rollwave environments",
            "version": "1",
            "description": "AgentGym's protocol; errors of a session have status 200 "
            "and a body with `error` where ids are called `id`.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            **(
                {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
                if token
                else {}
            ),
        },
    }
    return {**about, "security": [{"token": []}]} if token else about


def _calls(dialect: Dialect) -> Iterator[tuple[str, str, dict[str, Any]]]:
    key = dialect.id_field
    hidden = dialect.error_status == 200

    def post(text: str, shape: Mapping[str, Any], **fields: Mapping[str, Any]) -> dict[str, Any]:
        required = [name for name in fields if name != dialect.task_field or name == key]
        body = {"type": "object", "required": required, "properties": fields}
        return _operation(text, _or_error(shape, hidden), _ERRORS, body=body)

    def get(text: str, shape: Mapping[str, Any]) -> dict[str, Any]:
        operation = _operation(text, _or_error(shape, hidden), _ERRORS)
        operation["parameters"] = [{"name": key, "in": "query", "required": True} | _SCHEMA]
        return operation

    created = _operation("Make a session.", _or_error(_schema(dialect.created), hidden), _ERRORS)
    created["requestBody"] = _body({"type": "object"}, required=False)
    yield "/create", "post", created
    reset: dict[str, Mapping[str, Any]] = {key: _INTEGER, dialect.task_field: _TASK}
    yield "/reset", "post", post("Start a task.", _schema(dialect.begun), **reset)
    step: dict[str, Mapping[str, Any]] = {key: _INTEGER, "action": _TEXT}
    yield "/step", "post", post("Act.", _schema(dialect.stepped), **step)
    closed = _FLAG if dialect.closed == "flag" else _schema(("closed",))
    yield "/close", "post", post("End the session.", closed, **{key: _INTEGER})
    yield "/observation", "get", get("The latest observation.", _schema(dialect.observed))
    for name, shape in dialect.extras.items():
        one = _schema(shape) if isinstance(shape, tuple) else _TYPES.get(shape, _TEXT)
        yield f"/{name}", "get", get(f"The session's {name}.", one)


_ERRORS: Final = (401, 403, 404, 409, 413, 422, 429, 502, 503, 504)
_SCHEMA: Final = {"schema": _INTEGER}


def _schema(shape: Shape | str) -> Mapping[str, Any]:
    if shape == "number":
        return _INTEGER
    if shape == "pair":
        return {"type": "array", "prefixItems": [_TEXT, {"type": "null"}]}
    if isinstance(shape, str):
        return _TEXT
    return {
        "type": "object",
        "required": list(shape),
        "properties": {name: _TYPES.get(name, _TEXT) for name in shape},
    }


def _or_error(shape: Mapping[str, Any], hidden: bool) -> Mapping[str, Any]:
    return {"anyOf": [shape, {"$ref": "#/components/schemas/Error"}]} if hidden else shape


def _operation(
    text: str,
    shape: Mapping[str, Any],
    errors: Sequence[int] = (),
    *,
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        "200": {"description": "done", "content": {"application/json": {"schema": shape}}}
    }
    for status in errors:
        responses[str(status)] = {"description": "refused", "content": error}
    operation: dict[str, Any] = {"summary": text, "responses": responses}
    if body is not None:
        operation["requestBody"] = _body(body, required=True)
    return operation


def _body(schema: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}

"""What a client may send to a server in AgentGym's dialects, checked by type.

Each call has a class made from its dialect's names of fields, so that msgspec reads and
checks a body in one go. Surplus fields are ignored: AgentGym's clients send some.

Invariant: whatever the bytes are, the outcome is a request or a `Malformed` that says
what is wrong with them.

Not here: what is done with a request (`server`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final, cast
from urllib.parse import parse_qsl

import msgspec

from ...engine.errors import RollwaveError
from .dialects import Dialect

MAX_ID: Final = 2**63 - 1

Number = Annotated[int, msgspec.Meta(ge=-MAX_ID, le=MAX_ID)]
_AnyNumber: Any = Number | float
"""JSON has one kind of number: 5.0 is whole too."""

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


class Malformed(RollwaveError):
    """A request whose body or query is not what the call takes. The text names the field."""


class Step(msgspec.Struct):
    """The body of `/step`."""

    id: Number
    action: str


@dataclass(frozen=True)
class Requests:
    """Reads the bodies and queries of one dialect."""

    dialect: Dialect

    @cached_property
    def _step(self) -> msgspec.json.Decoder[Any]:
        return self._decoder(("id", _AnyNumber, self.dialect.id_field), ("action", str, "action"))

    @cached_property
    def _close(self) -> msgspec.json.Decoder[Any]:
        return self._decoder(("id", _AnyNumber, self.dialect.id_field))

    @cached_property
    def _reset(self) -> msgspec.json.Decoder[Any]:
        # A call without a number means task 0: on TextCraft by its server, elsewhere its client.
        index: Any = _AnyNumber | None
        return self._decoder(
            ("id", _AnyNumber, self.dialect.id_field), ("index", index, self.dialect.task_field, 0)
        )

    def _decoder(self, *fields: tuple[Any, ...]) -> msgspec.json.Decoder[Any]:
        # A dialect may carry the task in "id": then only the other name is the session's.
        names = {name: spelled for name, _, spelled, *_ in fields}
        kind = msgspec.defstruct("Body", [(f[0], f[1], *f[3:]) for f in fields], rename=names)
        return msgspec.json.Decoder(kind)

    def step(self, body: bytes) -> Step:
        """Read a step.

        Raises:
            Malformed: it is not one.
        """
        found = _read(self._step, body)
        if type(found.id) is float:
            found.id = _whole(found.id)
        return cast(Step, found)

    def reset(self, body: bytes) -> tuple[int, int]:
        """Read a reset: (session, task).

        Raises:
            Malformed: it is not one.
        """
        found = _read(self._reset, body)
        return _whole(found.id), _whole(found.index or 0)

    def close(self, body: bytes) -> int:
        """Read which session to close.

        Raises:
            Malformed: the body does not say it.
        """
        return _whole(_read(self._close, body).id)

    def create(self, body: bytes) -> None:
        """Check the body of `/create`: none, or any object.

        Raises:
            Malformed: it is something else.
        """
        if body:
            _read(_OBJECT, body)

    def query(self, query: bytes) -> int:
        """Read the session's id from a query.

        Raises:
            Malformed: it is not there, or no number.
        """
        name = self.dialect.id_field
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=16)
            texts = [value for key, value in pairs if key == name]
            if len(texts) != 1:
                raise Malformed(f"give ?{name}= once")
            return msgspec.convert(texts[0], Number, strict=False)
        except _UNREADABLE as error:
            raise Malformed(f"?{name}= takes a whole number: {error}") from None


_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def _read(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except _UNREADABLE as error:
        raise Malformed(str(error) or "the body is nested too deeply") from None


def _whole(number: float) -> int:
    """A number as an id or a task; one beyond `MAX_ID` names none.

    Raises:
        Malformed: it is not whole.
    """
    if not float(number).is_integer():
        raise Malformed(f"{number} is no whole number")
    return int(number)

"""Messages as bytes: what crosses a mailbox, a socket and the journal.

Every message is a frozen, tagged, array-like `msgspec.Struct`; its encoding is
one plain MessagePack array whose first element is the class name, readable by
any MessagePack library. Unknown or surplus fields, wrong types and oversize
messages are refused with a `MessageError` that names the culprit.

Token ids, log-probabilities and masks travel as packed little-endian bytes, not
as lists: packing 700 token ids costs about 0.5 µs this way against 20 µs as a
MessagePack array.

Invariant: `decode(encode(m)) == m` for every message, and equal messages have
equal bytes.

Not here: framing over sockets (`transport`) and files (`journal`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar, Union, cast

import msgspec

from .errors import MessageError, MessageTooLarge

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Largest message accepted anywhere: a trajectory of 1M tokens is about 9 MB."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of everything actors say to each other. Subclasses are plain typed records."""


M = TypeVar("M", bound=Message)

_encode: Final = msgspec.msgpack.Encoder().encode


def encode(message: Message) -> bytes:
    """Encode one message to MessagePack bytes.

    Raises:
        MessageError: a field holds what no message can: text with a lone surrogate
            (half of a character), an integer beyond 64 bits, a foreign object.
    """
    try:
        return _encode(message)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise MessageError(f"a {type(message).__name__} cannot be encoded: {error}") from None


class Decoder(Generic[M]):
    """Decodes the messages of a closed set of classes, and nothing else."""

    __slots__ = ("_accepted", "_decode", "_limit")

    def __init__(self, *accepted: type[M], limit: int = MAX_MESSAGE_BYTES) -> None:
        if not accepted:
            raise MessageError("a decoder needs at least one message class")
        union: Any = Union[accepted]  # noqa: UP007 (built at run time)
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._accepted = accepted
        self._limit = limit

    def decode(self, payload: bytes | bytearray | memoryview) -> M:
        """Decode one message.

        Raises:
            MessageTooLarge: the payload is above the limit.
            MessageError: it is not one of the accepted messages.
        """
        if len(payload) > self._limit:
            raise MessageTooLarge(f"message of {len(payload)} bytes; the limit is {self._limit}")
        try:
            return cast(M, self._decode(payload))
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            names = ", ".join(cls.__name__ for cls in self._accepted)
            raise MessageError(f"not one of [{names}]: {error}") from None


@lru_cache(maxsize=512)
def decoder(*accepted: type[M]) -> Decoder[M]:
    """Return the shared decoder for these classes (decoders are stateless and reusable)."""
    return Decoder(*accepted)


def _little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":  # pragma: no cover (no such machine in reach)
        values.byteswap()
    return values.tobytes()


def _unpack(typecode: str, data: bytes, name: str) -> array[Any]:
    values: array[Any] = array(typecode)
    if len(data) % values.itemsize:
        raise MessageError(f"{name}: {len(data)} bytes is not a multiple of {values.itemsize}")
    values.frombytes(data)
    if sys.byteorder == "big":  # pragma: no cover
        values.byteswap()
    return values


def pack_tokens(ids: Iterable[int]) -> bytes:
    """Pack token ids as little-endian uint32.

    Raises:
        MessageError: an id is negative or above 2**32 - 1.
    """
    try:
        return _little_endian(array("I", ids))
    except (OverflowError, TypeError) as error:
        raise MessageError(f"token ids must be integers in [0, 2**32): {error}") from None


def unpack_tokens(data: bytes) -> array[int]:
    """Unpack little-endian uint32 token ids."""
    return _unpack("I", data, "token ids")


def pack_floats(values: Iterable[float]) -> bytes:
    """Pack log-probabilities as little-endian float32."""
    try:
        return _little_endian(array("f", values))
    except TypeError as error:
        raise MessageError(f"log-probabilities must be floats: {error}") from None


def unpack_floats(data: bytes) -> array[float]:
    """Unpack little-endian float32 log-probabilities."""
    return _unpack("f", data, "log-probabilities")


def pack_mask(values: Sequence[bool] | Sequence[int]) -> bytes:
    """Pack a 0/1 mask, one byte an entry.

    Raises:
        MessageError: an entry is neither 0 nor 1.
    """
    mask = bytes(values)
    if mask.strip(b"\x00\x01"):
        raise MessageError("a mask holds only 0 and 1")
    return mask

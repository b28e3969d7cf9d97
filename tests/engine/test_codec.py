"""Messages are plain MessagePack, decoded strictly: oracle is the `msgpack` package."""

from __future__ import annotations

import struct
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.codec import (
    Decoder,
    Message,
    decoder,
    encode,
    pack_floats,
    pack_mask,
    pack_tokens,
    unpack_floats,
    unpack_tokens,
)
from rollwave.engine.errors import FaultKind, MessageError, MessageTooLarge
from rollwave.engine.strategies import trajectories
from rollwave.engine.trajectory import ChatMessage, Fault, Trajectory


class Ping(Message, frozen=True):
    text: str
    count: int = 0
    data: bytes = b""


class Pong(Message, frozen=True):
    text: str


pings = st.builds(Ping, st.text(), st.integers(-(2**63), 2**64 - 1), st.binary())


@given(pings)
def test_a_message_is_one_plain_array_of_its_name_and_fields(ping: Ping) -> None:
    assert msgpack.unpackb(encode(ping)) == ["Ping", ping.text, ping.count, ping.data]


@given(pings)
def test_what_another_library_packs_is_read(ping: Ping) -> None:
    payload = msgpack.packb(["Ping", ping.text, ping.count, ping.data])
    assert decoder(Ping, Pong).decode(payload) == ping


@given(trajectories())
def test_the_largest_record_survives_a_round_trip_and_encodes_the_same_again(
    trajectory: Trajectory,
) -> None:
    again = decoder(Trajectory).decode(encode(trajectory))
    assert again == trajectory
    assert encode(again) == encode(trajectory)
    assert msgpack.unpackb(encode(trajectory))[0] == "Trajectory"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_message_error(payload: bytes) -> None:
    with suppress(MessageError):
        assert isinstance(decoder(Ping, Pong).decode(payload), Ping | Pong)


@given(pings, st.data())
def test_a_damaged_message_never_raises_anything_else(ping: Ping, data: st.DataObject) -> None:
    payload = bytearray(encode(ping))
    where = data.draw(st.integers(0, len(payload) - 1))
    payload[where] ^= data.draw(st.integers(1, 255))
    with suppress(MessageError):
        assert isinstance(decoder(Ping, Pong).decode(payload), Ping | Pong)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (["Ping", 7], "Expected `str`, got `int`"),
        (["Ping", "x", "7"], "Expected `int`, got `str`"),
        (["Ping", "x", 1.5], "Expected `int`, got `float`"),
        (["Ping", "x", 1, b"", "surplus"], "at most length 3"),
        (["Ping"], "at least length"),
        (["Pang", "x"], "Invalid value 'Pang'"),
        (["Pong", "x", 1], "at most length 1"),
        ({"text": "x"}, "Expected `array`, got `object`"),
        ([], "at least length"),
        ("Ping", "Expected `array`"),
    ],
)
def test_a_wrong_message_is_refused_by_name(content: object, culprit: str) -> None:
    with pytest.raises(MessageError, match="Ping, Pong") as caught:
        decoder(Ping, Pong).decode(msgpack.packb(content))
    assert culprit in str(caught.value)


def test_a_message_that_was_not_announced_is_refused() -> None:
    with pytest.raises(MessageError, match="Ping"):
        decoder(Pong).decode(encode(Ping("x")))


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(MessageError):
        decoder(Ping).decode(encode(Ping("x")) + b"\x00")


def test_the_size_limit_is_exact_and_says_both_numbers() -> None:
    payload = encode(Ping("x" * 100))
    assert Decoder(Ping, limit=len(payload)).decode(payload).text == "x" * 100
    with pytest.raises(MessageTooLarge, match=rf"{len(payload)}.*{len(payload) - 1}"):
        Decoder(Ping, limit=len(payload) - 1).decode(payload)


def test_a_decoder_of_nothing_is_refused() -> None:
    with pytest.raises(MessageError, match="at least one"):
        Decoder()


@pytest.mark.parametrize(
    ("message", "culprit"),
    [
        (Pong("half a \ud83d character"), "surrogates not allowed"),
        (Ping("x", 2**64), "ints"),
        (Ping("x", 1, object()), "unsupported"),  # type: ignore[arg-type]
    ],
)
def test_what_no_message_can_hold_is_an_error_to_its_sender(message: Message, culprit: str) -> None:
    with pytest.raises(
        MessageError, match=f"a {type(message).__name__} cannot be encoded"
    ) as caught:
        encode(message)
    assert culprit in str(caught.value)


def test_enums_nested_messages_and_none_have_their_plain_values() -> None:
    fault = Fault(FaultKind.BACKEND, "gone", 3)
    assert msgpack.unpackb(encode(fault)) == ["Fault", "backend", "gone", 3]
    message = ChatMessage("user", "hi")
    assert msgpack.unpackb(encode(message)) == ["ChatMessage", "user", "hi", None]
    with pytest.raises(MessageError, match="Invalid enum value 'luck'"):
        decoder(Fault).decode(msgpack.packb(["Fault", "luck", "gone", 3]))


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_tokens_are_little_endian_uint32(ids: list[int]) -> None:
    packed = pack_tokens(ids)
    assert packed == struct.pack(f"<{len(ids)}I", *ids)
    assert list(unpack_tokens(packed)) == ids


@given(st.lists(st.floats(width=32)))
def test_floats_are_little_endian_float32(values: list[float]) -> None:
    packed = pack_floats(values)
    assert packed == struct.pack(f"<{len(values)}f", *values)
    assert pack_floats(unpack_floats(packed)) == packed


@given(st.lists(st.booleans()))
def test_a_mask_is_one_byte_an_entry(mask: list[bool]) -> None:
    assert list(pack_mask(mask)) == mask


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5]])
def test_what_is_no_token_id_is_refused(ids: list[int]) -> None:
    with pytest.raises(MessageError, match="integers in"):
        pack_tokens(ids)


def test_what_is_no_log_probability_is_refused() -> None:
    with pytest.raises(MessageError, match="must be floats"):
        pack_floats(["a"])  # type: ignore[list-item]


def test_a_mask_of_anything_but_0_and_1_is_refused() -> None:
    with pytest.raises(MessageError, match="only 0 and 1"):
        pack_mask([0, 1, 2])


@pytest.mark.parametrize("unpack", [unpack_tokens, unpack_floats])
def test_packed_bytes_that_were_cut_are_refused(unpack: object) -> None:
    with pytest.raises(MessageError, match="7 bytes is not a multiple of 4"):
        unpack(b"1234567")  # type: ignore[operator]

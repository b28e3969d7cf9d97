"""Reads trajectories in AgentTraj's format: what AgentGym publishes and evaluates.

    [{"item_id": "textcraft_100",
      "conversations": [{"from": "human", "loss": null, "value": "…"}, …]}, …]

as one JSON list or as one such object a line, plain or gzipped. `reward` and `success`,
which its evaluator adds, are read where they stand; other keys are left alone.

A conversation opens with rules and a canned reply (`loss` false), then the agent sees
and writes in turn. Published ones end with the agent; the evaluator's end with what
the environment answered last.

Invariant: nothing of a file is believed before it is checked: whatever its bytes are,
the answer is episodes or a `BadDataFile` that names the file and the item.

Not here: playing the actions again (`envs.replay`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ...engine.errors import BadDataFile
from ...engine.trajectory import ChatMessage

MAX_BYTES: Final = 1 << 30
"""Largest file read, after unpacking: all of AgentTraj-L is about 100 MB."""

_ROLES: Final = {"human": "user", "gpt": "assistant", "system": "system"}
_CHUNK: Final = 1 << 20
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON may raise: wrong form, bytes that are no text, nesting without end."""


@dataclass(frozen=True, slots=True)
class Published:
    """One published trajectory, as an episode."""

    item_id: str
    """`<env>_<number>`."""
    prompt: tuple[ChatMessage, ...]
    """Rules and canned reply, before the first observation."""
    turns: tuple[tuple[str, str], ...]
    """(observation, completion), in order."""
    final_observation: str | None
    """What came after the last completion; None where it was not published."""
    reward: float | None
    """None where the file has none."""

    @property
    def env(self) -> str:
        """The environment's part of the id: `lmrlgym_maze`."""
        return self.item_id.rpartition("_")[0]

    @property
    def number(self) -> int:
        """The task's part of the id."""
        return int(self.item_id.rpartition("_")[2])


class _Message(msgspec.Struct, rename={"speaker": "from"}):
    speaker: str
    value: str
    loss: bool | None = None


class _Item(msgspec.Struct):
    item_id: str
    conversations: list[_Message] | None = None
    reward: float | None = None


def read_trajectories(path: str | Path) -> list[Published]:
    """Read a file of trajectories. Items without a conversation are left out.

    Raises:
        BadDataFile: the file is missing, not JSON, cut off, too large, or an item is not
            of AgentTraj's form; the text names the file and the item.
    """
    path = Path(path)
    return [
        episode
        for number, raw in enumerate(_items(path, _read(path)))
        if (episode := _episode(path, number, raw)) is not None
    ]


def _read(path: Path) -> bytes:
    try:
        packed = path.open("rb")
    except OSError as error:
        raise BadDataFile(f"cannot read {path}: {error.strerror or error}") from None
    with packed:
        gzipped = packed.peek(2)[:2] == b"\x1f\x8b"
        source = gzip.GzipFile(fileobj=packed) if gzipped else packed
        data = bytearray()
        try:
            while chunk := source.read(_CHUNK):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise BadDataFile(f"{path} unpacks to more than {MAX_BYTES} bytes")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadDataFile(
                f"{path} is a damaged gzip file, perhaps cut off while copying: {error}"
            ) from None
        except OSError as error:
            raise BadDataFile(f"cannot read {path}: {error.strerror or error}") from None
    return bytes(data)


def _items(path: Path, data: bytes) -> Iterator[msgspec.Raw]:
    """The items of a JSON list, or of one object a line."""
    try:
        if data.lstrip()[:1] == b"[":
            yield from msgspec.json.decode(data, type=list[msgspec.Raw])
            return
        for line in data.splitlines():
            if line.strip():
                yield msgspec.json.decode(line, type=msgspec.Raw)
    except _UNREADABLE as error:
        raise BadDataFile(
            f"{path} is not JSON: {error}; expected a list of trajectories, or one a line"
        ) from None


def _episode(path: Path, number: int, raw: msgspec.Raw) -> Published | None:
    """Check one item and cut it into turns."""
    where = f"{path}, item {number}"
    try:
        item = msgspec.json.decode(raw, type=_Item)
    except _UNREADABLE as error:
        raise BadDataFile(f"{where} is not a trajectory in AgentTraj's form: {error}") from None
    where = f"{where} ({item.item_id[:60]})"
    _, underscore, digits = item.item_id.rpartition("_")
    if not underscore or not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise BadDataFile(f"{where}: an item_id is <env>_<number>")
    if not item.conversations:
        return None
    messages = []
    for place, message in enumerate(item.conversations):
        role = _ROLES.get(message.speaker)
        if role is None:
            known = ", ".join(_ROLES)
            raise BadDataFile(
                f"{where}: message {place} is from {message.speaker[:30]!r}, not one of {known}"
            )
        messages.append(ChatMessage(role, message.value, message.loss))
    start = _opening(messages)
    rest = messages[start:]
    if len(rest) < 2 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(rest)):
        raise BadDataFile(
            f"{where}: after the opening, human and gpt must take turns, the human first"
        )
    pairs = zip(rest[::2], rest[1::2], strict=False)
    turns = tuple((seen.text, written.text) for seen, written in pairs)
    final = rest[-1].text if len(rest) % 2 else None
    return Published(item.item_id, tuple(messages[:start]), turns, final, item.reward)


def _opening(messages: list[ChatMessage]) -> int:
    """How many messages come before the first observation: up to the last canned reply."""
    canned = [i for i, m in enumerate(messages) if m.role == "assistant" and m.loss is False]
    if canned:
        return canned[-1] + 1
    return sum(message.role == "system" for message in messages)

"""Reads trajectories in AgentTraj's format: what AgentGym publishes and evaluates.

    [{"item_id": "textcraft_100",
      "conversations": [{"from": "human", "loss": null, "value": "…"}, …]}, …]

as one JSON list or as one such object a line, plain or gzipped. `reward` and `success`,
which its evaluator adds, are read where they stand; other keys are left alone.

A conversation opens with rules and a canned reply (`loss` false), then the agent sees
and writes in turn. Published ones end with the agent; the evaluator's end with what
the environment answered last.

Invariant: nothing of a file is believed before it is checked: whatever its bytes are,
the answer is episodes or a `BadDataFile` that names the file, the item and the field.

Not here: playing the actions again (`envs.replay`), other formats (`learners.exchange`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from .errors import BadDataFile
from .json_records import json_records
from .trajectory import ChatMessage

MAX_BYTES: Final = 1 << 30
"""Largest file read whole, after unpacking: all of AgentTraj-L is about 100 MB."""

ROLES: Final = {"human": "user", "gpt": "assistant", "system": "system"}
"""Speakers of a conversation, and our roles."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON may raise: wrong form, bytes that are no text, nesting without end."""


class Said(msgspec.Struct, rename={"speaker": "from"}):
    """One message as it stands in a file."""

    speaker: str
    value: str
    loss: bool | None = None


class Item(msgspec.Struct):
    """One trajectory as it stands in a file."""

    item_id: str
    conversations: list[Said] | None = None
    reward: float | None = None
    success: bool | float | None = None
    """AgentGym's evaluator writes 0 and 1."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A conversation, cut into what came before the first observation, and turns."""

    prompt: tuple[ChatMessage, ...]
    turns: tuple[tuple[str, str], ...]
    """(observation, completion), in order."""
    final: str | None
    """What came after the last completion; None if nothing did."""


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
    success: bool | None = None
    """As the evaluator says; None where it does not."""

    @property
    def env(self) -> str:
        """The environment's part of the id: `lmrlgym_maze`."""
        return self.item_id.rpartition("_")[0]

    @property
    def number(self) -> int:
        """The task's part of the id."""
        return int(self.item_id.rpartition("_")[2])


def read_trajectories(path: str | Path) -> list[Published]:
    """Read a file of trajectories. Items without a conversation are left out.

    Raises:
        BadDataFile: the file is missing, not JSON, cut off, too large, or an item is not
            of AgentTraj's form; the text names the file and the item.
    """
    path = Path(path)
    return [
        episode
        for number, raw in enumerate(json_records(path, limit=MAX_BYTES))
        if (episode := _read_episode(f"{path}, item {number}", raw)) is not None
    ]


def _read_episode(where: str, raw: bytes) -> Published | None:
    try:
        item = msgspec.json.decode(raw, type=Item)
    except UNREADABLE as error:
        raise BadDataFile(f"{where} is not a trajectory in AgentTraj's form: {error}") from None
    return episode(where, item)


def episode(where: str, item: Item) -> Published | None:
    """Check one item and cut it into turns; None if it has no conversation.

    Args:
        where: the place, for the error.

    Raises:
        BadDataFile: it is not of AgentTraj's form.
    """
    where = f"{where} ({item.item_id[:60]})"
    if not is_item_id(item.item_id):
        raise BadDataFile(f"{where}: an item_id is <env>_<number>")
    if not item.conversations:
        return None
    found = cut(where, messages_of(where, item.conversations))
    success = None if item.success is None else bool(item.success)
    return Published(item.item_id, found.prompt, found.turns, found.final, item.reward, success)


def is_item_id(text: str) -> bool:
    """Whether a text is `<env>_<number>`, with a number that is one of a task."""
    _, underscore, digits = text.rpartition("_")
    return bool(underscore) and digits.isascii() and digits.isdigit() and len(digits) <= 9


def messages_of(where: str, conversation: Sequence[Said]) -> list[ChatMessage]:
    """Give a conversation in our roles, with its loss flags.

    Raises:
        BadDataFile: somebody unknown speaks.
    """
    messages = []
    for place, message in enumerate(conversation):
        role = ROLES.get(message.speaker)
        if role is None:
            known = ", ".join(ROLES)
            raise BadDataFile(
                f"{where}: message {place} is from {message.speaker[:30]!r}, not one of {known}"
            )
        messages.append(ChatMessage(role, message.value, message.loss))
    return messages


def cut(where: str, messages: Sequence[ChatMessage], opening: int | None = None) -> Cut:
    """Cut messages into turns.

    Args:
        where: the place, for the error.
        messages: in order.
        opening: how many come before the first observation; by default all up to the last
            canned reply, or the system messages at the beginning.

    Raises:
        BadDataFile: user and assistant do not take turns behind the opening.
    """
    start = _opening(messages) if opening is None else opening
    rest = messages[start:]
    if len(rest) < 2 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(rest)):
        raise BadDataFile(
            f"{where}: after the opening, human and gpt must take turns, the human first"
        )
    pairs = zip(rest[::2], rest[1::2], strict=False)
    turns = tuple((seen.text, written.text) for seen, written in pairs)
    return Cut(tuple(messages[:start]), turns, rest[-1].text if len(rest) % 2 else None)


def _opening(messages: Sequence[ChatMessage]) -> int:
    """How many messages come before the first observation: up to the last canned reply."""
    canned = [i for i, m in enumerate(messages) if m.role == "assistant" and m.loss is False]
    if canned:
        return canned[-1] + 1
    return sum(message.role == "system" for message in messages)

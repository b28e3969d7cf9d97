"""TRL's conversational rows: `prompt` and `completion`, or `messages`.

Written is prompt and completion. The prompt ends with the first observation, so that with
`completion_only_loss` and `assistant_only_loss` (both are needed: observations stand in the
completion) TRL has the loss where we have it: on the agent's turns, not on the canned reply.

Read are both; `messages` do not say which reply was canned, so every assistant message behind
the system text is a turn.

Not here: pairs (`preferences`), tools and contents of several parts, which are refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from ...engine.agenttraj import Cut, cut
from ...engine.errors import BadDataFile
from ...engine.trajectory import ChatMessage, Trajectory
from .building import About, about
from .rows import CannotCarry, RowFormat


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class _Row(About, kw_only=True, omit_defaults=True):
    prompt: list[Message] | None = None
    completion: list[Message] | None = None
    messages: list[Message] | None = None


class TRL(RowFormat[_Row]):
    """TRL's prompt and completion."""

    name: ClassVar = "trl"
    summary: ClassVar = "TRL's conversational prompt and completion (messages are read, too)"
    suffixes: ClassVar = (".jsonl", ".json", ".parquet")
    row: ClassVar[type[msgspec.Struct]] = _Row

    def parts(self, where: str, row: _Row) -> tuple[Cut, About] | None:
        """Cut one row."""
        if row.messages:
            return cut(where, [ChatMessage(m.role, m.content) for m in row.messages]), row
        if not row.prompt or not row.completion:
            return None
        if row.prompt[-1].role != "user":
            raise BadDataFile(
                f"{where}: the prompt ends with {row.prompt[-1].role}, not with what the agent "
                "answers to (user)"
            )
        messages = [
            ChatMessage(m.role, m.content, False if m.role == "assistant" else None)
            for m in row.prompt
        ] + [ChatMessage(m.role, m.content) for m in row.completion]
        return cut(where, messages, len(row.prompt) - 1), row

    def encode(self, trajectory: Trajectory, number: int) -> _Row:
        """Write a row whose prompt ends with the first observation."""
        messages = trajectory.conversation()
        if trajectory.final_observation:
            messages.pop()
        opening = len(trajectory.prompt) + 1
        return _Row(
            prompt=plain(messages[:opening]),
            completion=plain(messages[opening:]),
            **about(trajectory),
        )

    def schema(self) -> Any:
        """Return the columns."""
        return arrow_schema("prompt", "completion")


def plain(messages: list[ChatMessage]) -> list[Message]:
    """Give messages as TRL has them.

    Raises:
        CannotCarry: a role that chat templates do not know.
    """
    made = []
    for message in messages:
        if message.role not in {"system", "user", "assistant"}:
            raise CannotCarry("unknown_role")
        made.append(Message(message.role, message.text))  # type: ignore[arg-type]
    return made


def arrow_schema(*conversations: str) -> Any:
    """Return a schema with columns of messages, then those of `About`."""
    import pyarrow as pa

    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    kinds = {"wave": pa.int64(), "attempt": pa.int64(), "reward": pa.float64()}
    return pa.schema(
        [(name, pa.list_(message)) for name in conversations]
        + [(name, kinds.get(name, text)) for name in About.__struct_fields__]
    )

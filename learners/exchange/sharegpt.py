"""LLaMA-Factory's JSON ("sharegpt"): `conversations` of `from` and `value`, and `system`.

LLaMA-Factory wants human and gpt to take turns, the human first and gpt last: a conversation
that does not is left out, and what the environment answered last stands in a column of its own.
It trains on every gpt message, or with `mask_history` on the last alone. `loss`, kept with each
message, says which ones are the agent's; LLaMA-Factory does not read it, so it learns the canned
reply, too, unless `mask_history` is set.

Other speakers of such files are read: user, assistant, observation, function_call.

Not here: pairs (`preferences`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from ...engine.agenttraj import Cut, Said, cut, messages_of
from ...engine.trajectory import ChatMessage, Trajectory
from .agenttraj import said
from .building import About, about
from .rows import CannotCarry, RowFormat

_ALIASES: Final = {
    "user": "human",
    "observation": "human",
    "assistant": "gpt",
    "function_call": "gpt",
}


class _Row(About, kw_only=True):
    conversations: list[Said] | None = None
    system: str | None = None


class ShareGPT(RowFormat[_Row]):
    """LLaMA-Factory's conversations."""

    name: ClassVar = "sharegpt"
    summary: ClassVar = "LLaMA-Factory's JSON (sharegpt), supervised"
    suffixes: ClassVar = (".json", ".jsonl")
    row: ClassVar[type[msgspec.Struct]] = _Row

    def parts(self, where: str, row: _Row) -> tuple[Cut, About] | None:
        """Cut one record."""
        if not row.conversations:
            return None
        for message in row.conversations:
            message.speaker = _ALIASES.get(message.speaker, message.speaker)
        messages = messages_of(where, row.conversations)
        if row.system:
            messages.insert(0, ChatMessage("system", row.system))
        return cut(where, messages), row

    def encode(self, trajectory: Trajectory, number: int) -> _Row:
        """Write a record that LLaMA-Factory accepts."""
        messages = trajectory.conversation()
        if trajectory.final_observation:
            messages.pop()
        system, messages = split_system(messages)
        if not alternates(messages):
            raise CannotCarry("no_turn_taking")
        return _Row(conversations=said(messages), system=system, **about(trajectory))


def dataset_info(path_name: str, *, ranking: bool = False) -> dict[str, Any]:
    """Give the entry of LLaMA-Factory's dataset_info.json for such a file."""
    columns = {"messages": "conversations", "system": "system"}
    if ranking:
        return {
            "file_name": path_name,
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {**columns, "chosen": "chosen", "rejected": "rejected"},
        }
    return {"file_name": path_name, "formatting": "sharegpt", "columns": columns}


def split_system(messages: list[ChatMessage]) -> tuple[str | None, list[ChatMessage]]:
    """Take a system message off the beginning."""
    if messages and messages[0].role == "system":
        return messages[0].text, messages[1:]
    return None, messages


def alternates(messages: list[ChatMessage]) -> bool:
    """Whether user and assistant take turns, the user first."""
    return all(m.role == ("user", "assistant")[place % 2] for place, m in enumerate(messages))

"""OpenManus-RL's Parquet: AgentTraj's conversations in the columns that its trainer reads.

    data_source, item_id, conversations, prompt, ability, reward_model, extra_info

and two more, `reward` and `success`, as AgentGym's evaluator writes them: published files have
neither, and other readers leave columns alone that they do not know. `prompt` holds everything
up to the first observation; published files have instructions of OpenManus's own there.

`extra_info.split` of published files is the data source's name and says nothing of a split.

Not here: reading a conversation (`engine.agenttraj`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from ...engine.agenttraj import Cut, Item, Said
from ...engine.trajectory import Trajectory
from .agenttraj import AgentTraj, require_item_id, said
from .building import About
from .rows import RowFormat

_ABILITY: Final = "agent-reasoning"
_STYLE: Final = "rule"


class _Split(msgspec.Struct):
    split: str | None = None


class _Read(Item, kw_only=True):
    """What is read: the rest is made of it."""

    data_source: str | None = None
    extra_info: _Split | None = None


class _Message(msgspec.Struct):
    role: str
    content: str


class _RewardModel(msgspec.Struct):
    style: str
    ground_truth: str


class _ExtraInfo(msgspec.Struct):
    split: str
    index: int
    conversations: str


class _Written(msgspec.Struct, kw_only=True):
    """What is written."""

    data_source: str
    item_id: str
    conversations: list[Said]
    prompt: list[_Message]
    ability: str = _ABILITY
    reward_model: _RewardModel
    extra_info: _ExtraInfo
    reward: float | None
    success: bool


class OpenManus(RowFormat[Any]):
    """OpenManus-RL's Parquet."""

    name: ClassVar = "openmanus"
    summary: ClassVar = "OpenManus-RL's Parquet"
    suffixes: ClassVar = (".parquet",)
    row: ClassVar[type[msgspec.Struct]] = _Read

    def parts(self, where: str, row: _Read) -> tuple[Cut, About] | None:
        """Cut one row."""
        found = AgentTraj().parts(where, row)
        split = row.extra_info and row.extra_info.split
        if found is not None and split and split != row.data_source:
            found[1].split = split
        return found

    def encode(self, trajectory: Trajectory, number: int) -> _Written:
        """Write a row with all columns that the trainer reads."""
        require_item_id(trajectory)
        conversation = said(trajectory.conversation())
        text = msgspec.json.encode(conversation).decode()
        opening = [*trajectory.prompt, *trajectory.conversation()[len(trajectory.prompt) :][:1]]
        source = trajectory.task_id.rpartition("_")[0].removeprefix("lmrlgym_")
        return _Written(
            data_source=source,
            item_id=trajectory.task_id,
            conversations=conversation,
            prompt=[_Message(m.role, m.text) for m in opening],
            reward_model=_RewardModel(_STYLE, text),
            extra_info=_ExtraInfo(trajectory.split, number, text),
            reward=trajectory.reward,
            success=trajectory.success,
        )

    def schema(self) -> Any:
        """Return the columns, those of published files first."""
        import pyarrow as pa

        text = pa.string()
        message = pa.struct([("from", text), ("loss", pa.bool_()), ("value", text)])
        return pa.schema(
            [
                ("data_source", text),
                ("item_id", text),
                ("conversations", pa.list_(message)),
                ("prompt", pa.list_(pa.struct([("content", text), ("role", text)]))),
                ("ability", text),
                ("reward_model", pa.struct([("ground_truth", text), ("style", text)])),
                (
                    "extra_info",
                    pa.struct([("conversations", text), ("index", pa.int64()), ("split", text)]),
                ),
                ("reward", pa.float64()),
                ("success", pa.bool_()),
            ]
        )

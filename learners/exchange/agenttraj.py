"""AgentGym's JSON: `item_id` and `conversations`, with its evaluator's `reward` and `success`.

Carries the conversation with its loss flags, the task, the reward and success. A trajectory
whose task is not named `<env>_<number>` has no item_id, and is left out.

Not here: reading an item (`engine.agenttraj`).
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from ...engine.agenttraj import ROLES, Cut, Item, Said, episode, is_item_id
from ...engine.trajectory import ChatMessage, Trajectory
from .building import About
from .rows import CannotCarry, RowFormat

SPEAKERS: Final = {role: speaker for speaker, role in ROLES.items()}


class AgentTraj(RowFormat[Item]):
    """AgentTraj, AgentTraj-L, and what AgentGym's evaluator writes."""

    name: ClassVar = "agenttraj"
    summary: ClassVar = "AgentGym's JSON: AgentTraj, AgentTraj-L, its evaluator's output"
    suffixes: ClassVar = (".json", ".jsonl")
    row: ClassVar[type[msgspec.Struct]] = Item

    def parts(self, where: str, row: Item) -> tuple[Cut, About] | None:
        """Cut one item; AgentEval's, which have no conversation, give None."""
        found = episode(where, row)
        if found is None:
            return None
        said = About(env=found.env, task_id=found.item_id, reward=found.reward)
        if found.success is not None:
            said.outcome = "success" if found.success else "failure"
            if found.reward is None:
                said.reward = float(found.success)
        return Cut(found.prompt, found.turns, found.final_observation), said

    def encode(self, trajectory: Trajectory, number: int) -> Item:
        """Write an item as AgentGym's evaluator does."""
        require_item_id(trajectory)
        return Item(
            trajectory.task_id,
            said(trajectory.conversation()),
            trajectory.reward,
            trajectory.success,
        )


def said(messages: list[ChatMessage]) -> list[Said]:
    """Give messages with AgentTraj's speakers.

    Raises:
        CannotCarry: a role that has no speaker.
    """
    if any(message.role not in SPEAKERS for message in messages):
        raise CannotCarry("unknown_role")
    return [Said(SPEAKERS[m.role], m.text, m.loss) for m in messages]


def require_item_id(trajectory: Trajectory) -> None:
    """Refuse a task that is not named `<env>_<number>`.

    Raises:
        CannotCarry: it is not.
    """
    if not is_item_id(trajectory.task_id):
        raise CannotCarry("no_item_id")

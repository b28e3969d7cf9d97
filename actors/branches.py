"""Episodes that begin with an expert's turns: the t-th goes on behind its first t-1.

    expert  a1 a2 a3 a4        branch 1  | the agent plays from the start
                               branch 3  a1 a2 | the agent goes on

Invariants: a branch is the attempt of that number at the expert's task, in the expert's own
environment seed; what the expert wrote is in its tokens as the model would have seen it,
and carries no loss.

Not here: playing them (`episode`), and the pairs that are made of them
(`learners.preferences.pairs`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec

from ..engine.codec import pack_tokens
from ..engine.trajectory import ChatMessage, FinishReason, Trajectory, Turn
from .dispatcher import trajectory_id
from .policies import Renderer
from .protocol import Opening, TurnTaken


def branches(
    experts: Sequence[Trajectory], wave: int, renderer: Renderer | None
) -> dict[str, Opening]:
    """How every branch of these trajectories begins, by trajectory id.

    Args:
        experts: those that ended well; one for each task.
        wave: of the store, which names the branches.
        renderer: None where the backend takes messages as text.
    """
    openings: dict[str, Opening] = {}
    for expert in experts:
        taken = _rendered(expert, renderer)
        for first in range(1, len(expert.turns) + 1):
            id_ = trajectory_id(wave, expert.task_id, first)
            openings[id_] = Opening(taken[: first - 1], expert.environment_seed)
    return openings


def _rendered(expert: Trajectory, renderer: Renderer | None) -> tuple[TurnTaken, ...]:
    """All its turns but the last, none of them sampled."""
    taken: list[TurnTaken] = []
    length = 0
    for number, turn in enumerate(expert.turns[:-1]):
        ids = [] if renderer is None else _tokens(expert, renderer, number)
        length += len(ids)
        written = msgspec.structs.replace(
            turn, start=length, end=length, policy_version=0, finish=FinishReason.SCRIPTED
        )
        zeros = array("f", bytes(4 * len(ids))).tobytes()
        taken.append(TurnTaken(expert.id, number, expert.seed, written, pack_tokens(ids), zeros))
    return tuple(taken)


def _tokens(expert: Trajectory, renderer: Renderer, number: int) -> list[int]:
    turn: Turn = expert.turns[number]
    if number == 0:
        before = renderer.opening([*expert.prompt, ChatMessage("user", turn.observation)])
    else:
        before = renderer.following(turn.observation, closed=True)
    return [*before, *renderer.completion(turn.completion)]

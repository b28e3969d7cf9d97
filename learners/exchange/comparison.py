"""What a trajectory lost on its way through a format: it is read back and compared.

Invariant: nothing is declared lost or kept; the two records are compared, field by field.

Not here: what happens then (`rows` leaves out what changed its words, and counts the rest).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...engine.agenttraj import Cut
from ...engine.trajectory import Trajectory, Turn


def same_words(before: Trajectory, found: Cut) -> bool:
    """Whether a conversation that was read back is the trajectory's, cut into the same turns."""
    return [(m.role, m.text) for m in before.prompt] == [
        (m.role, m.text) for m in found.prompt
    ] and [(turn.observation, turn.completion) for turn in before.turns] == list(found.turns)


def lost(before: Trajectory, after: Trajectory) -> Iterator[str]:
    """Name what differs: a field, `turns.` and a field of a turn, or `prompt.loss`."""
    for name in before.__struct_fields__:
        if name not in {"prompt", "turns"} and getattr(before, name) != getattr(after, name):
            yield name
    for name in Turn.__struct_fields__:
        if [getattr(t, name) for t in before.turns] != [getattr(t, name) for t in after.turns]:
            yield f"turns.{name}"
    if [m.loss for m in before.prompt] != [m.loss for m in after.prompt]:
        yield "prompt.loss"

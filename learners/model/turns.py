"""One sample a turn, for chat templates that rewrite what was said before.

Some templates break the prefix rule: they take <think> blocks out of earlier turns, or move
messages. A conversation is then no single sequence that the model ever sees; what it sees at each
turn is the template's rendering of all before. So each turn becomes a sample of its own:

    the prompt as the template renders it for that turn | what the agent wrote then, its closer
                     no loss                            |             loss

Invariants: the prompt's tokens are those of the template's own rendering, special tokens that a
text spells excepted, which stay text; every completion carries loss in exactly one sample; all
samples of a trajectory name it, so that they are dealt into one optimiser step and count as the
one trajectory that they are.

Not here: templates that keep the rule (`chat.tokenise`), and sampled trajectories, whose own tokens
are what the model saw.
"""

from __future__ import annotations

from ...engine.errors import BadSample
from ...engine.trajectory import ChatMessage, Trajectory
from ..base import Sample
from .chat import ChatRenderer


def tokenise_turns(renderer: ChatRenderer, trajectory: Trajectory) -> list[Sample]:
    """Turn a trajectory without tokens into one sample a turn.

    Raises:
        BadSample: it has tokens, or no turns.
        TemplateError: the template does not take these roles in this order.
    """
    if trajectory.token_ids or not trajectory.turns:
        what = "its own tokens" if trajectory.token_ids else "no turns"
        raise BadSample(f"trajectory {trajectory.id} has {what}: it is not cut into turns")
    messages = list(trajectory.prompt)
    samples: list[Sample] = []
    for number, turn in enumerate(trajectory.turns):
        messages.append(ChatMessage("user", turn.observation))
        before = renderer.conversation(messages)
        written = renderer.completion(turn.completion)
        mask = bytes(len(before)) + b"\x01" * len(written)
        samples.append(
            Sample(f"{trajectory.id}@{number}", [*before, *written], mask, episode=trajectory.id)
        )
        messages.append(ChatMessage("assistant", turn.completion))
    return samples

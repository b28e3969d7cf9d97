"""Hypothesis strategies for the records, for our tests and yours.

    @given(trajectories())
    def test_my_filter(trajectory: Trajectory) -> None: ...

Invariant: what they draw satisfies `Trajectory.check`, and together they reach
every outcome, with and without tokens, turns, prompts and text of any script.

Not here: strategies for environments (`envs.laws`). Loads hypothesis when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import FaultKind
from .trajectory import ChatMessage, Fault, FinishReason, Outcome, Trajectory, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy


def chat_messages() -> SearchStrategy[ChatMessage]:
    """Draw messages of a prompt."""
    from hypothesis import strategies as st

    roles = st.sampled_from(["system", "user", "assistant"])
    return st.builds(ChatMessage, roles, st.text(max_size=12), st.none() | st.booleans())


def trajectories(*, outcomes: tuple[Outcome, ...] = tuple(Outcome)) -> SearchStrategy[Trajectory]:
    """Draw valid trajectories that end in one of `outcomes`.

    Log-probs are any float32, infinities and NaNs included: what was stored at
    sampling time comes back bit for bit, whatever it was.
    """
    from hypothesis import strategies as st

    return st.composite(_draw_trajectory)(outcomes)


def _draw_trajectory(draw: Callable[[Any], Any], outcomes: tuple[Outcome, ...]) -> Trajectory:
    from hypothesis import strategies as st

    text = st.text(max_size=12)
    number = st.floats(-1e6, 1e6)
    count = st.integers(0, 2**31 - 1)
    span = st.integers(0, 4)
    tokens = draw(st.booleans())
    mask = b""
    turns = []
    for _ in range(draw(st.integers(0, 4))):
        if tokens:
            mask += bytes(draw(span))
        start = len(mask)
        if tokens:
            mask += b"\x01" * draw(span)
        turns.append(
            Turn(
                observation=draw(text),
                completion=draw(text),
                action=draw(text),
                reward=draw(number),
                start=start,
                end=len(mask),
                policy_version=draw(count),
                finish=draw(st.sampled_from(FinishReason)),
                format_error=draw(st.booleans()),
                generate_seconds=draw(number),
                step_seconds=draw(number),
            )
        )
    if tokens:
        mask += bytes(draw(span))
    outcome = draw(st.sampled_from(outcomes))
    broken = outcome is Outcome.FAULT
    fault = st.builds(Fault, st.sampled_from(FaultKind), text, count)
    return Trajectory(
        id=draw(text),
        env=draw(text),
        task_id=draw(text),
        split=draw(st.sampled_from(["train", "dev", "test", "unseen", ""])),
        wave=draw(count),
        attempt=draw(count),
        seed=draw(st.integers(0, 2**63 - 1)),
        environment_seed=draw(st.integers(0, 2**63 - 1)),
        outcome=outcome,
        reward=draw(number) if outcome.scored else None,
        terminated=draw(st.booleans()),
        truncation=draw(st.sampled_from(["", "turns", "tokens"])),
        fault=draw(fault) if broken else None,
        prompt=tuple(draw(st.lists(chat_messages(), max_size=3))),
        turns=tuple(turns),
        final_observation=draw(text),
        token_ids=draw(st.binary(min_size=4 * len(mask), max_size=4 * len(mask))),
        loss_mask=mask,
        logprobs=draw(st.binary(min_size=4 * len(mask), max_size=4 * len(mask))),
        policy=draw(text),
        versions=(draw(count), draw(count)),
        temperature=draw(number),
        started=draw(number),
        seconds=draw(number),
    )

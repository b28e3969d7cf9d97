"""Records keep their invariants, and `check` names the one that is broken."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.errors import BadSample, FaultKind
from rollwave.engine.strategies import trajectories
from rollwave.engine.trajectory import (
    ChatMessage,
    Fault,
    FinishReason,
    Outcome,
    Trajectory,
    Turn,
    Wave,
    count_outcomes,
    group,
)

SCORED = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED)
UNSCORED = (Outcome.FAULT, Outcome.CANCELLED)


def sample(**changes: object) -> Trajectory:
    """Give a valid trajectory of two turns and ten tokens, then change it."""
    turns = (
        Turn("go", "up", "up", 0.0, start=3, end=5, finish=FinishReason.STOP),
        Turn("on", "left", "left", 1.0, start=7, end=9, finish=FinishReason.STOP),
    )
    base = Trajectory(
        id="w0/maze_1/0",
        env="maze-v1",
        task_id="maze_1",
        split="train",
        wave=0,
        attempt=0,
        seed=1,
        outcome=Outcome.SUCCESS,
        reward=1.0,
        terminated=True,
        turns=turns,
        token_ids=pack_tokens(range(10)),
        loss_mask=pack_mask([0, 0, 0, 1, 1, 0, 0, 1, 1, 0]),
        logprobs=pack_floats([0.0] * 10),
    )
    return msgspec.structs.replace(base, **changes)


@given(trajectories())
def test_generated_trajectories_are_valid(trajectory: Trajectory) -> None:
    trajectory.check()


@given(trajectories())
def test_a_fault_is_never_a_reward(trajectory: Trajectory) -> None:
    scored = trajectory.outcome in SCORED
    assert (trajectory.reward is not None) == scored == trajectory.outcome.scored
    changed = None if scored else 0.0
    with pytest.raises(BadSample, match=f"outcome {trajectory.outcome} with reward {changed}"):
        msgspec.structs.replace(trajectory, reward=changed).check()


@given(trajectories(), st.sampled_from(Outcome))
def test_an_outcome_without_what_it_needs_is_named(trajectory: Trajectory, other: Outcome) -> None:
    changed = msgspec.structs.replace(trajectory, outcome=other)
    fits = (changed.reward is not None) == other.scored and (changed.fault is not None) == (
        other is Outcome.FAULT
    )
    if fits:
        changed.check()
    else:
        with pytest.raises(BadSample, match=f"outcome {other}"):
            changed.check()


@given(trajectories())
def test_the_prompt_of_a_turn_is_a_prefix_of_the_next_ones(trajectory: Trajectory) -> None:
    prompts = [trajectory.token_ids[: 4 * turn.start] for turn in trajectory.turns]
    for earlier, later in pairwise(prompts):
        assert later.startswith(earlier)


@given(trajectories())
def test_the_loss_mask_is_exactly_what_the_turns_sampled(trajectory: Trajectory) -> None:
    sampled = {i for turn in trajectory.turns for i in range(turn.start, turn.end)}
    masked = {i for i, bit in enumerate(trajectory.loss_mask) if bit}
    assert sampled == masked
    assert trajectory.sampled_tokens == len(sampled)
    assert trajectory.tokens == len(trajectory.loss_mask)


TURNS = sample().turns
BROKEN: dict[str, dict[str, object]] = {
    "outcome success with reward None": {"reward": None},
    "outcome fault with reward 0.0": {
        "outcome": Outcome.FAULT,
        "reward": 0.0,
        "fault": Fault(FaultKind.BACKEND, "gone"),
    },
    "outcome cancelled with reward 1.0": {"outcome": Outcome.CANCELLED},
    "reward nan is not finite": {"reward": math.nan},
    "reward inf is not finite": {"reward": math.inf},
    "outcome fault with fault None": {"outcome": Outcome.FAULT, "reward": None},
    "outcome success with fault": {"fault": Fault(FaultKind.BACKEND, "gone")},
    "9 tokens, 10 mask entries and 10 log-probs": {"token_ids": pack_tokens(range(9))},
    "10 tokens, 11 mask entries": {"loss_mask": bytes(11)},
    "10 tokens, 10 mask entries and 0 log-probs": {"logprobs": b""},
    "neither 0 nor 1": {"loss_mask": bytes([0, 0, 0, 2, 1, 0, 0, 1, 1, 0])},
    "turn 1 spans tokens 7:9 of 8": {
        "token_ids": bytes(32),
        "loss_mask": bytes(8),
        "logprobs": bytes(32),
        "turns": (msgspec.structs.replace(TURNS[0], start=0, end=0), TURNS[1]),
    },
    "turn 1 spans tokens 3:5 of 10, after 9": {"turns": TURNS[::-1]},
    "turn 0 spans tokens 5:3": {"turns": (msgspec.structs.replace(TURNS[0], start=5, end=3),)},
    "turn 0 spans tokens -1:5": {"turns": (msgspec.structs.replace(TURNS[0], start=-1),)},
    "turn 0 has sampled tokens outside": {
        "turns": (msgspec.structs.replace(TURNS[0], start=2), TURNS[1])
    },
    "covers tokens that no turn sampled": {"turns": TURNS[:1]},
}


@pytest.mark.parametrize("named", BROKEN)
def test_each_broken_invariant_is_named(named: str) -> None:
    sample().check()
    with pytest.raises(BadSample) as caught:
        sample(**BROKEN[named]).check()
    assert named in str(caught.value)
    assert "w0/maze_1/0" in str(caught.value)


def test_a_conversation_alternates_after_the_prompt() -> None:
    prompt = (ChatMessage("system", "play"),)
    messages = sample(prompt=prompt, final_observation="won").conversation()
    assert [(m.role, m.text, m.loss) for m in messages] == [
        ("system", "play", None),
        ("user", "go", None),
        ("assistant", "up", True),
        ("user", "on", None),
        ("assistant", "left", True),
        ("user", "won", None),
    ]


@given(st.lists(trajectories(), max_size=6))
def test_groups_hold_every_trajectory_once_by_task_and_attempt(drawn: list[Trajectory]) -> None:
    renamed = [
        msgspec.structs.replace(t, task_id=f"task_{i % 2}", attempt=(7 * i) % 5)
        for i, t in enumerate(drawn)
    ]
    groups = group(renamed, wave=3)
    assert [g.task_id for g in groups] == list(dict.fromkeys(t.task_id for t in renamed))
    assert sorted(id(t) for g in groups for t in g.trajectories) == sorted(map(id, renamed))
    for each in groups:
        attempts = [t.attempt for t in each.trajectories]
        assert attempts == sorted(attempts)
        assert each.wave == 3
    assert Wave(3, 0, "", tuple(renamed)).groups() == groups


@given(st.lists(trajectories(), max_size=6))
def test_only_scored_members_enter_the_rewards_of_a_group(drawn: list[Trajectory]) -> None:
    together = [msgspec.structs.replace(t, task_id="one") for t in drawn]
    rewards = [r for g in group(together, 0) for r in g.rewards()]
    by_attempt = sorted(together, key=lambda t: t.attempt)
    assert rewards == [t.reward for t in by_attempt if t.outcome in SCORED]


@given(st.lists(trajectories(outcomes=UNSCORED), max_size=4))
def test_counts_list_every_outcome_and_add_up(drawn: list[Trajectory]) -> None:
    counts = count_outcomes([*drawn, sample()])
    assert list(counts) == [outcome.value for outcome in Outcome]
    assert sum(counts.values()) == len(drawn) + 1
    assert counts["success"] == 1
    assert counts["fault"] == sum(t.fault is not None for t in drawn)

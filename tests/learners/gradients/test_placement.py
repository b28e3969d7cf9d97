"""Where rewards go: onto action tokens, and none of them is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.codec import pack_floats, pack_tokens
from rollwave.engine.errors import BadSample
from rollwave.engine.trajectory import FinishReason, Outcome, Trajectory, Turn
from rollwave.learners.gradients.placement import place, turn_ends
from rollwave.learners.settings.policy_gradient import RewardSettings


def played(lengths, reward=1.0, *, paid=None, errors=(), **fields) -> Trajectory:
    """Turns of so many tokens, each after two tokens of observation; two more at the end."""
    turns, mask = [], b""
    for number, length in enumerate(lengths):
        start = len(mask) + 2
        mask += bytes(2) + b"\x01" * length
        turns.append(
            Turn(
                "seen",
                "said",
                "did",
                paid[number] if paid else 0.0,
                start,
                start + length,
                finish=FinishReason.STOP,
                format_error=number in errors,
            )
        )
    mask += bytes(2)
    base = {
        "id": "w1/t/0",
        "env": "e-v1",
        "task_id": "t",
        "split": "train",
        "wave": 1,
        "attempt": 0,
        "seed": 0,
        "outcome": Outcome.FAILURE,
        "reward": reward,
        "turns": tuple(turns),
        "token_ids": pack_tokens(range(len(mask))),
        "loss_mask": mask,
        "logprobs": pack_floats([0.0] * len(mask)),
    }
    return Trajectory(**(base | fields))


def placed(trajectory: Trajectory, **settings) -> list[float]:
    return place(trajectory, [bool(m) for m in trajectory.loss_mask], RewardSettings(**settings))


lengths = st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any)
rewards = st.integers(-100, 100).map(lambda n: n / 100)


@given(
    lengths=lengths,
    reward=rewards,
    placement=st.sampled_from(["last", "uniform", "segments"]),
)
def test_all_of_it_arrives_at_action_tokens(lengths, reward, placement):
    trajectory = played(lengths, reward)
    made = placed(trajectory, placement=placement)
    assert sum(made) == pytest.approx(reward)
    assert not any(r for r, acted in zip(made, trajectory.loss_mask, strict=True) if not acted)


def test_the_last_action_token_is_not_the_last_token():
    assert placed(played([2, 1])) == [0, 0, 0, 0, 0, 0, 1.0, 0, 0]


def test_spread_rewards():
    assert placed(played([2, 2]), placement="uniform")[2:4] == [0.25, 0.25]
    # A punishment is not spread: it stands where the episode was lost.
    assert placed(played([2, 1], -1.0), placement="uniform")[6] == -1.0
    made = placed(played([2, 1]), placement="segments", segment_discount=0.5)
    assert made[3] == pytest.approx(1 / 3)
    assert made[6] == pytest.approx(2 / 3)
    made = placed(played([2, 1], 0.7, paid=[0.5, 0.2]), placement="turns")
    assert (made[3], made[6]) == (0.5, 0.2)


def test_penalties_stand_where_they_were_earned():
    trajectory = played([1, 2, 1], errors={1})
    assert placed(trajectory, invalid_penalty=0.1)[6] == -0.1
    # At the end it is taken off what was earned there; and every turn pays its own.
    assert placed(played([1, 1], errors={1}), invalid_penalty=0.25)[5] == 0.75
    both = placed(played([1, 1], errors={0, 1}), placement="segments", invalid_penalty=0.25)
    assert sum(both) == pytest.approx(0.5)
    cut = played([1], outcome=Outcome.TRUNCATED, truncation="tokens")
    assert placed(cut, overlong="penalty", overlong_penalty=0.25)[2] == 0.75
    assert placed(cut)[2] == 1.0
    turns = played([1], outcome=Outcome.TRUNCATED, truncation="turns")
    assert placed(turns, overlong="penalty", overlong_penalty=0.25)[2] == 1.0


@given(lengths=lengths, paid=st.lists(rewards, min_size=5, max_size=5))
def test_what_each_step_paid_arrives_also_where_a_turn_has_no_tokens(lengths, paid):
    paid = paid[: len(lengths)]
    made = placed(played(lengths, sum(paid), paid=paid), placement="turns")
    assert sum(made) == pytest.approx(sum(paid), abs=1e-9)


def test_a_turn_without_tokens_pays_at_a_neighbours():
    assert turn_ends(played([0, 2, 0]), [bool(m) for m in played([0, 2, 0]).loss_mask]) == [4, 5, 5]


def test_a_fault_has_no_reward_to_place():
    with pytest.raises(BadSample, match="no reward"):
        placed(played([1], None, outcome=Outcome.CANCELLED))
    with pytest.raises(BadSample, match="no action token"):
        place(played([1]), [False] * 5, RewardSettings())

"""Which trajectories make pairs: the rule tables by hand, and what holds for all waves."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.codec import pack_floats, pack_mask, pack_tokens
from rollwave.engine.trajectory import Outcome, Turn
from rollwave.learners.preferences.pairs import (
    against_experts,
    at_turns,
    best_and_worst,
    best_own,
    judge,
    shortened,
    two_samples,
)


def played(make, task: int, number: int, actions: str, reward: float, **fields):
    """An attempt with a reward, at the same first observation as the expert's."""
    outcome = Outcome.SUCCESS if reward == 1 else Outcome.FAILURE
    return make.attempt(task, number, actions, reward=reward, outcome=outcome, **fields)


def ids(pairs) -> list[tuple[str, str]]:
    return [(p.chosen.id, p.rejected.id) for p in pairs.kept]


# Against experts (3.2)


@pytest.mark.parametrize(
    ("expert", "explored", "verdict"),
    [
        (1.0, 0.0, "lose"),
        (1.0, 0.99, "lose"),
        (0.7, 0.8, "win"),
        (0.7, 1.0, "win"),
        (1.0, 1.0, "tie"),
        (0.5, 0.5, "tie"),
        (0.0, 0.0, "tie"),
        (0.3, 0.1 + 0.2, "tie"),  # equal but for the noise of a sum
    ],
)
def test_the_rule_table(make, expert, explored, verdict):
    teacher = make.expert(0, reward=expert)
    attempt = played(make, 0, 0, "down down", explored)
    found = against_experts([teacher], [attempt])
    assert judge(explored, expert) == verdict
    assert found.verdicts == {"win": 0, "tie": 0, "lose": 0} | {verdict: 1}
    assert (
        ids(found)
        == {
            "lose": [(teacher.id, attempt.id)],
            "win": [(attempt.id, teacher.id)],
            "tie": [],
        }[verdict]
    )
    assert found.dropped == {}


def test_an_expert_without_a_reward_counts_as_one(make):
    found = against_experts([make.expert(0, reward=None)], [played(make, 0, 0, "down", 0.9)])
    assert found.verdicts["lose"] == 1


def test_the_best_of_several_experts_counts(make):
    poor, good = make.expert(0, reward=0.2), make.expert(0, "right up", reward=0.8)
    found = against_experts([poor, good, poor], [played(make, 0, 0, "down", 0.5)])
    assert found.kept[0].chosen == good


def test_what_is_no_pair_is_counted_under_one_reason(make):
    experts = [make.expert(task) for task in range(8)]
    silent = make.attempt(3, turns=(), reward=0.0, outcome=Outcome.FAILURE)
    elsewhere = played(make, 5, 0, "down", 0.0)
    moved = msgspec.structs.replace(
        elsewhere, turns=(Turn("at another door", "down", "down", 0.0),)
    )
    cut = played(make, 6, 0, "down", 0.0, truncation="tokens")
    explored = [
        make.faulted(0),
        make.attempt(1, outcome=Outcome.CANCELLED, reward=None),
        played(make, 99, 0, "up", 0.0),
        silent,
        played(make, 4, 0, "up right", 0.0),  # the expert's very actions, and another reward
        moved,
        cut,
        played(make, 7, 0, "left", 0.0),
    ]
    found = against_experts(experts, explored)
    assert found.dropped == {
        "fault": 1,
        "cancelled": 1,
        "no_expert": 1,
        "empty_side": 1,
        "identical": 1,
        "other_start": 1,
        "one_sided_truncation": 1,
    }
    assert ids(found) == [(experts[7].id, explored[7].id)]


def test_a_broken_expert_is_none(make):
    broken = make.expert(0, outcome=Outcome.CANCELLED, reward=None)
    assert against_experts([broken], [played(make, 0, 0, "up", 0.0)]).dropped == {"no_expert": 1}


def test_both_cut_by_their_token_limit_may_be_compared(make):
    expert = make.expert(0, reward=0.8, truncation="tokens")
    found = against_experts([expert], [played(make, 0, 0, "down", 0.1, truncation="tokens")])
    assert len(found.kept) == 1
    by_turns = played(make, 0, 0, "down", 0.1, truncation="turns")
    assert len(against_experts([make.expert(0)], [by_turns]).kept) == 1


@pytest.mark.parametrize(("extra", "turns"), [(None, 12), (5, 7), (0, 2), (100, 12)])
def test_a_rejected_exploration_is_cut_to_the_experts_turns_and_some(make, extra, turns):
    long = played(make, 0, 0, " ".join(["down"] * 12), 0.0, final_observation="still here")
    (pair,) = against_experts([make.expert(0)], [long], max_extra_turns=extra).kept
    assert len(pair.rejected.turns) == turns
    assert pair.rejected.final_observation == ""  # ends with what the agent wrote
    assert len(pair.chosen.turns) == 2


def test_a_chosen_exploration_is_not_cut(make):
    long = played(make, 0, 0, " ".join(["down"] * 12), 1.0)
    (pair,) = against_experts([make.expert(0, reward=0.5)], [long], max_extra_turns=0).kept
    assert len(pair.chosen.turns) == 12


def test_the_last_observation_of_a_chosen_side_goes_too(make):
    won = played(make, 0, 0, "down", 1.0, final_observation="the door opens")
    (pair,) = against_experts([make.expert(0, reward=0.5)], [won]).kept
    assert pair.chosen.id == won.id
    assert pair.chosen.final_observation == ""


def test_space_around_a_text_makes_no_difference(make):
    """Servers strip differently."""
    same = played(make, 0, 0, "up right", 0.0)
    padded = tuple(
        msgspec.structs.replace(t, observation=f"{t.observation}\n", completion=f" {t.completion}")
        for t in same.turns
    )
    found = against_experts([make.expert(0)], [msgspec.structs.replace(same, turns=padded)])
    assert found.dropped == {"identical": 1}


def test_a_cut_keeps_tokens_mask_and_log_probs_together(make):
    turns = tuple(Turn(f"o{k}", "w", "w", 0.0, start=3 * k + 2, end=3 * k + 3) for k in range(3))
    whole = make.attempt(
        0,
        turns=turns,
        token_ids=pack_tokens(range(11)),
        loss_mask=pack_mask([0, 0, 1] * 3 + [0, 0]),
        logprobs=pack_floats([0.0, 0.0, -1.0] * 3 + [0.0, 0.0]),
        final_observation="end",
    )
    for count, tokens in ((1, 3), (2, 6), (3, 9), (7, 9)):
        part = shortened(whole, count)
        part.check()
        assert (len(part.turns), part.tokens) == (min(count, 3), tokens)


def test_gap_threshold_and_cap_keep_the_widest_pairs(make):
    rewards = (0.95, 0.5, 0.2, 0.2)
    explored = [played(make, 0, k, f"down {'up ' * k}", r) for k, r in enumerate(rewards)]
    expert = make.expert(0)

    def kept(**options) -> tuple[list[int], dict[str, int]]:
        found = against_experts([expert], explored, **options)
        return [p.rejected.attempt for p in found.kept], found.dropped

    assert kept() == ([0, 1, 2, 3], {})
    assert kept(gap=0.5) == ([1, 2, 3], {"small_gap": 1})
    assert kept(per_task=2) == ([2, 3], {"over_cap": 2})
    assert kept(threshold=1.01) == ([], {"low_reward": 4})
    assert kept(threshold=1.0) == ([0, 1, 2, 3], {})


# Step by step (3.3)


def branch(make, turn: int, actions: str, reward: float):
    """An episode that opens with the expert's turns before `turn`, and goes on by itself."""
    return played(make, 0, turn, actions, reward)


def test_single_turns_are_contrasted_by_how_the_episodes_ended(make):
    expert = make.expert(0, "up right down", reward=0.5)
    explored = [
        branch(make, 1, "left left", 0.0),  # lost
        branch(make, 2, "up left down", 1.0),  # won
        branch(make, 3, "up right left", 0.5),  # neither
    ]
    found = at_turns([expert], explored)
    assert found.verdicts == {"win": 1, "tie": 1, "lose": 1}
    lost, won = found.kept
    assert (lost.chosen.id, lost.rejected.id, lost.turn) == (expert.id, explored[0].id, 0)
    assert (won.chosen.id, won.rejected.id, won.turn) == (explored[1].id, expert.id, 1)
    for pair in found.kept:
        assert len(pair.chosen.turns) == len(pair.rejected.turns) == pair.turn + 1
        before = [[t.completion for t in side.turns[:-1]] for side in (pair.chosen, pair.rejected)]
        assert before[0] == before[1]


def test_the_same_turn_and_other_beginnings_make_no_pair(make):
    expert = make.expert(0, "up right down")
    explored = [
        branch(make, 2, "up right left", 0.0),  # at turn 2 it did what the expert did
        branch(make, 3, "up left left", 0.0),  # did not open with the expert's turns
        branch(make, 0, "left", 0.0),
        branch(make, 4, "up right down up", 0.0),  # the expert had ended
        branch(make, 3, "up right", 0.0),  # ended before the turn
    ]
    found = at_turns([expert], explored)
    assert (found.kept, found.dropped) == ([], {"identical": 1, "bad_branch": 4})


# Success and failure (1.8)


def test_the_best_is_paired_with_the_worst(make):
    rewards = (0.4, 1.0, 0.0, 0.9)
    explored = [played(make, 0, k, "up " * (k + 1), r) for k, r in enumerate(rewards)]
    options = {"gap": 0.01, "threshold": 0.7}
    found = best_and_worst(explored, **options)
    assert [(p.chosen.attempt, p.rejected.attempt) for p in found.kept] == [(1, 2)]
    assert found.dropped == {"over_cap": 2}
    both = best_and_worst(explored, per_task=0, **options)
    assert [(p.chosen.attempt, p.rejected.attempt) for p in both.kept] == [(1, 2), (3, 0)]


def test_of_equal_attempts_the_first_is_the_best_and_the_last_the_worst(make):
    rewards = (0.0, 1.0, 1.0, 0.0)
    explored = [played(make, 0, k, "up " * (k + 1), r) for k, r in enumerate(rewards)]
    for wave in (explored, explored[::-1]):
        (pair,) = best_and_worst(wave, gap=0.01, threshold=0.7).kept
        assert (pair.chosen.attempt, pair.rejected.attempt) == (1, 3)


def test_gap_and_winner_are_at_least_so_much(make):
    def reason(a: float, b: float) -> dict[str, int]:
        explored = [played(make, 0, 0, "up", a), played(make, 0, 1, "down", b)]
        return best_and_worst(explored, gap=0.1, threshold=0.9).dropped

    assert reason(0.9, 0.8) == {}  # both exactly, though 0.9 - 0.8 is less than 0.1 in floats
    assert reason(0.9, 0.85) == {"small_gap": 1}
    assert reason(0.89, 0.2) == {"low_reward": 1}
    assert reason(1.0, 1.0) == {"small_gap": 1}
    one = [played(make, 0, 0, "up", 1.0)]
    assert best_and_worst(one, gap=0.1, threshold=0.9).dropped == {"single": 1}


def test_two_samples_pairs_the_lower_of_each_pass(make):
    rewards = (0.9, 0.2, 1.0, 0.8)  # the first pass are attempts 0 and 1
    explored = [played(make, 0, k, "up " * (k + 1), r) for k, r in enumerate(rewards)]
    found = two_samples(explored, gap=0.1, threshold=0.7)
    assert [(p.chosen.attempt, p.rejected.attempt) for p in found.kept] == [(3, 1)]
    assert found.dropped == {"over_cap": 2}
    # Of three the first pass has two.
    (pair,) = two_samples(explored[:3], gap=0.1, threshold=0.7).kept
    assert (pair.chosen.attempt, pair.rejected.attempt) == (2, 1)
    lone = two_samples([*explored[:1], played(make, 1, 3, "up", 0.0)], gap=0.1, threshold=0.7)
    assert lone.dropped == {"single": 2}


# Self-play (3.6)


def test_the_best_own_trajectory_is_the_expert_of_self_play(make):
    first = [played(make, 0, 0, "up", 0.6), played(make, 1, 0, "up", 0.0)]
    second = [played(make, 0, 1, "down", 0.3, wave=2), played(make, 1, 1, "left", 1.0, wave=2)]
    experts = best_own([*first, *second, make.faulted(2)])
    assert experts == [first[0], second[1]]
    assert best_own([first[0], played(make, 0, 5, "left", 0.6)]) == [first[0]]
    found = against_experts(experts, second)
    assert ids(found) == [(first[0].id, second[0].id)]
    assert found.dropped == {"itself": 1}


# Whatever the wave


@st.composite
def waves(draw):
    """(task, attempt, actions, reward or nothing) of some explorations, and experts' rewards."""
    actions = st.lists(st.sampled_from(["up", "down", "left"]), min_size=1, max_size=4)
    reward = st.sampled_from([None, 0.0, 0.25, 0.5, 1.0])
    explored = draw(st.lists(st.tuples(st.integers(0, 3), actions, reward), max_size=12))
    experts = draw(st.dictionaries(st.integers(0, 2), st.sampled_from([0.25, 0.5, 1.0])))
    return explored, experts


@given(waves(), st.integers(0, 3), st.sampled_from([None, 0, 1]), st.sampled_from([0.0, 0.3]))
def test_every_exploration_is_a_pair_a_tie_or_counted(make, wave, per_task, extra, gap):
    explored = [
        make.faulted(task, k)
        if reward is None
        else played(make, task, k, " ".join(actions), reward)
        for k, (task, actions, reward) in enumerate(wave[0])
    ]
    experts = [make.expert(task, reward=reward) for task, reward in wave[1].items()]
    found = against_experts(experts, explored, max_extra_turns=extra, per_task=per_task, gap=gap)
    ties = found.verdicts.get("tie", 0)
    assert len(found.kept) + ties + sum(found.dropped.values()) == len(explored)
    for pair in found.kept:
        assert pair.chosen.task_id == pair.rejected.task_id
        assert pair.gap > 0
        assert pair.gap >= gap - 1e-6
        assert {pair.chosen.policy, pair.rejected.policy} == {"expert", "policies/1"}
    again = against_experts(experts, explored, max_extra_turns=extra, per_task=per_task, gap=gap)
    assert again == found
    if per_task:
        tasks = [p.chosen.task_id for p in found.kept]
        assert all(tasks.count(task) <= per_task for task in tasks)


@given(waves(), st.integers(0, 2))
def test_no_trajectory_is_in_two_pairs_of_best_and_worst(make, wave, per_task):
    explored = [
        make.faulted(task, k)
        if reward is None
        else played(make, task, k, " ".join(actions), reward)
        for k, (task, actions, reward) in enumerate(wave[0])
    ]
    for found in (
        best_and_worst(explored, gap=0.1, threshold=0.5, per_task=per_task),
        two_samples(explored, gap=0.1, threshold=0.5),
    ):
        used = [t.id for p in found.kept for t in (p.chosen, p.rejected)]
        assert len(used) == len(set(used))
        for pair in found.kept:
            assert pair.gap >= 0.1 - 1e-6
            assert pair.chosen.reward >= 0.5


def test_figures_say_how_the_losers_failed(make):
    broken = played(make, 0, 0, "down down down", 0.0)
    turns = (*broken.turns[:-1], msgspec.structs.replace(broken.turns[-1], format_error=True))
    found = against_experts(
        [make.expert(0), make.expert(1)],
        [msgspec.structs.replace(broken, turns=turns), played(make, 1, 0, "left", 0.5)],
    )
    assert found.metrics() == {
        "pairs": 2.0,
        "win": 0.0,
        "tie": 0.0,
        "lose": 2.0,
        "reward_gap": 0.75,
        "rejected_format_errors": 0.5,
        "chosen_turns": 2.0,
        "rejected_turns": 2.0,
    }
    assert (found + found).metrics()["lose"] == 4.0

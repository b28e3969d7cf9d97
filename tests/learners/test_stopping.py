"""When evolution stops: by the scores alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.learners.stopping import Decision, Score, collapse, judge

scores = st.lists(
    st.builds(Score, mean=st.floats(0, 1), error=st.floats(0.001, 0.1)), min_size=1, max_size=10
)


def of(*means: float, error: float = 0.02) -> list[Score]:
    return [Score(mean, error) for mean in means]


def test_rising_scores_go_on():
    verdict = judge(of(0.2, 0.4, 0.5))
    assert (verdict.decision, verdict.best) == (Decision.GO_ON, 2)


def test_two_waves_without_gain_stop_and_one_does_not():
    assert judge(of(0.5, 0.502)).decision is Decision.GO_ON
    verdict = judge(of(0.5, 0.502, 0.504))
    assert (verdict.decision, verdict.best) == (Decision.STOP, 2)


def test_a_gain_of_exactly_so_much_is_one_and_it_is_counted_from_the_best():
    assert judge(of(0.25, 0.5, 0.75), min_gain=0.25, patience=1).decision is Decision.GO_ON
    assert judge(of(0.25, 0.5, 0.75), min_gain=0.26, patience=2).decision is Decision.STOP
    # 0.58 is more than the wave before had, and no gain.
    assert judge(of(0.6, 0.5, 0.58, error=0.1)).decision is Decision.STOP


def test_a_gain_between_resets_the_patience():
    assert judge(of(0.5, 0.5, 0.6, 0.6)).decision is Decision.GO_ON


def test_a_clear_fall_rolls_back_to_the_best():
    verdict = judge(of(0.2, 0.6, 0.5, error=0.02))  # 0.1 > 2 * hypot(0.02, 0.02)
    assert (verdict.decision, verdict.best) == (Decision.ROLL_BACK, 1)


@pytest.mark.parametrize(
    ("errors", "decision"),
    [
        ((0.03, 0.03), Decision.ROLL_BACK),  # twice the root of the sum of squares is 0.085
        ((0.05, 0.01), Decision.GO_ON),  # 0.102
        ((0.01, 0.05), Decision.GO_ON),
        ((0.04, 0.01), Decision.ROLL_BACK),  # 0.082
        ((0.01, 0.04), Decision.ROLL_BACK),
    ],
)
def test_the_error_is_that_of_a_difference_of_two_means(errors, decision):
    best, newest = errors
    assert judge([Score(0.6, best), Score(0.5, newest)]).decision is decision


def test_a_fall_within_two_standard_errors_goes_on():
    assert judge(of(0.2, 0.6, 0.55, error=0.02)).decision is Decision.GO_ON


@given(scores)
def test_the_best_is_the_earliest_highest_and_the_newest_best_is_never_rolled_back(history):
    verdict = judge(history)
    top = max(score.mean for score in history)
    assert verdict.best == next(i for i, score in enumerate(history) if score.mean == top)
    if verdict.best == len(history) - 1:
        assert verdict.decision is not Decision.ROLL_BACK


def test_a_kl_far_above_its_running_median_is_a_collapse():
    settled = [0.01, 0.02, 0.02, 0.02, 0.03]
    assert "KL 0.3 is above 10 times its median of 0.02" in collapse(kls=[*settled, 0.3])
    assert not collapse(kls=[*settled, 0.19])
    assert not collapse(kls=[*settled, 0.3], max_kl=0)
    # The newest is no part of what it is compared with.
    assert collapse(kls=[1.0, 1.0, 1.0, 2.0, 2.0, 10.5])
    # The first ones rise from nothing by any factor.
    assert not collapse(kls=[1e-9, 0.3])
    assert not collapse(kls=[0.0] * 6 + [0.3])


def test_little_of_the_first_entropy_or_little_format_is_a_collapse():
    assert "entropy 0.09 is below 0.1 of the first wave's 1" in collapse(entropies=[1.0, 0.5, 0.09])
    assert not collapse(entropies=[1.0, 0.09, 0.11])
    assert not collapse(entropies=[0.5, 5.0, 0.2])  # of the first wave's, not of the highest
    assert "51.0% of the turns" in collapse(format_errors=0.51)
    assert not collapse(format_errors=0.5)


@given(st.lists(st.floats(0, 10), max_size=10), st.lists(st.floats(0, 5), max_size=10))
def test_what_is_not_measured_or_not_limited_is_no_collapse(kls, entropies):
    assert not collapse()
    assert not collapse(
        kls=kls, entropies=entropies, max_kl=0, min_entropy=0, format_errors=1, max_format_errors=1
    )

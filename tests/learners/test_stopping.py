"""When evolution stops: by the scores alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rollwave.learners.stopping import Decision, Score, judge

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


def test_a_gain_between_resets_the_patience():
    assert judge(of(0.5, 0.5, 0.6, 0.6)).decision is Decision.GO_ON


def test_a_clear_fall_rolls_back_to_the_best():
    verdict = judge(of(0.2, 0.6, 0.5, error=0.02))  # 0.1 > 2 * hypot(0.02, 0.02)
    assert (verdict.decision, verdict.best) == (Decision.ROLL_BACK, 1)


def test_a_fall_within_two_standard_errors_goes_on():
    assert judge(of(0.2, 0.6, 0.55, error=0.02)).decision is Decision.GO_ON


@given(scores)
def test_the_best_is_the_earliest_highest_and_the_newest_best_is_never_rolled_back(history):
    verdict = judge(history)
    top = max(score.mean for score in history)
    assert verdict.best == next(i for i, score in enumerate(history) if score.mean == top)
    if verdict.best == len(history) - 1:
        assert verdict.decision is not Decision.ROLL_BACK

"""Intervals, sign flips and Holm's correction, against closed forms and as laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.benchmarks.experiments.statistics import Contrast, holm, sign_flips

VALUES = st.lists(st.floats(-50, 50), min_size=1, max_size=10)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_ten_differences_of_one_sign_are_as_rare_as_ten_heads() -> None:
    assert sign_flips([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]) == 2 / 2**10


def test_no_difference_is_no_evidence() -> None:
    contrast = Contrast.of([0.0] * 6)
    assert (contrast.mean, contrast.low, contrast.high, contrast.p) == (0, 0, 0, 1.0)
    assert contrast.needed is None


def test_many_seeds_are_drawn_rather_than_enumerated() -> None:
    assert sign_flips([1.0] * 20) == pytest.approx(1 / 10_001)
    assert sign_flips([1.0, -1.0] * 10) > 0.9


@given(VALUES)
def test_the_other_direction_has_the_same_p_value_and_the_mirrored_mean(values) -> None:
    there, back = Contrast.of(values), Contrast.of([-v for v in values])
    assert there.p == pytest.approx(back.p)
    assert there.mean == pytest.approx(-back.mean)
    assert there.low <= there.mean + 1e-9
    assert there.mean <= there.high + 1e-9


@given(VALUES)
def test_statistics_depend_on_the_values_alone(values) -> None:
    assert Contrast.of(values) == Contrast.of(list(values))


def test_seeds_needed_grow_with_the_square_of_the_noise() -> None:
    assert Contrast.of([1.0, 3.0]).needed == 4  # 7.85 * 2 / 4, rounded up
    assert Contrast.of([0.0, 4.0]).needed == 16


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(P_VALUES)
def test_holm_never_lowers_a_p_value_nor_changes_their_order(values) -> None:
    corrected = holm(values)
    pairs = sorted(zip(values, corrected, strict=True))
    assert all(p <= c <= 1 for p, c in pairs)
    assert [c for _, c in pairs] == sorted(corrected)

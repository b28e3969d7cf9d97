"""Latencies by name: what is written is what is drawn, and nonsense is refused with a hint."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.latency import ConstantLatency, LogNormalLatency, UniformLatency
from rollwave.actors.simulation.latencies import DISTRIBUTIONS, PRESETS, named_latency
from rollwave.engine.errors import ConfigError

SECONDS = st.floats(0.0, 1e4, allow_subnormal=False)


@settings(deadline=None)
@given(SECONDS, st.floats(0.0, 3.0))
def test_parameters_are_read_by_name(median: float, sigma: float) -> None:
    text = f"lognormal?sigma={sigma!r}&median={median!r}"
    assert named_latency(text) == LogNormalLatency(median, sigma)


def test_what_is_not_given_keeps_its_default() -> None:
    assert named_latency("lognormal?median=2") == LogNormalLatency(2.0, 1.0)
    assert named_latency("uniform") == UniformLatency(0.5, 1.5)
    assert named_latency("constant?seconds=3&per_request=0.5") == ConstantLatency(3.0, 0.5)


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, *PRESETS])
@settings(deadline=None)
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_every_draw_is_a_time_and_grows_with_its_share(name: str, share: float) -> None:
    latency = named_latency(name)
    seconds = latency.at(share)
    assert 0.0 <= seconds < math.inf
    assert latency.at(share / 2) <= seconds


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    assert PRESETS[name].origin


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("lognromal", "did you mean lognormal"),
        ("runs/none.json", "there are: constant, uniform"),
        ("lognormal?mean=1", "it has median, sigma, longest, per_request"),
        ("lognormal?median=fast", "takes seconds, not 'fast'"),
        ("lognormal?median=nan", "takes a number"),
        ("lognormal?median=-1", "at least 0"),
        ("lognormal?median=1&median=2", "given twice"),
        ("lognormal?median", "?name=value"),
        ("uniform?low=2&high=1", "high 1.0 is below low 2.0"),
        ("uniform?high=inf", "finite"),
        ("answers?median=1", "takes no parameters"),
    ],
)
def test_nonsense_is_refused(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named_latency(text)
    assert hint in str(caught.value)

"""What the overlap benchmark makes of a campaign: windows, idle shares, and its table."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.campaign import run_campaign
from rollwave.actors.monitor import Snapshot
from rollwave.actors.simulation.rehearsal import rehearsal
from rollwave.benchmarks import overlap
from rollwave.benchmarks.overlap import Figures, Timeline, covered, figures, settings, summary
from rollwave.cli.output import Output
from rollwave.engine.testing import run_simulated

spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)).map(lambda s: (s[0], sum(s))))


@given(spans)
def test_what_is_covered_is_each_moment_once(found: list[tuple[int, int]]) -> None:
    moments = {moment for begin, end in found for moment in range(begin, end)}
    assert covered(found) == len(moments)


def test_the_learner_works_from_a_steps_begin_to_its_published_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(overlap.time, "perf_counter", lambda: next(clock))
    timeline = Timeline()
    for stage in (
        "train policy-0000: step 1 of 1",  # 0: cloning, which is published by nobody
        "evaluate policy 0 on dev",
        "wave 1: explore",  # 2: the window begins
        "wave 1: explore",
        "train policy-0001",
        "wave 2: explore",
        "train policy-0001: step 1 of 2, loss 0.5",
        "publish policy-0001",
        "train policy-0002",
        "publish policy-0002",  # 9: it ends
        "evaluate policy 2 on dev",
    ):
        timeline.note(Snapshot(stage=stage))
    assert timeline.window() == (2, 9)
    assert timeline.learning() == [(4, 7), (8, 9)]


def line(seed: int, staleness: int, seconds: float) -> Figures:
    ages = {0: 2, staleness: 3} if staleness else {0: 5}
    return Figures("remote", seed, staleness, seconds, 0.5, 0.25, ages, 1, {}, 0.1, 0.3)


def test_times_are_compared_within_a_seed_and_the_table_says_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [line(0, 0, 10.0), line(0, 1, 5.0), line(1, 0, 40.0), line(1, 1, 10.0)]
    plain, ahead = summary(found)
    assert plain["faster"].most == 1.0
    assert (ahead["faster"].least, ahead["faster"].most) == (2.0, 4.0)
    assert ahead["staleness"] == {0: 4, 1: 6}
    assert ahead["mixed"] == 2
    assert ahead["dev_gain"] == pytest.approx(0.2)
    overlap.show([plain, ahead], Output())
    assert "times as fast" in capsys.readouterr().out


def test_a_campaign_gives_its_figures(tmp_path: Path) -> None:
    """The measured settings, rehearsed: what is drawn and slept through is counted."""
    config = settings(0, 1, 2, "transformers")
    config = replace(
        config,
        model=replace(config.model, path="nowhere", tiny=None),
        evaluate=replace(config.evaluate, dev_tasks=2),
    )
    timeline = Timeline()
    cast = rehearsal(ConstantLatency(1.0), lambda wave: 30.0 * wave)
    result = run_simulated(partial(run_campaign, config, tmp_path, timeline.note, cast=cast))
    found = figures("remote", config, tmp_path, timeline, result)
    assert sum(found.staleness.values()) == 2 * 16 * 6
    assert set(found.staleness) <= {0, 1}
    assert (found.max_staleness, found.dropped) == (1, {"stale": 0})
    assert found.seconds > 0
    assert found.dev_first >= 0

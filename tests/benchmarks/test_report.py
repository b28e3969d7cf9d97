"""What benchmarks write: spread, verdicts, and where a figure was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.benchmarks.report import Spread, commit, write
from rollwave.benchmarks.throughput import Bar, compare

FIGURES = {"turns_per_second": 100.0, "cpu_microseconds_per_turn": 50.0, "efficiency": 0.95}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_the_median_lies_within_the_spread(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.least <= spread.median <= spread.most
    assert spread.repeats == len(values)


def test_a_spread_reads_well() -> None:
    assert str(Spread.of([1234.5, 1200.0, 1300.0])) == "1,234 (1,200 to 1,300)"
    assert str(Spread.of([12.34])) == "12.3 (12.3 to 12.3)"
    assert str(Spread.of([0.951, 0.9])) == "0.93 (0.90 to 0.95)"


@pytest.mark.parametrize(
    ("bar", "words", "verdict"),
    [
        (Bar(name="x", value=Spread.of([5.0, 6.0, 4.0]), at_least=5), "at least 5", "reached"),
        (Bar(name="x", value=Spread.of([4.9]), at_least=5), "at least 5", "missed"),
        (Bar(name="x", value=Spread.of([60.0]), at_most=60), "at most 60", "reached"),
        (Bar(name="x", value=Spread.of([61.0]), at_most=60), "at most 60", "missed"),
        (Bar(name="x", value=Spread.of([61.0])), "", ""),
    ],
)
def test_a_bar_is_judged_by_its_median(bar: Bar, words: str, verdict: str) -> None:
    assert (bar.bar, bar.verdict) == (words, verdict)


def test_ratios_are_taken_repeat_by_repeat() -> None:
    """A busy moment that slows both sides of one repeat must not show as a ratio."""
    ours = [FIGURES | {"turns_per_second": speed} for speed in (5000.0, 500.0)]
    theirs = [FIGURES | {"turns_per_second": speed} for speed in (100.0, 10.0)]
    results = {
        "rollwave in process": ours,
        "rollwave over HTTP": ours,
        "rollwave batched": ours,
        "verifiers in process": theirs,
        "verifiers over HTTP, tuned": theirs,
    }
    by_name = {bar.name: bar for bar in compare(results)}
    assert by_name["in process, × verifiers tuned"].value == Spread(50.0, 50.0, 50.0, 2)
    assert by_name["engine CPU a turn, µs"].verdict == "reached"
    del results["verifiers over HTTP, tuned"]
    assert len(compare(results)) == 2  # without the other side, our own bars alone


def test_a_file_says_what_it_was_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    write(path, {"answer": 42})
    written = json.loads(path.read_text("utf-8"))
    assert written["answer"] == 42
    assert written["commit"] == commit()
    assert written["machine"]["cores"] > 0
    assert written["measured"].endswith("Z")

"""The one place that prints: JSON last and alone, tables safe, live views that hold nobody up."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rollwave.actors.monitor import Snapshot
from rollwave.cli.output import Output, complain, format_cell, printable, to_json
from rollwave.cli.progress import clock, progress_view
from rollwave.engine.trajectory import Outcome

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES))
def test_json_is_one_strict_line(values: dict[str, object]) -> None:
    line = to_json(values)
    assert "\n" not in line

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert set(json.loads(line, parse_constant=refuse)) == set(values)


def test_json_replaces_what_json_does_not_have() -> None:
    assert json.loads(to_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}})) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None},
    }


def test_json_understands_records_and_enums() -> None:
    @dataclass
    class Line:
        outcome: Outcome
        share: float

    assert json.loads(to_json({"lines": [Line(Outcome.SUCCESS, math.nan)]})) == {
        "lines": [{"outcome": "success", "share": None}]
    }


def test_with_json_nothing_else_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    output.heading("a heading")
    output.table(("a",), [(1,)])
    output.text("a text")
    output.note("a note")
    output.warn("a warning")
    output.result({"episodes": 3})
    out, err = capsys.readouterr()
    assert out == '{"episodes":3}\n'
    assert "a note" in err
    assert "warning: a warning" in err


def test_without_json_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.text("an answer")
    output.result({"episodes": 3})
    assert capsys.readouterr().out == "an answer\n"


def test_tables_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(
        ("what", "count"), [("[red]mark\x1b[31mup[/]", 12345), ("", None)], title="[b]t[/]"
    )
    out = capsys.readouterr().out
    assert "[red]mark\\x1b[31mup[/]" in out
    assert "[b]t[/]" in out
    assert "12,345" in out
    assert " - " in out
    assert "\x1b" not in out


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("a", "b"), [], title="differences")
    assert capsys.readouterr().out == "differences\n  none\n"


def test_long_lines_are_not_wrapped_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    Output().text("word " * 100)
    complain("word " * 100)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.count("\n") == 1


@given(st.text())
def test_printable_text_cannot_drive_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    if all(c.isprintable() or c in "\n\t" for c in text):
        assert shown == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (1234567, "1,234,567"),
        (True, "True"),
        (0.123456, "0.1235"),
        (12345.6, "12,346"),
        (math.nan, "nan"),
        ("as it is", "as it is"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert format_cell(value) == shown  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (61.9, "1:01"), (3600, "1:00:00"), (7325, "2:02:05")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def drawn(view: object) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_a_view_shows_the_latest_snapshot() -> None:
    with progress_view("evaluate [x] maze-v1", enabled=False) as view:
        assert "starting" in drawn(view.render())
        view.update(Snapshot(sessions_live=1))
        view.update(
            Snapshot(
                stage="wave 2: rollout",
                sessions_live=120,
                episodes_done=300,
                episodes_total=1200,
                turns=4000,
                turns_per_second=512.4,
                batch_fill=0.83,
                outcomes={"success": 280, "failure": 0, "fault": 1},
                success_rate=0.912,
            )
        )
        text = drawn(view.render())
    for part in (
        "evaluate [x] maze-v1",
        "wave 2: rollout",
        "300 of 1,200 episodes",
        "120 sessions live",
        "4,000 turns",
        "512 turns/s",
        "batch 83% full",
        "280 success",
        "1 fault",
        "success so far 91.2%",
    ):
        assert part in text
    assert "failure" not in text


def test_a_view_says_what_is_not_as_it_should_be() -> None:
    with progress_view("rollout", enabled=False) as view:
        view.update(Snapshot(faults={"backend": 0}))
        assert "fault" not in drawn(view.render())
        view.update(
            Snapshot(
                faults={"environment": 2, "deadline": 1},
                resumed=12,
                restarted=1,
                slowest="turn 3 of w0/maze_[b]7/0 for 81 s",
            )
        )
        text = drawn(view.render())
    assert "2 environment faults · 1 deadline faults · 12 went on in mid-episode" in text
    assert "1 began anew · slowest: turn 3 of w0/maze_[b]7/0 for 81 s" in " ".join(text.split())


def test_a_view_without_a_total_counts_up() -> None:
    with progress_view("rollout", enabled=False) as view:
        view.update(Snapshot(episodes_done=5))
        text = drawn(view.render())
    assert "5 episodes" in text
    assert "batch" not in text
    assert "success so far" not in text


def test_a_live_view_leaves_nothing_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_view("rollout", enabled=True) as view:
        view.update(Snapshot(episodes_done=1, episodes_total=2))
    assert capsys.readouterr().out == ""

"""`rollwave bench engine`: every turn is played, and the figures fit each other."""

from __future__ import annotations

import json

import pytest
from rollwave.benchmarks.engine import Countdown, bench_engine
from rollwave.cli.main import main
from rollwave.envs.base import Task

KEYS = {
    "sessions",
    "turns",
    "seconds",
    "ideal_seconds",
    "efficiency",
    "turns_per_second",
    "cpu_microseconds_per_turn",
    "peak_rss_mib",
    "rss_kib_per_session",
}


def test_the_json_has_its_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "engine", "--sessions", "20", "--turns", "3", "--latency-ms", "1", "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) >= KEYS
    assert figures["turns"] == 60
    assert figures["ideal_seconds"] == pytest.approx(0.003)
    assert figures["seconds"] > figures["ideal_seconds"]
    assert figures["turns_per_second"] == pytest.approx(60 / figures["seconds"])
    assert figures["efficiency"] == pytest.approx(0.003 / figures["seconds"])


def test_without_json_there_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "engine", "--sessions", "5", "--turns", "2", "--latency-ms", "1"]) == 0
    assert "CPU µs/turn" in capsys.readouterr().out


def test_batches_are_full_in_the_ideal() -> None:
    figures = bench_engine(sessions=8, turns=2, latency_ms=2, per_request_ms=1, batch=4)
    assert figures.ideal_seconds == pytest.approx(4 * 0.002 + 16 * 0.001)
    assert figures.turns == 16


def test_the_world_ends_after_its_turns() -> None:
    world = Countdown(2)
    assert world.reset(Task("countdown-v1", 0), 0) == "2 turns are left."
    assert not world.step("go").done
    last = world.step("anything")
    assert (last.terminated, last.success, last.reward) == (True, True, 1.0)


@pytest.mark.parametrize("option", ["--sessions=0", "--turns=0", "--latency-ms=-1"])
def test_sizes_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["bench", "engine", option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err

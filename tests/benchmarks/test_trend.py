"""A leak is seen, and named, whatever it is of; what only goes up and down is not one."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.benchmarks import vitals
from rollwave.benchmarks.engine import rss_bytes
from rollwave.benchmarks.trend import LEAST, TOLERANCES, WARM_UP, Tolerance, judge, trend
from rollwave.benchmarks.vitals import History, Sample, take
from rollwave.engine.mailbox import Mailbox, MailboxStatistics

LOOKS = 28
HOUR = [5.0 * k for k in range(720)]


def watch(each: Callable[[int], None], *, objects: bool = False) -> list[str]:
    """Look at this process LOOKS times, 5 s apart on paper, and give what grows."""
    history = History()
    for look in range(LOOKS):
        each(look)
        history.add(take(5.0 * look, objects=objects))
    return [found.name for found in judge(history) if found.grows]


def test_a_process_that_does_nothing_is_flat() -> None:
    assert watch(lambda _: None) == []


def test_a_leaked_descriptor_is_named() -> None:
    with ExitStack() as stack:

        def leak(_: int) -> None:
            fd = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, fd)

        assert vitals.FDS in watch(leak)


def test_a_leaked_thread_is_named() -> None:
    end = threading.Event()
    threads: list[threading.Thread] = []

    def leak(_: int) -> None:
        threads.append(threading.Thread(target=end.wait))
        threads[-1].start()

    try:
        assert vitals.THREADS in watch(leak)
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_forgotten_children_are_named_also_when_they_have_ended() -> None:
    children: list[subprocess.Popen[bytes]] = []

    def leak(look: int) -> None:
        if look % 6 == 0:  # a few are enough
            child = subprocess.Popen([sys.executable, "-c", ""])
            children.append(child)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on

    try:
        assert vitals.CHILDREN in watch(leak)
    finally:
        for child in children:
            child.wait()


def test_objects_of_ours_that_pile_up_are_named_by_their_class() -> None:
    kept: list[Mailbox] = []

    def leak(_: int) -> None:
        kept.extend(Mailbox("forgotten", 1) for _ in range(100))

    gc.freeze()  # what else this test run holds would take long to look at
    try:
        grows = watch(leak, objects=True)
    finally:
        gc.unfreeze()
    assert "Mailbox objects" in grows
    assert vitals.OBJECTS in grows


def test_memory_that_the_collector_does_not_see_is_named() -> None:
    kept: list[bytearray] = []
    # What is allowed is a share of the level, and a process that runs all tests is large.
    size = max(2**20, int(rss_bytes()) // 200)
    assert vitals.RSS in watch(lambda _: kept.append(bytearray(os.urandom(1)) * size))


def test_a_mailbox_that_fills_up_is_named() -> None:
    history = History()
    for look in range(LOOKS):
        full = MailboxStatistics(4096, 30 * look, 30 * look, 0, 0, 9, 0, 0)
        history.add(take(5.0 * look, {"collector": full}, objects=False))
    assert vitals.QUEUED in [found.name for found in judge(history) if found.grows]
    assert take(0.0, {"collector": full}).peaks == {"collector": 30 * (LOOKS - 1)}


def test_growth_within_the_warm_up_is_none() -> None:
    values = [min(k, 720 * WARM_UP / 2) for k in range(720)]
    history = History()
    for time, value in zip(HOUR, values, strict=True):
        history.add(Sample(time, {vitals.FDS: value}))
    (found,) = judge(history)
    assert not found.grows
    assert found.slope == pytest.approx(0.0, abs=1e-9)


@given(
    level=st.floats(10, 1000),
    swing=st.lists(st.floats(-1, 1), min_size=50, max_size=100),
    amplitude=st.floats(0, 0.5),
)
def test_what_goes_up_and_down_and_ends_where_it_began_is_flat(
    level: float, swing: list[float], amplitude: float
) -> None:
    values = [level * (1 + amplitude * s) for s in swing]
    values += values[::-1]  # the same in reverse: whatever it is, it is no growth
    times = [5.0 * k for k in range(len(values))]
    assert not trend("level", times, values, Tolerance(0, 0.05)).grows


@given(
    level=st.floats(0, 1000),
    per_hour=st.floats(0.5, 1000),
    seed=st.integers(0, 1000),
)
def test_a_steady_rise_above_what_is_allowed_is_seen_through_noise(
    level: float, per_hour: float, seed: int
) -> None:
    noise = random.Random(seed)
    values = [level + per_hour * (time / 3600 + noise.uniform(-0.02, 0.02)) for time in HOUR]
    found = trend("level", HOUR, values, Tolerance(per_hour / 3))
    assert found.grows
    assert found.slope == pytest.approx(per_hour, rel=0.1)
    assert not trend("level", HOUR, values, Tolerance(2 * per_hour)).grows


def test_a_level_that_comes_late_counts_as_zero_before() -> None:
    history = History()
    for look in range(100):
        late = {"Late objects": 500.0} if look > 60 else {}
        history.add(Sample(float(look), {vitals.FDS: 5.0, **late}))
    assert list(history.levels["Late objects"][:61]) == [0.0] * 61
    assert [found.name for found in judge(history) if found.grows] == ["Late objects"]


@pytest.mark.parametrize("looks", [0, 1, LEAST])
def test_too_few_samples_are_no_verdict(looks: int) -> None:
    history = History()
    for look in range(looks):
        history.add(Sample(float(look), {vitals.FDS: 5.0}))
    with pytest.raises(ValueError, match="run it for longer"):
        judge(history)


def test_a_load_that_moves_is_no_leak_as_long_as_its_floor_stays() -> None:
    # The last phases happen to be busy ones; between them it is as idle as it was.
    values = [5.0 if k % 10 < (7 if k < 360 else 2) else 60.0 for k in range(720)]
    found = trend("level", HOUR, values, Tolerance(3))
    assert found.last - found.first > found.allowed
    assert not found.grows


def test_every_named_level_is_taken_and_has_a_tolerance() -> None:
    assert TOLERANCES.keys() <= take(0.0).values.keys()

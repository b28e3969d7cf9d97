"""One plan on trial: played twice, held to the invariants, and shrunk if it breaks one.

    trial = examine(plan)      trial.problems: empty = all hold
    small = shrink(plan, lambda plan: bool(examine(plan).problems))

Invariant: a trial leaves nothing behind, and gives the same verdict each time.

Not here: many plans and their figures (`benchmarks/torture`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from .drill import play
from .fault_plan import BackendFaults, ConsumerFaults, EnvironmentFaults, FaultPlan
from .invariants import problems
from .scenario import Scenario
from .story import Story

_SHAPES: Final = (
    Scenario(),
    Scenario(seed=1, concurrency=12, batch=3),
    Scenario(seed=2, concurrency=3, batch=1, tasks=4),
    Scenario(seed=3, waves=3, tasks=3, concurrency=2),
)
"""Campaigns of several shapes: a plan's seed says which."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came out."""

    story: Story
    problems: list[str]


def scenario_of(plan: FaultPlan) -> Scenario:
    """The scenario that a plan is played against."""
    return _SHAPES[plan.seed % len(_SHAPES)]


def examine(plan: FaultPlan, *, twice: bool = True) -> Trial:
    """Play a plan and hold it to every invariant.

    Args:
        plan: what goes wrong.
        twice: play it again, which must give the same events.
    """
    scenario = scenario_of(plan)
    story = _played(plan, scenario)
    broken = problems(story, _undisturbed(scenario))
    if twice and (again := _played(plan, scenario)).digest != story.digest:
        broken.append(
            "same seed, same run: played twice in one process, the events differ "
            f"({_endings(story)}, then {_endings(again)})"
        )
    return Trial(story, broken)


def forget() -> None:
    """Forget the undisturbed runs: for tests that change the engine under them."""
    _undisturbed.cache_clear()


@lru_cache(maxsize=len(_SHAPES))
def _undisturbed(scenario: Scenario) -> Story:
    return _played(FaultPlan(), scenario)


def _played(plan: FaultPlan, scenario: Scenario) -> Story:
    # In memory where there is such a place: what a crash costs is simulated anyway.
    memory = "/dev/shm"  # noqa: S108 (a directory of its own is made in it)
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="rollwave-", dir=place) as directory:
        return play(plan, Path(directory), scenario)


def _endings(story: Story) -> str:
    return ", ".join(f"{p.ended} after {p.steps} steps" for p in story.processes)


# -- shrinking ----------------------------------------------------------------------------


def shrink(plan: FaultPlan, broken: Callable[[FaultPlan], bool], *, tries: int = 400) -> FaultPlan:
    """A smaller plan that is `broken` too: fewer faults first, then earlier and shorter ones.

    Greedy: the first smaller plan that is still broken is gone on from, until none is or
    `tries` plans have been tried.
    """
    found = True
    while found:
        found = False
        for smaller in _smaller(plan):
            if tries == 0:
                return plan
            tries -= 1
            if broken(smaller):
                plan, found = smaller, True
                break
    return plan


def _smaller(plan: FaultPlan) -> Iterator[FaultPlan]:
    """Plans that are one step simpler, the boldest first."""
    replace = msgspec.structs.replace
    strikes = plan.strike
    if len(strikes) > 2:
        half = len(strikes) // 2
        yield replace(plan, strike=strikes[:half])
        yield replace(plan, strike=strikes[half:])
    for section, none in (
        ("environment", EnvironmentFaults()),
        ("backend", BackendFaults()),
        ("consumer", ConsumerFaults()),
    ):
        faults = getattr(plan, section)
        if faults != none:
            yield replace(plan, **{section: none})
            for kind, share in faults.shares().items():
                if share:
                    yield replace(plan, **{section: replace(faults, **{kind: 0.0})})
    for number, strike in enumerate(strikes):
        before, after = strikes[:number], strikes[number + 1 :]
        yield replace(plan, strike=before + after)
        for key, least in (("process", 0), ("lasts", 1), ("at", 0)):
            value = getattr(strike, key)
            for lower in dict.fromkeys((least, value // 2, value - 1)):
                if least <= lower < value:
                    smaller = replace(strike, **{key: lower})
                    yield replace(plan, strike=(*before, smaller, *after))

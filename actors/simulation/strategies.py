"""Fault plans drawn by Hypothesis, which shrinks a broken one: to no share and few strikes.

    @given(plans())
    def test_whatever_goes_wrong(plan: FaultPlan) -> None: ...

Invariant: everything that `random_plan` can draw can be drawn here; and the simplest plan
is the one without faults.

Not here: plans by the thousand (`random_plan`).
"""

from __future__ import annotations

from typing import Final, TypeVar, get_args

from hypothesis import strategies as st

from .fault_plan import (
    BackendFaults,
    ConsumerFaults,
    EnvironmentFaults,
    FaultPlan,
    Strike,
    StrikeKind,
)
from .random_plan import reach

_SHARES: Final = (0.0, 0.01, 0.05, 0.2)

Section = TypeVar("Section", EnvironmentFaults, BackendFaults, ConsumerFaults)


def plans(
    *, most: int = 4, kinds: tuple[StrikeKind, ...] = get_args(StrikeKind)
) -> st.SearchStrategy[FaultPlan]:
    """Plans for the scenario of `drill`.

    Args:
        most: strikes of one plan.
        kinds: of strikes.
    """
    return st.builds(
        FaultPlan,
        seed=st.integers(0, 2**32),
        environment=_section(EnvironmentFaults),
        backend=_section(BackendFaults),
        consumer=_section(ConsumerFaults),
        strike=st.lists(st.sampled_from(kinds).flatmap(_strike), max_size=most).map(tuple),
    )


def _section(section: type[Section]) -> st.SearchStrategy[Section]:
    share = st.sampled_from(_SHARES)
    names = section().shares()
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, share)).map(
        lambda shares: section(**shares)
    )


def _strike(kind: StrikeKind) -> st.SearchStrategy[Strike]:
    lasts = 30 if kind.startswith("disk.") else 1000 if kind == "clock.jumps" else 1
    return st.builds(
        Strike,
        kind=st.just(kind),
        at=st.integers(0, reach(kind)),
        process=st.integers(0, 2),
        lasts=st.integers(1, lasts),
    )

"""Plans by the thousand: `random_plan(seed)`, the same plan for the same seed.

Half of them only kill, cancel and refuse, so that what they come to can be compared with
the undisturbed run; the others also let environments, backends and clocks go wrong.

Invariant: every kind of fault of `fault_plan` can be drawn, and about equally often.

Not here: plans that shrink by themselves (`strategies`).
"""

from __future__ import annotations

from random import Random
from typing import Final, get_args

from ...engine.seeds import generator
from .fault_plan import (
    STRIKES,
    BackendFaults,
    ConsumerFaults,
    EnvironmentFaults,
    FaultPlan,
    Strike,
    StrikeKind,
)

REACH: Final[dict[str, int]] = {
    "process.power": 120,
    "disk.full": 45,
    "disk.torn": 45,
    "disk.fsync": 45,
    "backend.dies": 90,
    "swap.fails": 2,
    "swap.hangs": 2,
    "learner.fails": 8,
}
"""Below which `at` is drawn, by kind: about as many of these as `scenario` counts."""
STEPS: Final = 700
"""For the kinds that count steps."""
_SHARES: Final = (0.01, 0.05, 0.2, 0.5)
_CHANGING: Final = ("clock.jumps", "session.dies")


def random_plan(seed: int) -> FaultPlan:
    """Draw a plan for the scenario of `drill`."""
    chance = generator(seed, "plan")
    worldly = chance.random() < 0.5
    kinds = [kind for kind in get_args(StrikeKind) if worldly or kind not in _CHANGING]
    strikes = tuple(_strike(chance, chance.choice(kinds)) for _ in range(_few(chance)))
    if chance.random() < 0.1:
        strikes += _row(chance)
    environment, backend, consumer = EnvironmentFaults(), BackendFaults(), ConsumerFaults()
    if worldly and chance.random() < 0.6:
        environment = EnvironmentFaults(**_shares(chance, EnvironmentFaults))
    if worldly and chance.random() < 0.6:
        backend = BackendFaults(**_shares(chance, BackendFaults))
    if chance.random() < 0.1:
        consumer = ConsumerFaults(slow=0.2, seconds=chance.choice((0.5, 20.0)))
    return FaultPlan(
        seed=seed, environment=environment, backend=backend, consumer=consumer, strike=strikes
    )


def reach(kind: str) -> int:
    """Below which counts of this kind still happen in a run."""
    return REACH.get(kind, STEPS)


def _few(chance: Random) -> int:
    """Mostly one to three."""
    return chance.choice((0, 1, 1, 1, 2, 2, 3, 4, 7))


def _strike(chance: Random, kind: StrikeKind) -> Strike:
    assert kind in STRIKES
    limit = reach(kind)
    # Half of them early: what begins is more fragile than what runs.
    at = chance.randrange(limit) if chance.random() < 0.5 else int(limit ** chance.random()) - 1
    lasts = 1
    if kind.startswith("disk."):
        lasts = chance.choice((1, 1, 2, 30))
    elif kind == "clock.jumps":
        lasts = chance.choice((1, 25, 1000))
    process = chance.choice((0, 0, 0, 1, 2))
    return Strike(kind=kind, at=at, process=process, lasts=lasts)


def _row(chance: Random) -> tuple[Strike, ...]:
    """Deaths of one actor, one after the other: as many as make its supervisor give up."""
    kinds: tuple[StrikeKind, ...] = (
        "backend.dies",
        "inference.dies",
        "collector.dies",
        "dispatcher.dies",
    )
    kind = chance.choice(kinds)
    first, apart = chance.randrange(reach(kind)), chance.choice((1, 2, 5, 20))
    times = range(first, first + apart * chance.choice((4, 6, 8)), apart)
    return tuple(Strike(kind=kind, at=at) for at in times)


def _shares(chance: Random, section: type[EnvironmentFaults | BackendFaults]) -> dict[str, float]:
    """One or two kinds, often or seldom."""
    names = chance.sample(section.__struct_fields__, chance.choice((1, 1, 2)))
    return {name: chance.choice(_SHARES) for name in names}

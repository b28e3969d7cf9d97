"""From what a user writes after `--latency` to what a simulation waits for.

A name is a distribution or a preset; anything else is the path of a measured file, which
also says how many turns episodes take and at which concurrency that was so.

Invariant: a file and a name with the same figures are simulated in the same way.

Not here: the names (`latencies`), the file (`measured`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...engine.errors import ConfigError
from .draws import NO_TIME, Latencies
from .latencies import DISTRIBUTIONS, PRESETS, named_latency
from .measured import MeasuredLatencies, MeasuredLatency, MeasuredTurns, read_latencies

TURNS: Final = 10
"""Of an episode, where neither the user nor a file says."""


@dataclass(frozen=True, slots=True)
class Source:
    """Latencies, and what is known about them."""

    latencies: Latencies
    origin: str
    """Where they come from, in words."""
    measured: MeasuredLatencies | None = None
    """The file, if they were measured."""


def latency_source(latency: str, *, step: str = "", turns: int = 0) -> Source:
    """Settle the latencies of a simulation.

    Args:
        latency: of completions: a name, or a measured file.
        step: of environment steps, likewise; "" = the file's, or none.
        turns: of each episode; 0 = the file's, or `TURNS`.

    Raises:
        ConfigError: neither a name nor a file that can be read.
        BadDataFile: the file is not one of latencies.
    """
    measured = _file(latency)
    if measured is None:
        generate = named_latency(latency)
        origin = PRESETS[latency].origin if latency in PRESETS else "as written"
        steps = opening = NO_TIME
        take: Callable[[float], int] = _always(turns or TURNS)
    else:
        generate = MeasuredLatency(measured.generate)
        steps, opening = MeasuredLatency(measured.step), MeasuredLatency(measured.open)
        take = _always(turns) if turns else MeasuredTurns(measured.turns).at
        at = f" at concurrency {measured.concurrency}" if measured.concurrency else ""
        origin = f"measured in {measured.source or latency} over {measured.episodes} episodes{at}"
    if step:
        other = _file(step)
        steps = MeasuredLatency(other.step) if other is not None else named_latency(step)
    return Source(
        Latencies(generate=generate, step=steps, open=opening, turns=take), origin, measured
    )


def _always(turns: int) -> Callable[[float], int]:
    if turns < 1:
        raise ConfigError(f"turns must be at least 1, not {turns}")
    return lambda _: turns


def _file(text: str) -> MeasuredLatencies | None:
    """Read a measured file; None if the text is a name."""
    name = text.partition("?")[0]
    if name in DISTRIBUTIONS or name in PRESETS or not (path := Path(text)).is_file():
        return None
    return read_latencies(path)

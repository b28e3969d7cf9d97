"""Latencies by name: a distribution with its parameters, or a preset.

    lognormal?median=0.8&sigma=1      what is not given keeps the default of `DISTRIBUTIONS`
    reasoning                         a preset; `PRESETS` says where its figures come from

Invariant: whatever is written, the latency is finite and not negative, or the text is
refused with what would be right.

Not here: the distributions (`backends.latency`), measured ones (`measured`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Final
from urllib.parse import parse_qsl

from ...engine.errors import ConfigError
from ..backends.latency import ConstantLatency, Latency, LogNormalLatency, UniformLatency


@dataclass(frozen=True, slots=True)
class Preset:
    """A named latency, and where its figures come from."""

    latency: Latency
    origin: str


DISTRIBUTIONS: Final[Mapping[str, Latency]] = {
    "constant": ConstantLatency(0.02),
    "uniform": UniformLatency(0.5, 1.5),
    "lognormal": LogNormalLatency(0.8, 1.0),
}
"""By name, with their defaults."""

PRESETS: Final[Mapping[str, Preset]] = {
    "none": Preset(ConstantLatency(0.0), "no time at all: only the order of events is left"),
    "bench": Preset(
        ConstantLatency(0.02), "assumed: the 20 ms of `rollwave bench engine`, without any spread"
    ),
    "answers": Preset(
        LogNormalLatency(0.8, 1.0, 120.0),
        "assumed: short answers of a served model; one in a hundred takes ten times the median",
    ),
    "reasoning": Preset(
        LogNormalLatency(8.0, 1.2, 110.0),
        "assumed: answers after a long thought, cut below the default deadline of a turn",
    ),
    "shell": Preset(
        LogNormalLatency(0.05, 1.5, 30.0),
        "assumed: commands in a sandbox; most are quick, one in a hundred takes 33 times the "
        "median",
    ),
}


def named_latency(text: str) -> Latency:
    """Read `name` or `name?parameter=value&…`.

    Raises:
        ConfigError: the name or a parameter is unknown, or a value cannot be one.
    """
    name, mark, query = text.partition("?")
    if name in PRESETS:
        if mark:
            raise ConfigError(
                f"latency {name} takes no parameters; write a distribution with yours, one of "
                + ", ".join(DISTRIBUTIONS)
            )
        return PRESETS[name].latency
    if name not in DISTRIBUTIONS:
        known = [*DISTRIBUTIONS, *PRESETS]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"latency {text!r} is neither a file nor a name we know; {hint}")
    default = DISTRIBUTIONS[name]
    return type(default)(**(_defaults(default) | _parameters(name, default, query)))


def describe(latency: Latency) -> str:
    """A named latency as one writes it; presets by what they stand for."""
    name = next(name for name, default in DISTRIBUTIONS.items() if type(latency) is type(default))
    values = "&".join(f"{k}={v:g}" for k, v in _defaults(latency).items() if math.isfinite(v))
    return f"{name}?{values}"


def _defaults(latency: Latency) -> dict[str, float]:
    return {field.name: getattr(latency, field.name) for field in fields(latency)}  # type: ignore[arg-type]


def _parameters(name: str, default: Latency, query: str) -> dict[str, float]:
    """Read `a=1&b=2` for this distribution."""
    known = _defaults(default)
    given: dict[str, float] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ConfigError(
            f"latency {name}: write parameters as ?name=value&…, not ?{query} (and quote the "
            "whole for the shell)"
        ) from None
    for key, text in pairs:
        if key not in known:
            raise ConfigError(f"latency {name} has no parameter {key!r}; it has {', '.join(known)}")
        if key in given:
            raise ConfigError(f"latency {name}: {key} is given twice")
        try:
            given[key] = float(text)
        except ValueError:
            raise ConfigError(f"latency {name}: {key} takes seconds, not {text!r}") from None
        if math.isnan(given[key]):
            raise ConfigError(f"latency {name}: {key} takes a number, not {text!r}")
    return given

"""Every latency of a simulation, drawn before it begins.

Draws hang on the seed and the episode's number alone, so that scheduling, faults and the
number of replicas change none of them: what is compared (continuous with lock-step, one
replica with eight) has the same draws, and lower bounds are exact.

Invariant: episode n of two tables under one seed has the same draws, however many
episodes either has.

Not here: who waits for them (`world`, `replicas`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from struct import Struct
from typing import Final

from ..backends.latency import ConstantLatency, Latency

NO_TIME: Final[Latency] = ConstantLatency(0.0)

_WORDS: Final = Struct("<8Q")
_ONE: Final = 2.0**-64
_LARGEST: Final = 1.0 - 2.0**-53
"""Below 1: a word of all ones would round to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """What a simulated episode waits for."""

    generate: Latency
    """A completion. `per_request`: what each request on a replica adds to a new one."""
    step: Latency = NO_TIME
    """A step of the environment."""
    open: Latency = NO_TIME
    """Making and resetting the environment."""
    turns: Callable[[float], int]
    """Turns of an episode, by a share in [0, 1)."""


class Draws:
    """The draws of every episode; seconds."""

    __slots__ = ("_offsets", "generate", "open", "step")

    def __init__(self, latencies: Latencies, sessions: int, seed: int) -> None:
        self.open: Final = array("d")
        self.generate: Final = array("d")
        """Of all turns of episode 0, then of episode 1, and so on."""
        self.step: Final = array("d")
        self._offsets = array("q", [0])
        generate, step = latencies.generate.at, latencies.step.at
        still = isinstance(latencies.step, ConstantLatency)
        at_rest = step(0.0)
        for number in range(sessions):
            share = shares(seed, number)
            turns = latencies.turns(next(share))
            self.open.append(latencies.open.at(next(share)))
            self.generate.extend(map(generate, islice(share, turns)))
            self.step.extend([at_rest] * turns if still else map(step, islice(share, turns)))
            self._offsets.append(len(self.generate))

    def __len__(self) -> int:
        """Episodes."""
        return len(self.open)

    def turns(self, episode: int) -> int:
        """Turns of that episode."""
        return self._offsets[episode + 1] - self._offsets[episode]

    def first(self, episode: int) -> int:
        """Where its turns begin in `generate` and `step`."""
        return self._offsets[episode]

    @property
    def longest(self) -> int:
        """Most turns of an episode."""
        return max((self.turns(episode) for episode in range(len(self))), default=0)


def shares(seed: int, episode: int) -> Iterator[float]:
    """Evenly drawn numbers in [0, 1) without end, eight to a hash."""
    key = (seed % 2**64).to_bytes(8, "little") + episode.to_bytes(8, "little")
    block = 0
    while True:
        digest = blake2b(block.to_bytes(8, "little"), digest_size=64, key=key, person=b"latency")
        for word in _WORDS.unpack(digest.digest()):
            yield min(word * _ONE, _LARGEST)
        block += 1

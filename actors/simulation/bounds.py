"""What no schedule can beat, and what waves in lock-step would take. All in seconds.

**The lower bound** is the largest of three, each true of every schedule that gives an
episode a permit while it lasts and a request a slot while it runs:

    permits   all waiting there was ÷ permits: a permit serves one episode at a time
    slots     all completions ÷ (replicas × batch): a slot serves one request at a time
    episode   the longest episode: its turns follow each other

With heavy tails the third is what remains however much is bought.

**Lock-step** plays groups of as many episodes as there are permits: all resets, then all
completions of turn 0, then all its steps, and so on; each phase waits for its slowest. With
a slot for every request, continuous admission is never slower for the same draws: every
episode of a group has begun, at the latest, when in lock-step its group would. Where slots
are scarce that is no theorem, since a request may take the slot from a longer episode.

Not here: the draws (`draws`), what the engine itself took (`simulation`).
"""

from __future__ import annotations

from dataclasses import dataclass

from .draws import Draws
from .slots import Slots


@dataclass(frozen=True, slots=True)
class LowerBound:
    """The three bounds, in seconds."""

    permits: float
    slots: float
    """0 where slots are without bound."""
    episode: float

    @property
    def seconds(self) -> float:
        """The largest: what was the limit."""
        return max(self.permits, self.slots, self.episode)

    @property
    def limit(self) -> str:
        """Which of them it is, in words."""
        named = {
            self.episode: "the longest episode",
            self.slots: "the slots of the replicas",
            self.permits: "the permits (--concurrency)",
        }
        return named[self.seconds]


class Demand:
    """What each episode waited for and got: the work that any schedule has to do."""

    def __init__(self, sessions: int) -> None:
        self.episodes = [0.0] * sessions
        """Seconds by episode: resets, steps and completions that came to their end."""
        self.slots = 0.0
        """Seconds of all completions that came to their end."""

    def lower_bound(self, concurrency: int, slots: int) -> LowerBound:
        """With so many permits and slots (0 = without bound)."""
        return LowerBound(
            permits=sum(self.episodes) / concurrency,
            slots=self.slots / slots if slots else 0.0,
            episode=max(self.episodes, default=0.0),
        )


def lock_step_seconds(
    draws: Draws, concurrency: int, replicas: int, batch: int, per_request: float
) -> float:
    """What all episodes take in lock-step groups, from the same draws, exactly."""
    total = 0.0
    for begin in range(0, len(draws), concurrency):
        group = range(begin, min(begin + concurrency, len(draws)))
        total += max(draws.open[episode] for episode in group)
        for turn in range(max(draws.turns(episode) for episode in group)):
            places = [draws.first(e) + turn for e in group if turn < draws.turns(e)]
            total += _phase([draws.generate[at] for at in places], replicas, batch, per_request)
            total += max(draws.step[at] for at in places)
    return total


def _phase(seconds: list[float], replicas: int, batch: int, per_request: float) -> float:
    """Until the last of these requests, all placed at once, has ended."""
    if not per_request and (not batch or len(seconds) <= batch):
        return max(seconds)
    slots: Slots[None] = Slots(replicas, batch, per_request)
    for each in seconds:
        slots.place(None, each, 0.0)
    end = 0.0
    while slots.running:
        end = max(end, slots.pop()[0])
    return end

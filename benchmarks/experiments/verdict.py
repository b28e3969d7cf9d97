"""What the runs say about the claims: each contrast, corrected for how many there are.

    supports      the interval lies above 0, and so does the mean after Holm's correction
    contradicts   the interval lies below 0, likewise
    open          neither; the text says how many seeds such a mean would need

Invariant: every test of every experiment that is judged together counts in the correction,
those that found nothing too.

Not here: running (`runs`), and the page that shows it (`page`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from .experiment import Arm, Experiment, Term, Test
from .runs import Outcome
from .statistics import Contrast, holm

Word = Literal["supports", "contradicts", "open"]

LEVEL: Final = 0.05

Find = Callable[[Arm, int], Outcome | None]
"""Gives the finished run of an arm and a seed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One test, judged."""

    experiment: Experiment
    test: Test
    contrast: Contrast
    corrected: float
    """p-value after Holm's correction over all tests that were judged together."""

    @property
    def word(self) -> Word:
        """What it says about the claim."""
        contrast = self.contrast
        if self.corrected < LEVEL and contrast.low > 0:
            return "supports"
        if self.corrected < LEVEL and contrast.high < 0:
            return "contradicts"
        return "open"


def finished(experiment: Experiment, find: Find) -> list[int]:
    """Seeds of which every arm is there."""
    return [
        seed
        for seed in range(experiment.seeds)
        if all(find(Arm.of(experiment, name), seed) is not None for name in experiment.arms)
    ]


def judge(experiments: Sequence[Experiment], find: Find) -> list[Verdict]:
    """Judge every test of these experiments on the seeds that are finished."""
    rows: list[tuple[Experiment, Test, Contrast]] = []
    for experiment in experiments:
        seeds = finished(experiment, find)
        for test in experiment.tests if len(seeds) > 1 else ():
            values = list(_values(experiment, test, seeds, find))
            if len(values) > 1:
                rows.append((experiment, test, Contrast.of(values)))
    corrected = holm([contrast.p for _, _, contrast in rows])
    return [Verdict(*row, p) for row, p in zip(rows, corrected, strict=True)]


def _values(
    experiment: Experiment, test: Test, seeds: Sequence[int], find: Find
) -> Iterator[float]:
    """The contrast of every seed that has the figure: a run that ended before it learned has
    none of learning. How many seeds are left, the table says."""
    for seed in seeds:
        with suppress(LookupError):
            yield contrast_of(experiment, test.terms, seed, find)


def contrast_of(experiment: Experiment, terms: Sequence[Term], seed: int, find: Find) -> float:
    """The weighted sum of a seed's figures, in the test's unit."""
    total = 0.0
    for term in terms:
        outcome = find(Arm.of(experiment, term.arm), seed)
        if outcome is None:
            raise LookupError(f"{experiment.id}: {term.arm}, seed {seed} is not finished")
        total += term.weight * outcome.at(term.wave, chosen=term.chosen, metric=term.metric)
    return total

"""The guess that tells most about the hidden word, as far as a bounded search finds it.

The information of a guess is the entropy of the cells into which its answer splits
the words that are left. Not every guess is tried: at most `_TRIED` of the words
left and as many probes that cannot be right but ask for the letters that divide
best. That bounds a step to about 2 ms, and answers are shared between sessions.

Invariant: the advice is a word of the vocabulary; with one guess or at most two
words left it is one of the words left.

Not here: the game (`environment`).
"""

from __future__ import annotations

from functools import lru_cache
from math import log2
from typing import Final

from .vocabulary import Vocabulary, WordSet

_TRIED: Final = 24
_SCREENED: Final = 256
"""Words whose letters are looked at to choose the ones tried."""


@lru_cache(maxsize=16384)
def advise(vocabulary: Vocabulary, left: WordSet, last_guess: bool) -> str:
    """The word to guess while `left` (not empty) are the words that fit all feedback."""
    first = next(vocabulary.spread(left, 1))
    if last_guess or left.bit_count() <= 2:
        return first
    weights = _weights(vocabulary, left)
    fitting = _best(list(vocabulary.spread(left, _SCREENED)), weights)
    probes = _best(list(vocabulary.spread(vocabulary.all, _SCREENED)), weights)
    tried = dict.fromkeys((*fitting, *probes))
    # max keeps the first of equals, so a word that may be right goes before a probe.
    return max(tried, key=lambda word: information(vocabulary, left, word))


def information(vocabulary: Vocabulary, left: WordSet, guess: str) -> float:
    """Expected bits that the answer to `guess` gives about which of `left` is hidden."""
    total = left.bit_count()
    sizes = [cell.bit_count() for cell in vocabulary.split(left, guess)]
    return log2(total) - sum(size * log2(size) for size in sizes) / total


def _weights(vocabulary: Vocabulary, left: WordSet) -> dict[str, float]:
    """How evenly each letter's presence divides the words left, 0 to 0.25."""
    total = left.bit_count()
    shares = {
        letter: (left & vocabulary.holding(letter)).bit_count() / total
        for letter in "abcdefghijklmnopqrstuvwxyz"
    }
    return {letter: share * (1 - share) for letter, share in shares.items()}


def _best(words: list[str], weights: dict[str, float]) -> list[str]:
    """The `_TRIED` words whose distinct letters divide best."""
    words.sort(key=lambda word: -sum(weights[letter] for letter in set(word)))
    return words[:_TRIED]

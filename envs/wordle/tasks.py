"""Which games there are: the words in play, and where the hidden word comes from.

The shipped lists are SCOWL's (see LICENSE-words.txt): 3,554 common words and 1,081
rarer ones. The published data were played on another list, which is not shipped;
`listed` takes any list, so that they can be replayed.

`wordle-v1`: the task's number seeds the draws. The unseen split is played with
other words. `wordle-fixed-v1`: the number is a position in the list of words to
hide. Its unseen split hides rarer words, or words of another list where the words
in play are limited.

Invariant: splits are disjoint in what makes a game: the seed of its draws, or its
hidden word.

Not here: sessions (`environment`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ...engine.errors import ConfigError
from ...engine.seeds import derive
from .vocabulary import Vocabulary, WordSet, load, vocabulary

MOST_WORDS: Final = 1500
"""Largest list that a prompt spells out; two disjoint ones fit into the common words."""

_IN_PROMPT: Final = ("shire", "panic", "felon", "frown")
"""The prompt's example uses them, so every list has them."""


@dataclass(frozen=True, slots=True)
class Game:
    """One task."""

    vocabulary: Vocabulary
    listed: bool
    """Whether the prompt spells the vocabulary out."""
    hidden: int | None
    """Number of the hidden word; None if it is drawn anew each turn."""
    seed: int
    """Seed of the draws."""

    def draw(self, left: WordSet, turn: int) -> int:
        """The number of the word that is hidden in this turn."""
        if self.hidden is not None:
            return self.hidden
        return self.vocabulary.nth(left, derive(self.seed, turn) % left.bit_count())


Games = Callable[[int], Game]
"""From a task's number to its game; raises ConfigError for a number without one."""


def listed(words: Sequence[str], *, redraw: bool) -> Games:
    """Games on a list of one's own: any number, or with a fixed word, the number of a word."""
    known = vocabulary(tuple(words))

    def game(index: int) -> Game:
        if index < 0 or (not redraw and index >= len(known)):
            raise ConfigError(f"this Wordle has words 0 to {len(known) - 1}, not {index}")
        return Game(known, True, None if redraw else index, derive(0, "wordle", index))

    return game


REDRAWN_SPLITS: Final[Mapping[str, range]] = {
    "train": range(4000),
    "dev": range(4000, 4500),
    "test": range(4500, 5500),
    "unseen": range(5500, 6500),
}


def redrawn(words: int) -> tuple[Games, Mapping[str, range]]:
    """The games of `wordle-v1` with so many words in play, and their splits."""
    unseen = REDRAWN_SPLITS["unseen"]

    def game(index: int) -> Game:
        if not 0 <= index < unseen.stop:
            raise ConfigError(f"wordle-v1 has tasks 0 to {unseen.stop - 1}, not {index}")
        known = vocabulary(_word_list(words, 1 if index in unseen else 0))
        return Game(known, True, None, derive(0, "wordle", index))

    return game, REDRAWN_SPLITS


def fixed(words: int) -> tuple[Games, Mapping[str, range]]:
    """The games of `wordle-fixed-v1` and their splits; 0 words means the whole lists."""
    if words:
        seen, unseen = _word_list(words, 0), _word_list(words, 1)[: max(1, words // 4)]
    else:
        seen, unseen = _shuffled("common"), _shuffled("rare")
    train, dev = len(seen) * 6 // 10, len(seen) * 75 // 100
    splits = {
        "train": range(train),
        "dev": range(train, dev),
        "test": range(dev, len(seen)),
        "unseen": range(len(seen), len(seen) + len(unseen)),
    }

    def game(index: int) -> Game:
        if not 0 <= index < splits["unseen"].stop:
            last = splits["unseen"].stop - 1
            raise ConfigError(f"wordle-fixed-v1 has tasks 0 to {last}, not {index}")
        rest = index - len(seen)
        word = seen[index] if rest < 0 else unseen[rest]
        in_play = _word_list(words, 0 if rest < 0 else 1) if words else (*seen, *unseen)
        known = vocabulary(in_play)
        return Game(known, bool(words), known.index[word], 0)

    return game, splits


@lru_cache(maxsize=2)
def _shuffled(name: str) -> tuple[str, ...]:
    """A shipped list, ordered by hash: the same on every version of Python."""
    return tuple(sorted(load(name), key=lambda word: derive(0, "wordle", word)))


@lru_cache(maxsize=16)
def _word_list(words: int, which: int) -> tuple[str, ...]:
    """The first or second list of so many common words; they share only the prompt's own."""
    others = [word for word in _shuffled("common") if word not in _IN_PROMPT]
    count = words - len(_IN_PROMPT)
    picked = others[which * count : (which + 1) * count]
    return tuple(sorted((*_IN_PROMPT, *picked), key=lambda word: derive(which, word)))

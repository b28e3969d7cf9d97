"""A list of five-letter words, and sets of them as bits of one integer.

What is left after some feedback is a set of words; as the bits of an integer a
guess splits it with a few ANDs, where a loop over the words costs milliseconds.

The feedback rule is AgentGym's: a letter is "y" if it stands anywhere in the
hidden word, however often it was guessed. (The newspaper's rule counts letters;
of the published games it contradicts more than a quarter.)

Invariant: `split` divides a set into disjoint, non-empty cells whose union is the
set, one for each feedback that the guess can get.

Not here: whose turn it is (`environment`), which words are hidden (`tasks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from typing import Final

from ...engine.errors import ConfigError

LENGTH: Final = 5

WordSet = int
"""A set of words of one vocabulary: bit i is word i."""


def feedback(guess: str, hidden: str) -> str:
    """Marks for a guess, one letter a position: g in place, y elsewhere in the word, b absent."""
    return "".join(
        "g" if letter == there else "y" if letter in hidden else "b"
        for letter, there in zip(guess, hidden, strict=True)
    )


class Vocabulary:
    """Words in a fixed order. Immutable; shared by every session that uses the same list."""

    def __init__(self, words: Sequence[str]) -> None:
        """Raises ConfigError if there is no word, one is not five letters a-z, or one is double."""
        self.words: Final = tuple(words)
        self.index: Final = {word: number for number, word in enumerate(self.words)}
        if not self.words or len(self.index) != len(self.words):
            raise ConfigError("a Wordle vocabulary needs at least one word, and each only once")
        self.all: Final[WordSet] = (1 << len(self.words)) - 1
        self.digest: Final = blake2b("\n".join(self.words).encode(), digest_size=8).digest()
        self.spelled: Final = tuple(" ".join(word) for word in self.words)
        """The words as agents write them: "c r a n e"."""
        self._at: list[dict[str, WordSet]] = [{} for _ in range(LENGTH)]
        self._with: dict[str, WordSet] = {}
        for number, word in enumerate(self.words):
            if len(word) != LENGTH or not (word.isascii() and word.isalpha() and word.islower()):
                raise ConfigError(f"not a word of five letters a-z: {word!r}")
            for place, letter in enumerate(word):
                self._at[place][letter] = self._at[place].get(letter, 0) | 1 << number
                self._with[letter] = self._with.get(letter, 0) | 1 << number

    def __len__(self) -> int:
        return len(self.words)

    def holding(self, letter: str) -> WordSet:
        """The words that have the letter anywhere."""
        return self._with.get(letter, 0)

    def consistent(self, words: WordSet, guess: str, marks: str) -> WordSet:
        """The members of `words` that would answer `guess` with `marks`."""
        for place, (letter, mark) in enumerate(zip(guess, marks, strict=True)):
            here, anywhere = self._at[place].get(letter, 0), self._with.get(letter, 0)
            if mark == "g":
                words &= here
            elif mark == "y":
                words &= anywhere & ~here
            else:
                words &= ~anywhere
        return words

    def split(self, words: WordSet, guess: str) -> list[WordSet]:
        """The cells into which the answer to `guess` divides the set."""
        cells = [words] if words else []
        for place, letter in enumerate(guess):
            here, anywhere = self._at[place].get(letter, 0), self._with.get(letter, 0)
            finer = []
            for cell in cells:
                green = cell & here
                rest = cell ^ green
                yellow = rest & anywhere
                finer += [part for part in (green, yellow, rest ^ yellow) if part]
            cells = finer
        return cells

    def nth(self, words: WordSet, n: int) -> int:
        """Number of the n-th member, by halving: about twelve counts for thousands of words."""
        if not 0 <= n < words.bit_count():
            raise IndexError(n)
        base, width = 0, len(self.words)
        while width > 1:
            half = width // 2
            low = words & ((1 << half) - 1)
            count = low.bit_count()
            if n < count:
                words, width = low, half
            else:
                n, words, base, width = n - count, words >> half, base + half, width - half
        return base

    def spread(self, words: WordSet, limit: int) -> Iterator[str]:
        """At most `limit` members, evenly spaced over the set."""
        count = words.bit_count()
        for step in range(min(count, limit)):
            yield self.words[self.nth(words, step * count // min(count, limit))]


@lru_cache(maxsize=64)
def vocabulary(words: tuple[str, ...]) -> Vocabulary:
    """The shared vocabulary of these words."""
    return Vocabulary(words)


@lru_cache(maxsize=2)
def load(name: str) -> tuple[str, ...]:
    """A word list shipped beside this file, "common" or "rare", in alphabetical order."""
    return tuple((files(__package__) / f"{name}.txt").read_text("ascii").split())

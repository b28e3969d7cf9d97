"""One game of Wordle: six guesses at a five-letter word.

A guess is five letters, with or without spaces. It is answered with five marks,
"b y g g b"; anything else with "invalid word", which costs a guess too. Reward 1
for the hidden word, and the episode ends; without it after the last guess the
episode ends too.

Where the hidden word is drawn anew, it is drawn each turn from the words that fit
every answer so far, before the guess is looked at. No answer contradicts an
earlier one, and a game is won when the guess is the word just drawn.

Invariant: the words left are never none, and always hold the hidden word.

Not here: words (`vocabulary`), which games there are (`tasks`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...engine.codec import Message, decoder, encode
from ...engine.errors import ConfigError, EnvironmentFault, MessageError
from ..base import Environment, StepResult, Task
from .expert import advise
from .prompts import opening
from .tasks import Game, Games, listed
from .vocabulary import LENGTH, WordSet, feedback

_INVALID = "invalid word"


class WordleState(Message, frozen=True):
    """A snapshot. The words themselves are named by their digest."""

    task: int
    words: bytes
    turn: int
    left: bytes
    observation: str
    over: bool


class Wordle(Environment):
    """A session.

    `Wordle(words=[…])` plays on a list of one's own: its task numbers seed the draws,
    or with `redraw=False` are the positions of the hidden words.
    """

    __slots__ = (
        "_closed",
        "_game",
        "_games",
        "_guesses",
        "_left",
        "_over",
        "_said",
        "_task",
        "_turn",
    )

    def __init__(
        self,
        games: Games | None = None,
        *,
        words: Sequence[str] = (),
        redraw: bool = True,
        guesses: int = 6,
    ) -> None:
        if (games is None) == (not words):
            raise ConfigError("give Wordle either games or a list of words")
        self._games = games or listed(words, redraw=redraw)
        self._guesses = guesses
        self._game: Game | None = None
        self._task = 0
        self._turn = 0
        self._left: WordSet = 0
        self._said = ""
        self._over = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this Wordle session is closed; make a new one")
        self._game = self._games(task.index)
        self._task, self._turn, self._over = task.index, 0, False
        self._left = self._game.vocabulary.all
        self._said = opening(self._game.vocabulary, self._game.listed)
        return self._said

    def step(self, action: str) -> StepResult:
        game = self._started()
        if self._over:
            raise EnvironmentFault("this game of Wordle is over; reset it first")
        guess = "".join(action.split()).lower() if len(action) < 8 * LENGTH else ""
        number = game.vocabulary.index.get(guess)
        success = False
        if number is None:
            self._said = _INVALID
        else:
            hidden = game.draw(self._left, self._turn)
            marks = feedback(guess, game.vocabulary.words[hidden])
            self._left = game.vocabulary.consistent(self._left, guess, marks)
            self._said = " ".join(marks) + "\n"
            success = number == hidden
        self._turn += 1
        self._over = success or self._turn >= self._guesses
        return StepResult(self._said, float(success), self._over, success=success)

    def observation(self) -> str:
        self._started()
        return self._said

    def available_actions(self) -> Sequence[str]:
        game = self._started()
        return () if self._over else game.vocabulary.spelled

    def expert(self) -> str | None:
        game = self._started()
        if self._over:
            return None
        return " ".join(advise(game.vocabulary, self._left, self._turn + 1 >= self._guesses))

    def secrets(self) -> Sequence[str]:
        game = self._started()
        if game.hidden is None or game.listed:
            return ()
        word = game.vocabulary.words[game.hidden]
        return (word, " ".join(word))

    def snapshot(self) -> bytes:
        game = self._started()
        left = self._left.to_bytes((len(game.vocabulary) + 7) // 8, "little")
        said = self._said if self._turn else ""
        return encode(
            WordleState(self._task, game.vocabulary.digest, self._turn, left, said, self._over)
        )

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this Wordle session is closed; make a new one")
        try:
            s = decoder(WordleState).decode(state)
            game = self._games(s.task)
        except (MessageError, ConfigError) as error:
            raise EnvironmentFault(f"not a snapshot of this Wordle: {error}") from None
        left = int.from_bytes(s.left, "little")
        if s.words != game.vocabulary.digest or not 0 < left <= game.vocabulary.all:
            raise EnvironmentFault("not a snapshot of this Wordle: it was taken on other words")
        self._game, self._task, self._turn, self._left = game, s.task, s.turn, left
        self._said = s.observation if s.turn else opening(game.vocabulary, game.listed)
        self._over = s.over

    def close(self) -> None:
        self._closed = True
        self._game = None

    def _started(self) -> Game:
        if self._game is None:
            state = "closed; make a new one" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this Wordle session is {state}")
        return self._game

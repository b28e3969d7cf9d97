"""How each world takes up a published trajectory, so that its actions can be played again.

Published item numbers do not always mean today's tasks, and texts were edited on their
way into the data. What is done about it, world by world:

* TextCraft: the numbers followed the order of files on a disk. The task is read off the
  first observation instead: commands and goal. A command that is not in the recipe table
  is left out, so that the first observation then differs. Published observations begin
  with "Instruction:" on a line of its own, which is taken off.
* Maze: numbers mean the same start.
* Wordle: the vocabulary is read off the prompt. Nothing recoverable seeded the draws of
  the hidden word, so each draw is the first word that explains the published answer, and
  the last draw, whose answer is not published, is the guess; where no word that is left
  explains it, the answer differs. Equal therefore means: possible under the rules.
* BabyAI: numbers mean the same tasks. The server's own scoring is played, under which the
  episodes went on and ended; what they earned is not 1 but more than half.
* SciWorld: numbers mean the same tasks by the numbering "data". The data were made in the
  "easy" worlds of an older release, which had a few other names (`wording=published`), and
  listed things in no fixed order, so listings are compared as sets. The published
  solutions go on to wait once where the world has ended already.
* Any other world: the number is the task's.

Invariant: a playback decides which task is played and, in Wordle, which possible word is
drawn; every answer and reward comes from the world.

Not here: comparing (`envs.replay`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ...engine.errors import ConfigError
from ..base import Environment, Task
from ..formats import React
from ..registry import resolve
from ..sciworld.wording import unordered
from ..textcraft import TextCraft
from ..textcraft.recipes import load_recipes
from ..textcraft.tasks import goals, parse_observation
from ..wordle import Wordle
from ..wordle.tasks import Game
from ..wordle.vocabulary import WordSet, vocabulary
from .trajectories import Published

_WORDS: Final = re.compile(r"```\n((?:[a-z]{5}\n)+)```")
_REACT: Final = React()


def action_of(completion: str) -> str:
    """The action in a published completion; empty where there is none, as AgentGym reads it."""
    return _REACT.parse(completion).action or ""


class Playback(ABC):
    """One world's way to take up published trajectories."""

    @abstractmethod
    def open(self, episode: Published) -> tuple[Environment, str]:
        """Start a session on the episode's task; return it with its first observation.

        Raises:
            ConfigError: the episode is not one of this world.
        """

    def text(self, published: str) -> str:
        """A published observation without what was added to it on the way into the data."""
        return published

    def same(self, published: str, answered: str) -> bool:
        """Whether an answer is the published one (which went through `text`)."""
        return published == answered

    @property
    def solved(self) -> tuple[float, float]:
        """Least and most that an episode earns which was published as solved."""
        return 1.0, 1.0

    @property
    def spare(self) -> int:
        """Actions that a published episode may have behind the end."""
        return 0


class Numbered(Playback):
    """A world whose task numbers are the item numbers."""

    def __init__(self, env: str) -> None:
        self._spec = resolve(env)

    def open(self, episode: Published) -> tuple[Environment, str]:
        session = self._spec.make()
        return session, session.reset(Task(self._spec.id, episode.number), 0)


class BabyAIPlayback(Numbered):
    """BabyAI: the later it is solved, the less it earns; half and less does not count."""

    @property
    def solved(self) -> tuple[float, float]:
        return 0.5, 1.0


class SciWorldPlayback(Numbered):
    """SciWorld: listings may be in another order, and a solution waits once too often."""

    def same(self, published: str, answered: str) -> bool:
        return published == answered or unordered(published) == unordered(answered)

    @property
    def spare(self) -> int:
        return 1


class TextCraftPlayback(Playback):
    """TextCraft: the task is in the first observation."""

    _ADDED: Final = "Instruction:\n"

    def open(self, episode: Published) -> tuple[Environment, str]:
        commands, goal = parse_observation(self.text(episode.turns[0][0]))
        known = {recipe.command for recipe in load_recipes()}
        kept = [command for command in commands if command in known]
        if goal not in goals():
            raise ConfigError(f"no recipe of Minecraft 1.16 crafts the goal {goal[:60]!r}")
        session = TextCraft.from_published(kept, goal)
        return session, session.observation()

    def text(self, published: str) -> str:
        return published.removeprefix(self._ADDED)


@dataclass(frozen=True, slots=True)
class _Led(Game):
    """A game whose draws follow published answers, as far as the rules allow."""

    guesses: tuple[str, ...] = ()
    answers: tuple[str | None, ...] = ()

    def draw(self, left: WordSet, turn: int) -> int:
        guess, answer = self.guesses[turn], self.answers[turn]
        # Without a published answer: a win, if that is possible.
        marks = "g" * len(guess) if answer is None else "".join(answer.split())
        if len(marks) == len(guess):
            left = self.vocabulary.consistent(left, guess, marks) or left
        return self.vocabulary.nth(left, 0)


class WordlePlayback(Playback):
    """Wordle: the words are in the prompt, and the draws follow the published answers."""

    def open(self, episode: Published) -> tuple[Environment, str]:
        match = _WORDS.search(episode.turns[0][0])
        if match is None:
            raise ConfigError("the first observation lists no words")
        guesses = tuple("".join(action_of(said).split()).lower() for _, said in episode.turns)
        answers = (*(seen for seen, _ in episode.turns[1:]), episode.final_observation)
        game = _Led(vocabulary(tuple(match[1].split())), True, None, 0, guesses, answers)
        session = Wordle(lambda _: game)
        return session, session.reset(Task("wordle-v1", episode.number), 0)


PLAYBACKS: Final[Mapping[str, Callable[[], Playback]]] = {
    "babyai": lambda: BabyAIPlayback("babyai-v1?scoring=agentgym"),
    "sciworld": lambda: SciWorldPlayback("sciworld-v1?simplification=easy&wording=published"),
    "textcraft": TextCraftPlayback,
    "lmrlgym_maze": lambda: Numbered("maze-v1"),
    "maze": lambda: Numbered("maze-v1"),
    "lmrlgym_wordle": WordlePlayback,
    "wordle": WordlePlayback,
}
"""By the environment's part of an item id, as published."""


def playback(env: str) -> Playback:
    """The playback for an item id's environment, or for an environment id of the registry.

    Raises:
        ConfigError: there is no such environment here; `UnknownEnvironment` names the nearest.
    """
    if env.startswith("babyai-v"):
        return BabyAIPlayback(env)  # with the options that were asked for
    if env.startswith("sciworld-v"):
        return SciWorldPlayback(env)
    family = re.sub(r"-v[0-9]+$", "", env)
    return PLAYBACKS[family]() if family in PLAYBACKS else Numbered(env)

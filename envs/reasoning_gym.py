"""One question a task, from the `reasoning-gym` package (`reasoning-gym-v1`). Needs that extra.

The option `dataset` names one of its generators; the answer is scored by the generator's own
rule. An episode is one turn: whatever is said is the answer.

Invariant: task number n is the question that the generator gives with seed n, in every process;
and what a model wrote is never run. Not every generator allows that, so only those of
`DATASETS` are taken; for release 0.1.25 the others are:

* they evaluate the answer as Python, directly or through sympy's `parse_expr`: binary_matrix,
  countdown, intermediate_integration, n_queens, polynomial_multiplication, puzzle24,
  simple_integration, spiral_matrix, string_insertion; and codeio runs programs;
* their questions change with Python's hash seed or with what was asked before:
  isomorphic_strings, list_functions, ransom_note, word_ladder;
* they know no answer that they score as right: boxnet, graph_color, propositional_logic,
  rubiks_cube, rush_hour;
* one question takes a second or more to make: knight_swap, quantum_lock, sokoban;
* composite, which mixes others.

Not here: several questions in one episode.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

from ..engine.codec import Message, decoder, encode
from ..engine.errors import ConfigError, EnvironmentFault, MessageError, MissingDependency
from ..engine.trajectory import ChatMessage
from .base import EnvFamily, Environment, EnvSpec, StepResult, Task

SPLITS: Final[Mapping[str, range]] = {
    "train": range(10_000),
    "dev": range(10_000, 10_500),
    "test": range(10_500, 12_000),
}
_TASKS: Final = range(12_000)

DATASETS: Final[tuple[str, ...]] = (
    *("ab", "acre", "advanced_geometry", "aiw", "arc_1d", "arc_agi", "base_conversion"),
    *("basic_arithmetic", "bf", "binary_alternation", "bitwise_arithmetic", "caesar_cipher"),
    *("calendar_arithmetic", "chain_sum", "circuit_logic", "coin_flip", "color_cube_rotation"),
    *("complex_arithmetic", "count_bits", "count_primes", "course_schedule", "cryptarithm"),
    *("decimal_arithmetic", "decimal_chain_sum", "dice", "emoji_mystery", "family_relationships"),
    *("figlet_font", "fraction_simplification", "futoshiki", "game_of_life"),
    *("game_of_life_halting", "gcd", "group_anagrams", "gsm_symbolic", "jugs", "kakurasu"),
    *("knights_knaves", "largest_island", "lcm", "leg_counting", "letter_counting"),
    *("letter_jumble", "mahjong_puzzle", "manipulate_matrix", "maze", "mini_sudoku"),
    *("modulo_grid", "needle_haystack", "number_filtering", "number_format", "number_sequence"),
    *("number_sorting", "palindrome_generation", "palindrome_partitioning", "path_star"),
    *("polynomial_equations", "pool_matrix", "power_function", "prime_factorization", "products"),
    *("rearc", "rectangle_count", "rotate_matrix", "rotten_oranges", "self_reference"),
    *("sentence_reordering", "shortest_path", "simple_equations", "simple_geometry"),
    *("spell_backward", "string_manipulation", "string_splitting", "string_synthesis", "sudoku"),
    *("survo", "syllogism", "time_intervals", "tower_of_hanoi", "tsumego"),
    *("word_sequence_reversal", "word_sorting", "zebra_puzzles"),
)
"""The generators that are taken: each one's rule of scoring was read."""

PROMPT: Final = (
    ChatMessage(
        "user",
        "You will be asked one question. Think it over first, then answer once, in the form "
        "that the question asks for. Your response should use the following format:\n\n"
        "Thought:\n<your thoughts>\n\nAction:\n<your answer>",
    ),
    ChatMessage("assistant", "Understood.", False),
)

_LONGEST: Final = 20_000
"""Characters of an answer that are read: rules of scoring parse it."""


class QuestionState(Message, frozen=True):
    """A snapshot."""

    index: int
    said: str
    over: bool


class Question(Environment):
    """A session: one question."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._entry: dict[str, Any] | None = None
        self._rule: Any = None
        self._index = 0
        self._said = ""
        self._over = False
        self._closed = False

    def reset(self, task: Task, seed: int) -> str:
        if self._closed:
            raise EnvironmentFault("this session is closed; make a new one")
        if task.index not in _TASKS:
            raise ConfigError(f"reasoning-gym has tasks 0 to {_TASKS[-1]}, not {task.index}")
        self._ask(task.index)
        self._said = str(self._started()["question"])
        self._over = False
        return self._said

    def step(self, action: str) -> StepResult:
        entry = self._started()
        if self._over:
            raise EnvironmentFault("the question is answered; reset the session first")
        score = self._score(action[:_LONGEST].strip(), entry)
        self._over = True
        self._said = "Right." if score == 1 else "Wrong." if score == 0 else "Partly right."
        return StepResult(self._said, score, terminated=True, success=score == 1)

    def observation(self) -> str:
        self._started()
        return self._said

    def available_actions(self) -> Sequence[str]:
        """None: any text is an answer."""
        self._started()
        return ()

    def expert(self) -> str | None:
        entry = self._started()
        answer = entry["answer"]
        return None if self._over or answer is None else str(answer)

    def snapshot(self) -> bytes:
        self._started()
        return encode(QuestionState(self._index, self._said, self._over))

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this session is closed; make a new one")
        try:
            saved = decoder(QuestionState).decode(state)
        except MessageError as error:
            raise EnvironmentFault(f"not a snapshot of a question: {error}") from None
        if saved.index not in _TASKS:
            raise EnvironmentFault(f"not a snapshot of a question: no task {saved.index}")
        self._ask(saved.index)
        self._said, self._over = saved.said, saved.over

    def close(self) -> None:
        self._closed = True
        self._entry = None

    def _ask(self, index: int) -> None:
        self._rule = _package().create_dataset(self._dataset, size=1, seed=index)
        self._entry = self._rule[0]
        self._index = index

    def _score(self, answer: str, entry: dict[str, Any]) -> float:
        """What the answer is worth, 0 to 1. A rule that fails on it finds it wrong."""
        try:
            score = float(self._rule.score_answer(answer=answer, entry=entry))
        except Exception:  # noqa: BLE001 (rules parse what a model wrote, by whatever parser)
            return 0.0
        return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0

    def _started(self) -> dict[str, Any]:
        if self._entry is None:
            state = "closed" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this session is {state}")
        return self._entry


@cache
def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise MissingDependency(
            f"reasoning-gym-v1 needs reasoning-gym ({error}); install it with: "
            "pip install 'rollwave[reasoning-gym]'"
        ) from None


def _build(*, id: str, dataset: str) -> EnvSpec:
    if dataset not in DATASETS:
        near = get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(DATASETS)}"
        raise ConfigError(f"reasoning-gym-v1 takes no dataset {dataset!r}; {hint}")
    return EnvSpec(
        id=id,
        make=lambda: Question(dataset),
        splits=SPLITS,
        prompt=PROMPT,
        turn_limit=1,
        cost="worker",
    )


def families() -> list[EnvFamily]:
    """The one family."""
    return [
        EnvFamily(
            id="reasoning-gym-v1",
            summary=f"one question a task, from {len(DATASETS)} generators of reasoning-gym",
            build=_build,
            options={"dataset": "leg_counting"},
        )
    ]

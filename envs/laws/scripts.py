"""What is tried: legal actions, the expert's, legal ones twisted, and hostile text.

Invariant: a strategy knows an environment by its spec alone; which texts a move becomes is
settled when it is played (`probe.Move`), so the same script fits every session.

Not here: what must hold (`single`), and the search itself (`search`).
"""

from __future__ import annotations

from typing import Final

import hypothesis.strategies as st

from ..base import SPLITS, EnvSpec, Task
from .probe import Move, Script

HOSTILE: Final = (
    *("", " ", "\n", "\t\r\n\v", "\x00", "\x1b[2J", "\u202egnp.exe", "\ufeff", "\ud800", "🦊" * 40),
    *("Action:", "Thought:\nx\n\nAction:\n", "<|im_end|>", "</s>", "[INST]", "{}{0}{x!r}", "%s%n"),
    *("9" * 5000, "-1", "1e999", "nan", "٣", "½", "0x10", "None", "True", "[]", "{}", "null"),
    *("'; DROP TABLE tasks;--", "__import__('os')._exit(1)", "../../etc/passwd", "$(id)"),
    *("a" * 100_000, "(" * 10_000, "move " * 5_000, "get 1 " * 2_000, "\\", '"', "'", "`"),
)
"""Texts that have broken environments before."""

_TWISTS: Final = ("{} ", "  {}\n", "{}\n{}", "{}.", "Action: {}", "{} {}", "{}\x00", '"{}"', "{},")


def scripts(spec: EnvSpec, *, most: int = 12) -> st.SearchStrategy[Script]:
    """Episodes to try: a task of any split, a seed, and at most so many moves.

    Before the moves the expert may lead for a while, or mere legal actions where there
    is none: random moves alone seldom see the middle or the end of an episode.
    """
    lead = st.integers(0, min(spec.turn_limit, most))
    rest = st.one_of(
        st.lists(moves(), max_size=most), st.lists(moves(), min_size=most // 2, max_size=most)
    )
    return st.builds(
        lambda task, seed, lead, rest: Script(task, seed, (Move(expert=True),) * lead + (*rest,)),
        tasks(spec),
        st.integers(0, 2**63 - 1),
        lead,
        rest,
    )


def tasks(spec: EnvSpec) -> st.SearchStrategy[Task]:
    """Tasks of all splits that have any."""
    splits = {split: members for split, members in spec.splits.items() if len(members)}
    return st.sampled_from(sorted(splits, key=SPLITS.index)).flatmap(
        lambda split: st.integers(0, len(splits[split]) - 1).map(
            lambda place: Task(spec.id, splits[split][place], split)
        )
    )


def moves() -> st.SearchStrategy[Move]:
    """Legal actions, the expert's, twisted ones, and hostile or arbitrary text."""
    number = st.integers(0, 63)
    expert = st.just(Move(expert=True))
    said = st.one_of(st.integers(0, len(HOSTILE) - 1).map(_hostile), st.text(max_size=40))
    twisted = st.builds(Move, text=st.sampled_from(_TWISTS), number=number, expert=st.booleans())
    # Legal and expert moves stand twice: without them few scripts get anywhere. What is
    # plainest stands first, since shrinking goes that way.
    legal = st.builds(Move, number=number)
    spoken = said.map(lambda text: Move(text.replace("{}", "{ }")))
    return st.one_of(legal, expert, legal, expert, spoken, twisted)


def _hostile(number: int) -> str:
    """Chosen by number, since Hypothesis spells out the texts of `sampled_from`, huge ones too."""
    return HOSTILE[number]

"""Preference pairs for other trainers: TRL's and LLaMA-Factory's rows, written and read.

    trl        prompt, chosen, rejected: lists of messages; a side is everything that came
               behind the first observation, or one turn of a step-wise pair
    sharegpt   conversations up to the observation that is answered, and one message a side

LLaMA-Factory takes one message a side, so only pairs whose sides are one turn each have a row
there: those of `pairs.at_turns`, and of episodes of one turn. TRL's loss covers all of a side,
what the environment said in it, too.

Invariant: a pair is written as it is, or left out under one reason (`other_prompt`,
`more_than_one_turn`, `unknown_role`, `no_turn_taking`); reading gives back what was written.

Not here: which trajectories make pairs (`learners.preferences.pairs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from ...engine.agenttraj import ROLES, Said
from ...engine.errors import BadDataFile, ConfigError
from ...engine.trajectory import ChatMessage, Trajectory
from ..preferences.pairs import Pair, reward_of
from .agenttraj import said
from .base import Tally
from .files import first_columns, read_rows, write_rows
from .rows import CannotCarry
from .sharegpt import alternates, split_system
from .trl import Message, plain

SUFFIXES: Final = {"trl": (".jsonl", ".json", ".parquet"), "sharegpt": (".json", ".jsonl")}
"""Endings of files by format."""


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    """A pair as messages."""

    prompt: tuple[ChatMessage, ...]
    """Ends with what both sides answer to."""
    chosen: tuple[ChatMessage, ...]
    rejected: tuple[ChatMessage, ...]
    score_chosen: float
    score_rejected: float
    env: str
    task_id: str


class _Scores(msgspec.Struct, kw_only=True):
    score_chosen: float | None = None
    score_rejected: float | None = None
    env: str | None = None
    task_id: str | None = None


class _TRL(_Scores, kw_only=True):
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


class _ShareGPT(_Scores, kw_only=True):
    conversations: list[Said]
    system: str | None = None
    chosen: Said
    rejected: Said


def preference(pair: Pair) -> Preference:
    """Take a pair apart into what both sides share and what each wrote.

    Raises:
        CannotCarry: the sides do not share their rules.
    """
    chosen, rejected = pair.chosen, pair.rejected
    if chosen.prompt != rejected.prompt:
        raise CannotCarry("other_prompt")
    before = 2 * (pair.turn or 0) + 1 + len(chosen.prompt)
    messages = _ending_with_the_agent(chosen)
    return Preference(
        prompt=tuple(_unlearned(message) for message in messages[:before]),
        chosen=tuple(messages[before:]),
        rejected=tuple(_ending_with_the_agent(rejected)[before:]),
        score_chosen=reward_of(chosen),
        score_rejected=reward_of(rejected),
        env=chosen.env,
        task_id=chosen.task_id,
    )


def write_preferences(path: Path, pairs: Iterable[Pair], form: str, tally: Tally) -> None:
    """Write pairs for a trainer, in order.

    Args:
        path: ends as `SUFFIXES` says.
        pairs: from `learners.preferences.pairs`.
        form: "trl" or "sharegpt".
        tally: counts what was written and left out.

    Raises:
        ConfigError: no such format, or the path ends otherwise.
        StorageFailed: the disk refused.
    """
    if form not in SUFFIXES:
        raise ConfigError(f"pairs are written as {' or '.join(SUFFIXES)}, not as {form!r}")
    if Path(path.name.removesuffix(".gz")).suffix not in SUFFIXES[form]:
        raise ConfigError(f"{path}: pairs for {form} end in {', '.join(SUFFIXES[form])}")
    write_rows(path, _rows(pairs, form, tally), _schema())


def read_preferences(path: Path) -> Iterator[Preference]:
    """Read a file of pairs, TRL's or LLaMA-Factory's.

    Raises:
        BadDataFile: it is neither, or a row is not of its form.
    """
    names = first_columns(path)
    if not {"chosen", "rejected"} <= names:
        raise BadDataFile(f"{path} holds no pairs: it has no columns chosen and rejected")
    if "conversations" in names:
        for number, row in enumerate(read_rows(path, _ShareGPT, "sharegpt (pairs)")):
            head = [ChatMessage("system", row.system)] if row.system else []
            prompt = [*head, *map(_heard, row.conversations)]
            yield _given(path, number, row, prompt, [_heard(row.chosen)], [_heard(row.rejected)])
        return
    for number, each in enumerate(read_rows(path, _TRL, "trl (pairs)")):
        sides = [
            [ChatMessage(m.role, m.content) for m in side]
            for side in (each.prompt, each.chosen, each.rejected)
        ]
        yield _given(path, number, each, *sides)


def _rows(pairs: Iterable[Pair], form: str, tally: Tally) -> Iterator[msgspec.Struct]:
    for pair in pairs:
        tally.read += 1
        try:
            found = preference(pair)
            row = _for_trl(found) if form == "trl" else _for_llama_factory(found)
        except CannotCarry as error:
            tally.left_out[str(error)] += 1
        else:
            tally.written += 1
            yield row


def _for_trl(found: Preference) -> _TRL:
    prompt, chosen, rejected = (
        plain(list(side)) for side in (found.prompt, found.chosen, found.rejected)
    )
    return _TRL(prompt=prompt, chosen=chosen, rejected=rejected, **_scores(found))


def _for_llama_factory(found: Preference) -> _ShareGPT:
    if len(found.chosen) != 1 or len(found.rejected) != 1:
        raise CannotCarry("more_than_one_turn")
    system, messages = split_system(list(found.prompt))
    if not alternates(messages):
        raise CannotCarry("no_turn_taking")
    (chosen,), (rejected,) = said(list(found.chosen)), said(list(found.rejected))
    return _ShareGPT(
        conversations=said(messages),
        system=system,
        chosen=chosen,
        rejected=rejected,
        **_scores(found),
    )


def _scores(found: Preference) -> dict[str, Any]:
    return {name: getattr(found, name) for name in _Scores.__struct_fields__}


def _ending_with_the_agent(trajectory: Trajectory) -> list[ChatMessage]:
    messages = trajectory.conversation()
    return messages[:-1] if trajectory.final_observation else messages


def _unlearned(message: ChatMessage) -> ChatMessage:
    """Take the loss off a message: what both sides share is not learned from."""
    return msgspec.structs.replace(message, loss=False) if message.loss else message


def _heard(message: Said) -> ChatMessage:
    return ChatMessage(ROLES.get(message.speaker, message.speaker), message.value, message.loss)


def _given(
    path: Path,
    number: int,
    row: _Scores,
    prompt: list[ChatMessage],
    chosen: list[ChatMessage],
    rejected: list[ChatMessage],
) -> Preference:
    """Put a row together; loss flags follow from the places where they are not written."""
    if not chosen or not rejected:
        raise BadDataFile(f"{path}, item {number}: a pair with one empty side")
    return Preference(
        prompt=tuple(_flagged(message, False) for message in prompt),
        chosen=tuple(_flagged(message, True) for message in chosen),
        rejected=tuple(_flagged(message, True) for message in rejected),
        score_chosen=1.0 if row.score_chosen is None else row.score_chosen,
        score_rejected=0.0 if row.score_rejected is None else row.score_rejected,
        env=row.env or "unknown",
        task_id=row.task_id or f"record_{number}",
    )


def _flagged(message: ChatMessage, agents: bool) -> ChatMessage:
    if message.role != "assistant" or message.loss is not None:
        return message
    return msgspec.structs.replace(message, loss=agents)


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    message = pa.struct([("role", text), ("content", text)])
    return pa.schema(
        [(name, pa.list_(message)) for name in ("prompt", "chosen", "rejected")]
        + [("score_chosen", number), ("score_rejected", number), ("env", text), ("task_id", text)]
    )

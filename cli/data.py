"""`rollwave data`: convert trajectories between formats, count them, show them, pair them.

Not here: the formats and the counting (`learners.exchange`), the rules of pairs
(`learners.preferences.pairs`), and reading a run while it is written (`inspect`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..engine.errors import BadDataFile, ConfigError
from ..engine.trajectory import ChatMessage, Outcome, Trajectory
from ..learners.exchange import FORMATS, Reading, Tally, find_format, read
from ..learners.exchange.statistics import statistics
from . import options
from .data_actions import with_actions
from .data_pairs import make_pairs
from .output import Cell, Output

app = typer.Typer(
    no_args_is_help=True,
    help="Trajectories in and out of other formats: convert, stats, show, pairs.",
)

_SHOWN: Final = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED, Outcome.FAULT)
_COUNTS: Final = ("environment", "trajectories", "tasks")
_MEANS: Final = ("reward", "turns", "tokens", "characters")
_KNOWN: Final = ", ".join(FORMATS)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE", help="A file, a run directory, or a directory of Hugging Face's datasets."
    ),
]
From = Annotated[
    str, typer.Option("--from", help=f"Format of the source, seen by itself if empty: {_KNOWN}.")
]
Env = Annotated[
    str,
    typer.Option(
        "--env", help="Environment id that the records get, in place of what the source calls it."
    ),
]
Split = Annotated[str, typer.Option("--split", help="Split of records that do not say theirs.")]
Reward = Annotated[
    float, typer.Option("--reward", help="Reward of records without one: demonstrations succeed.")
]


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or directory to write.")],
    to: Annotated[str, typer.Option("--to", help=f"Format to write: {_KNOWN}.")],
    form: From = "",
    env: Env = "",
    split: Split = "train",
    reward: Reward = 1.0,
    successes: Annotated[
        bool, typer.Option("--successes", help="Leave out all that did not succeed.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Take at most this many; 0 = all.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a file that is there.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Convert trajectories, and count what the format could not carry."""
    output = Output(json=json)
    target = find_format(to)
    if out.exists() and not (overwrite and out.is_file()):
        hint = "choose another name" + ("" if out.is_dir() else ", or say --overwrite")
        raise ConfigError(f"{out} exists: {hint}")
    reading, tally = _reading(env, split, reward), Tally()
    found = with_actions(read(source, form, reading, tally))
    chosen = _successes(found, tally) if successes else found
    target.write(out, islice(chosen, limit or None), tally)
    output.text(f"{tally.written:,} of {tally.read:,} trajectories written to {out} ({to})")
    _counts(output, "left out", "reason", tally.left_out)
    _counts(output, f"not carried by {to}", "what was lost", tally.lost)
    _counts(output, "taken for granted", "field", tally.assumed)
    values: dict[str, Any] = {
        "source": str(source),
        "out": str(out),
        "format": to,
        "read": tally.read,
        "written": tally.written,
        "left_out": tally.left_out,
        "lost": tally.lost,
        "assumed": tally.assumed,
    }
    if to == "sharegpt":
        values["dataset_info"] = _dataset_info(out, output, ranking=False)
    output.result(values)


@app.command()
def stats(
    source: Source,
    form: From = "",
    env: Env = "",
    json: options.Json = False,
) -> None:
    """Count trajectories by environment: outcomes, rewards, turns, tokens."""
    output = Output(json=json)
    tally = Tally()
    found = [each.figures() for each in statistics(read(source, form, _reading(env), tally))]
    output.table(
        (
            "environment",
            "trajectories",
            "tasks",
            *_SHOWN,
            "reward",
            "turns",
            "tokens",
            "characters",
        ),
        [_row(figures) for figures in found],
        title=f"{tally.read:,} records in {source}; the last four columns are means",
    )
    _counts(output, "left out", "reason", tally.left_out)
    _counts(output, "taken for granted", "field", tally.assumed)
    output.result(
        {
            "source": str(source),
            "read": tally.read,
            "left_out": tally.left_out,
            "assumed": tally.assumed,
            "environments": found,
        }
    )


@app.command()
def show(
    source: Source,
    number: Annotated[
        int | None, typer.Option("--number", min=0, help="Show this one, counted from 0.")
    ] = None,
    id: Annotated[
        str, typer.Option("--id", help="Show the one with this id, or the first of this task.")
    ] = "",
    limit: Annotated[
        int,
        typer.Option("--limit", min=1, help="Show so many from the beginning, or from --number."),
    ] = 1,
    form: From = "",
    env: Env = "",
    json: options.Json = False,
) -> None:
    """Show conversations message by message, with what carries loss."""
    output = Output(json=json)
    found: Iterator[tuple[int, Trajectory]] = enumerate(
        with_actions(read(source, form, _reading(env)))
    )
    if id:
        found = ((n, t) for n, t in found if id in {t.id, t.task_id})
    elif number is not None:
        found = ((n, t) for n, t in found if n >= number)
    shown = list(islice(found, 1 if id else limit))
    if not shown:
        wanted = repr(id) if id else f"number {number or 0}"
        raise BadDataFile(
            f"{source} has no trajectory {wanted}: see `rollwave data stats {source}`"
        )
    for place, trajectory in shown:
        _show(output, place, trajectory)
    output.result({"source": str(source), "trajectories": [_shown(place, t) for place, t in shown]})


app.command("pairs")(make_pairs)


def _reading(env: str, split: str = "train", reward: float = 1.0) -> Reading:
    """Say what is taken for granted; an environment is named as the registry names it.

    Raises:
        UnknownEnvironment: there is none of that name.
    """
    if env:
        from ..envs.registry import resolve

        env = resolve(env).id
    return Reading(env=env, split=split, reward=reward)


def _successes(trajectories: Iterator[Trajectory], tally: Tally) -> Iterator[Trajectory]:
    for trajectory in trajectories:
        if trajectory.success:
            yield trajectory
        else:
            tally.left_out["no_success"] += 1


def _counts(output: Output, title: str, name: str, counts: dict[str, int]) -> None:
    """Print counts, most frequent first, if there are any."""
    if counts:
        rows = sorted(counts.items(), key=lambda pair: -pair[1])
        output.table((name, "trajectories"), rows, title=f"\n{title}")


def _dataset_info(out: Path, output: Output, *, ranking: bool) -> dict[str, Any]:
    """Say what LLaMA-Factory's dataset_info.json has to hold for a file."""
    from ..learners.exchange.sharegpt import dataset_info
    from .output import to_json

    entry = {out.name.partition(".")[0]: dataset_info(out.name, ranking=ranking)}
    output.text(f"for LLaMA-Factory's dataset_info.json: {to_json(entry)}")
    return entry


def _row(figures: dict[str, Any]) -> list[Cell]:
    return [
        figures["env"],
        figures["trajectories"],
        figures["tasks"],
        *(figures["outcomes"][outcome] for outcome in _SHOWN),
        figures["reward_mean"],
        figures["turns_mean"],
        figures["tokens_mean"],
        figures["characters_mean"],
    ]


def _show(output: Output, place: int, t: Trajectory) -> None:
    reward = "no reward" if t.reward is None else f"reward {t.reward:g}"
    output.heading(f"\n{place}  {t.id}  {t.env}  {t.outcome}, {reward}, {len(t.turns)} turns")
    if t.tokens:
        output.text(f"{t.tokens} tokens, {t.sampled_tokens} of them carry loss")
    for message in t.conversation():
        body = message.text.strip("\n").replace("\n", "\n" + " " * 18)
        output.text(f"  {_mark(message)} {message.role:<11}  {body}")
    if t.fault:
        output.text(f"  fault in turn {t.fault.turn}: {t.fault.kind}: {t.fault.text}")


def _mark(message: ChatMessage) -> str:
    """Whether a message carries loss; what is no agent's has no mark at all."""
    return {True: "loss", False: "none", None: "    "}[message.loss]


def _shown(place: int, t: Trajectory) -> dict[str, Any]:
    return {
        "number": place,
        "id": t.id,
        "env": t.env,
        "task_id": t.task_id,
        "split": t.split,
        "outcome": t.outcome.value,
        "reward": t.reward,
        "tokens": t.tokens,
        "sampled_tokens": t.sampled_tokens,
        "messages": [{"role": m.role, "text": m.text, "loss": m.loss} for m in t.conversation()],
        "actions": [turn.action for turn in t.turns],
    }

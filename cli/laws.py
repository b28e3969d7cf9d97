"""`rollwave envs check`: environments × transports, each law of each, one table.

Invariants: what cannot be checked here is a row that says why, never a row that is left out;
a failure is printed with the fewest actions found and the command that finds it again.

Not here: the laws (`envs.laws`), the transports (`envs.transports`), which environments are
meant (`envs`).
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..engine.errors import ConfigError, MissingDependency
from ..envs.base import EnvSpec, Task
from ..envs.transports import HERE, TRANSPORTS, transport_named
from .output import Output, to_json

if TYPE_CHECKING:
    from ..envs.laws import LawResult

_STYLES: Final = {"BROKEN": "bold red", "held": "green", "skipped": "dim"}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One environment over one transport."""

    environment: str
    over: str
    name: str = ""
    """As the user called it."""
    reason: str = ""
    """Why nothing was checked, if nothing was."""
    seconds: float = 0.0
    laws: tuple[LawResult, ...] = ()

    @property
    def verdict(self) -> Literal["passed", "failed", "skipped"]:
        if self.reason:
            return "skipped"
        return "failed" if self.count("broken") else "passed"

    def count(self, verdict: str) -> int:
        """How many laws came out so: held, skipped or broken."""
        return sum(_verdict(law) == verdict for law in self.laws)

    def cell(self) -> str:
        """What the table says."""
        if self.reason:
            return "skipped"
        counted = [f"{self.count(kind)} {kind}" for kind in ("broken", "held", "skipped")]
        told = ", ".join(text for text in counted if not text.startswith("0 "))
        return f"{self.verdict}: {told}"


def _verdict(law: LawResult) -> str:
    return "skipped" if law.skipped else "held" if law.held else "broken"


def transports(names: str) -> list[str]:
    """The transports of a list with commas; `all` are all of them.

    Raises:
        ConfigError: one is none, or there is none.
    """
    if names == "all":
        return [HERE, *TRANSPORTS]
    found = list(dict.fromkeys(filter(None, (name.strip() for name in names.split(",")))))
    if not found:
        raise ConfigError(f"name a transport: {HERE}, {', '.join(TRANSPORTS)}, or all")
    for name in found:
        transport_named(name)
    return found


def check_all(
    specs: Mapping[str, EnvSpec | str],
    over: Sequence[str],
    *,
    examples: int,
    seed: int,
    out: Path | None,
    output: Output,
) -> bool:
    """Check each environment over each transport, and print what came out.

    Args:
        specs: the environments by what the user calls them; in place of one that cannot be
            had here, the reason.
        over: the transports.
        examples: tried for each law.
        seed: of the search.
        out: file for the same JSON as `--json` prints.
        output: where to print.

    Returns:
        Whether no law was found broken.

    Raises:
        ConfigError: nothing could be checked.
    """
    rows: list[Checked] = []
    for row in _rows(specs, over, examples, seed):
        rows.append(row)
        if len(specs) * len(over) > 1:
            told = row.reason or f"{row.cell()} ({row.seconds:.1f} s)"
            output.note(f"{row.environment} over {row.over}: {told}")
    if all(row.reason for row in rows):
        raise ConfigError(f"nothing was checked: {rows[0].environment}: {rows[0].reason}")
    _show(rows, over, examples, seed, output)
    answer = _answer(rows, examples, seed)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(to_json(answer) + "\n", encoding="utf-8")
    output.result(answer)
    return not any(row.count("broken") for row in rows)


def _rows(
    specs: Mapping[str, EnvSpec | str], over: Sequence[str], examples: int, seed: int
) -> Iterator[Checked]:
    # Hypothesis keeps tables of its own in a folder; by default in the working directory.
    os.environ.setdefault(
        "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "rollwave-hypothesis")
    )
    from ..envs.laws import check

    for name, spec in specs.items():
        id = name if isinstance(spec, str) else spec.id
        absent = spec if isinstance(spec, str) else _absent(spec)
        for way in over:
            began = time.perf_counter()
            laws: tuple[LawResult, ...] = ()
            reason = absent
            if not isinstance(spec, str) and not absent:
                try:
                    laws = tuple(check(spec, examples=examples, seed=seed, over=way))
                except (ConfigError, MissingDependency) as error:
                    reason = str(error)
            seconds = time.perf_counter() - began
            yield Checked(
                environment=id, over=way, name=name, reason=reason, seconds=seconds, laws=laws
            )


def _absent(spec: EnvSpec) -> str:
    """What the environment needs and this machine lacks; whatever else is wrong, the laws find."""
    first = next(
        (Task(spec.id, part[0], split) for split, part in spec.splits.items() if part), None
    )
    try:
        env = spec.make()
        if first is not None:
            env.reset(first, 0)
        env.close()
    except MissingDependency as error:
        return str(error)
    except Exception:  # noqa: BLE001 (a foreign environment: the laws will say what it is)
        return ""
    return ""


def _show(
    rows: Sequence[Checked], over: Sequence[str], examples: int, seed: int, output: Output
) -> None:
    if len(rows) == 1:
        row = rows[0]
        words = {"held": "held", "skipped": "skipped", "broken": "BROKEN"}
        output.table(
            ("law", "verdict", "what it says"),
            [(law.law, words[_verdict(law)], law.text) for law in row.laws],
            title=f"{row.environment}{_over(row.over)}: {examples} examples a law, seed {seed}",
            styles=_STYLES,
        )
    else:
        by_id: dict[str, dict[str, Checked]] = {}
        for row in rows:
            by_id.setdefault(row.environment, {})[row.over] = row
        output.table(
            ("environment", *over),
            [(id, *(found[name].cell() for name in over)) for id, found in by_id.items()],
            title=f"{examples} examples a law, seed {seed}",
            styles={row.cell(): "red" if row.count("broken") else "" for row in rows},
        )
    for line in _reasons(rows):
        output.text(f"skipped {line}")
    for row in rows:
        for law in row.laws:
            if law.failure:
                output.heading(f"BROKEN {law.law}{_over(row.over)}")
                output.text(f"  {law.failure}\n")
                output.text(f"  again: {_again(row, examples, seed)}\n")


def _over(name: str) -> str:
    return "" if name == HERE else f" over {name}"


def _again(row: Checked, examples: int, seed: int) -> str:
    over = "" if row.over == HERE else f" --over {row.over}"
    named = shlex.quote(row.name)
    return f"rollwave envs check {named}{over} --examples {examples} --seed {seed}"


def _reasons(rows: Sequence[Checked]) -> Iterator[str]:
    """Why laws or whole rows were skipped: each reason once, with where it holds."""
    where: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        skipped = [(law.law, law.skipped) for law in row.laws if law.skipped]
        for key in [("", row.reason)] if row.reason else skipped:
            where.setdefault(key, {}).setdefault(row.environment, []).append(row.over)
    alone = len(rows) == 1
    for (law, reason), found in where.items():
        alike: dict[str, list[str]] = {}
        for id, names in found.items():
            alike.setdefault(", ".join(names), []).append(id)
        places = "; ".join(f"{', '.join(ids)} over {names}" for names, ids in alike.items())
        yield f"{law}: {reason}" if alone else f"{law or 'all laws'}: {reason} ({places})"


def _answer(rows: Sequence[Checked], examples: int, seed: int) -> dict[str, Any]:
    kinds = ("held", "skipped", "broken")
    return {
        "examples": examples,
        "seed": seed,
        **{kind: sum(row.count(kind) for row in rows) for kind in kinds},
        "checks": [
            {
                "environment": row.environment,
                "over": row.over,
                "verdict": row.verdict,
                "reason": row.reason,
                "seconds": row.seconds,
                **{kind: row.count(kind) for kind in kinds},
                "laws": [asdict(law) for law in row.laws],
            }
            for row in rows
        ],
    }

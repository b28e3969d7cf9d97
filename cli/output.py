"""The one place that prints.

Standard output carries the answer: tables for people, or with `--json` exactly
one JSON object as its last line. Everything else (notes, warnings, errors,
progress) goes to standard error, so that an answer can be piped.

Invariants:

* text that came from a model, an environment or a file is shown as it is: never
  read as markup, and control characters are spelled out, so that it cannot
  move the cursor or recolour a terminal;
* JSON has no NaN or infinity: they are written as null.

Not here: what to print (each command), and live views (`progress`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | int | float | None

PIPED_WIDTH: Final = 160
"""Columns of a table that goes to a file or a pipe: wide enough that nothing wraps."""


class Output:
    """Prints the answer of one command, for people or as JSON."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        """True: the answer is one JSON object; tables and text are left out."""

    @property
    def live(self) -> bool:
        """Whether somebody is watching: a progress view makes sense."""
        return sys.stderr.isatty()

    def text(self, line: str = "") -> None:
        """Print one paragraph of the answer for people."""
        if not self.json:
            self._console().print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def heading(self, line: str) -> None:
        """Print one emphasised line of the answer for people."""
        if not self.json:
            self._console().print(
                printable(line), markup=False, highlight=False, soft_wrap=True, style="bold"
            )

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        title: str = "",
        styles: Mapping[str, str] = {},
    ) -> None:
        """Print a table for people: numbers to the right, None as a dash, "none" if it is empty.

        Args:
            columns: the header.
            rows: one cell for each column; floats are shown with up to four
                significant digits.
            title: a line above.
            styles: rich style for the cells that have exactly this text.
        """
        if self.json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        body = [list(row) for row in rows]
        if title:  # rich's own titles wrap at the table's width
            self.heading(title)
        if not body:
            self.text("  none")
            return
        table = Table(box=SIMPLE_HEAD)
        for index, column in enumerate(columns):
            numeric = all(row[index] is None or isinstance(row[index], int | float) for row in body)
            table.add_column(Text(column), justify="right" if numeric else "left")
        for row in body:
            shown = [format_cell(cell) for cell in row]
            table.add_row(*(Text(printable(text), styles.get(text, "")) for text in shown))
        self._console().print(table)

    def note(self, line: str) -> None:
        """Tell people something that is not part of the answer, on standard error."""
        _console(stderr=True).print(
            printable(line), markup=False, highlight=False, soft_wrap=True, style="dim"
        )

    def warn(self, line: str) -> None:
        """Tell people about something that needs their attention, on standard error."""
        _console(stderr=True).print(
            f"warning: {printable(line)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
            style="yellow",
        )

    def result(self, values: Mapping[str, Any]) -> None:
        """With `--json` print the answer as one line; without it do nothing."""
        if self.json:
            sys.stdout.write(to_json(values) + "\n")
            sys.stdout.flush()

    def _console(self) -> Console:
        return _console(stderr=False)


def complain(message: str) -> None:
    """Print the one line with which a failed command ends."""
    line = " ".join(printable(message).split())
    console = _console(stderr=True)
    console.print("rollwave: ", style="bold red", end="")
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def to_json(values: Mapping[str, Any]) -> str:
    """Encode an answer as one line of JSON. Records, dataclasses and enums are understood."""
    return msgspec.json.encode(_finite(msgspec.to_builtins(values, str_keys=True))).decode()


def format_cell(value: Cell) -> str:
    """Show one value of a table: None as a dash, floats with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def printable(text: str) -> str:
    """Spell out control characters, except the end of a line and the tab."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH)

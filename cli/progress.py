"""A live view of a rollout: sessions, speed, batch fill, outcomes and success so far.

    with progress_view("evaluate maze-v1", output.live) as view:
        view.update(snapshot)

It goes to standard error, so that standard output holds the answer alone, and it
leaves nothing behind: the answer is printed by the command.

Invariant: `update` only stores the snapshot (a thread of rich's draws it, four
times a second), so that the loop that calls it is never held up.

Not here: where the figures come from (`actors.monitor`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final

from .output import printable

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from ..actors.monitor import Snapshot

REFRESHES: Final = 4
"""Redraws a second: enough to look alive, and under 1 % of a core."""

OUTCOME_STYLES: Final = {
    "success": "green",
    "failure": "red",
    "truncated": "yellow",
    "fault": "bold red",
    "cancelled": "dim",
}


class ProgressView:
    """Holds the latest snapshot. On its own it shows nothing: the view when nobody watches."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.snapshot: Snapshot | None = None
        self._started = monotonic()

    def update(self, snapshot: Snapshot) -> None:
        """Take the figures of this moment."""
        self.snapshot = snapshot

    def render(self) -> Group:
        """Draw the latest snapshot."""
        from rich.console import Group
        from rich.text import Text

        seconds = monotonic() - self._started
        head = Text(printable(self.title), "bold")
        head.append(f"  {clock(seconds)}", "dim")
        now = self.snapshot
        if now is None:
            return Group(head, Text("  starting", "dim"))
        if now.stage:
            head.append(f"  {printable(now.stage)}", "cyan")
        lines = [_bar(now, seconds), _figures(now), _outcomes(now)]
        if trouble := _trouble(now):
            lines.append(Text(f"  {printable(trouble)}", "yellow"))
        return Group(head, *lines)


@contextmanager
def progress_view(title: str, enabled: bool) -> Iterator[ProgressView]:
    """Show a live view for the length of the block, or nothing at all."""
    view = ProgressView(title)
    if not enabled:
        yield view
        return
    from rich.console import Console
    from rich.live import Live

    with Live(
        get_renderable=view.render,
        console=Console(file=sys.stderr),
        refresh_per_second=REFRESHES,
        transient=True,
    ):
        yield view


def clock(seconds: float) -> str:
    """Write a duration as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(now: Snapshot, seconds: float) -> RenderableType:
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    if not now.episodes_total:
        return Text(f"  {now.episodes_done:,} episodes")
    share = now.episodes_done / now.episodes_total
    label = f"  {now.episodes_done:,} of {now.episodes_total:,} episodes"
    if 0 < share < 1:
        label += f", about {clock(seconds / share - seconds)} left"
    bar = ProgressBar(total=now.episodes_total, completed=now.episodes_done, width=30)
    return Columns([Text(" "), bar, Text(label)])


def _figures(now: Snapshot) -> RenderableType:
    from rich.text import Text

    parts = [
        f"{now.sessions_live:,} sessions live",
        f"{now.turns:,} turns",
        f"{now.turns_per_second:,.0f} turns/s",
    ]
    if now.batch_fill:
        parts.append(f"batch {now.batch_fill:.0%} full")
    return Text("  " + " · ".join(parts))


def _trouble(now: Snapshot) -> str:
    """Say what is not as it should be: faults by kind, what a crash cost, what is stuck."""
    parts = [f"{count:,} {kind} faults" for kind, count in now.faults.items() if count]
    if now.resumed:
        parts.append(f"{now.resumed:,} went on in mid-episode")
    if now.restarted:
        parts.append(f"{now.restarted:,} began anew")
    if now.slowest:
        parts.append(f"slowest: {now.slowest}")
    return " · ".join(parts)


def _outcomes(now: Snapshot) -> RenderableType:
    from rich.text import Text

    line = Text("  ")
    for name, count in now.outcomes.items():
        if count:
            line.append(f"{count:,} {name}  ", OUTCOME_STYLES.get(name, ""))
    if now.success_rate is not None:
        line.append(f"success so far {now.success_rate:.1%}", "bold")
    return line

"""One of the processes that do an order together, started by the learner of a campaign.

    python -m rollwave.learners.member PARENT RANK SIZE PORT LISTENER < ORDER.json

It says on its output, a line of JSON each, how far it is (the first process alone), and how
it ended. Whatever else is printed goes to where errors go.

Invariants: it ends with the process that started it (`engine.lifeline`); an error of ours is
told by its name, and any other by its kind of fault; it writes what `distributed` writes.

Not here: who starts it, listens and kills (`actors.learner_processes`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..engine.errors import RollwaveError, classify
from ..engine.lifeline import die_with
from .base import Progress
from .distributed import Order, carry_out, joined, parse_order

HOST: Final = "127.0.0.1"
"""Where the processes find each other: all are on one machine."""


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """An optimiser step was done, or a training resumed."""

    step: int
    steps: int
    metrics: dict[str, float | None]
    """null: not a number."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The order is carried out; the report of it."""

    metrics: dict[str, float | None]
    kept: int
    dropped: dict[str, int]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It could not be."""

    kind: str
    """The name of our error, or the fault kind of a foreign one."""
    text: str
    ours: bool


Said = Stepped | Done | Failed


def main(arguments: list[str]) -> None:
    """Join the others, do the order, say how it went."""
    parent, rank, size, port, listener = map(int, arguments)
    die_with(parent)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(said: Said) -> None:
        out.write(msgspec.json.encode(said) + b"\n")
        out.flush()

    def progress(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        say(Stepped(step, steps, dict(metrics)))

    try:
        order = parse_order(sys.stdin.buffer.read(), "order")
        with joined(order, rank, store=_store(rank, size, port, listener), rank=rank, size=size):
            # Told before the group is left, which may take until the others are killed.
            say(_carried_out(order, progress))
    except (RollwaveError, OSError, RuntimeError, ValueError) as error:
        say(_failed(error))


def _store(rank: int, size: int, port: int, listener: int) -> Any:
    """Where the processes leave word for each other, in the memory of the first."""
    from torch import distributed

    store: Any = distributed.TCPStore  # type: ignore[attr-defined]
    # It takes a socket on which the parent listens: the port is nobody else's meanwhile.
    handed = {"master_listen_fd": listener} if rank == 0 else {}
    return store(HOST, port, size, rank == 0, wait_for_workers=False, **handed)


def _carried_out(order: Order, progress: Progress) -> Done | Failed:
    try:
        report = carry_out(order, progress)
    except Exception as error:  # noqa: BLE001 (the boundary to torch, whose errors are of every kind)
        return _failed(error)
    return Done(dict(report.metrics), report.kept, dict(report.dropped))


def _failed(error: Exception) -> Failed:
    if isinstance(error, RollwaveError):
        return Failed(type(error).__name__, str(error), ours=True)
    kind, text = classify(error)
    return Failed(kind.value, text, ours=False)


if __name__ == "__main__":
    main(sys.argv[1:])

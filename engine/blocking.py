"""Blocking calls, off the loop: in a worker thread, or at once where time is virtual.

    info = await run_blocking(store.seal, 3, 2, records)

A virtual clock jumps ahead as soon as every task waits, also for a thread: the work
would be met by whatever deadline comes next. So a simulated run calls the function on
the spot, and takes no virtual time for it.

Invariant: the same function with the same arguments, either way.

Not here: environments (`envs.hosting`), whose threads a simulation leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_simulated: Final = trio.lowlevel.RunVar("rollwave simulated", False)


def simulated() -> bool:
    """Whether this trio run is on virtual time (`testing.run_simulated`)."""
    return _simulated.get()


def simulate() -> None:
    """Say that this trio run is on virtual time. For who starts one with a clock of his own."""
    _simulated.set(True)


async def run_blocking(
    function: Callable[[*Arguments], T], *arguments: *Arguments, abandon_on_cancel: bool = False
) -> T:
    """Call `function(*arguments)` without holding up the loop, and give what it gave.

    Args:
        function: may block; it must not touch trio.
        arguments: handed on.
        abandon_on_cancel: a cancelled caller leaves at once, and the thread runs on alone;
            False waits for it.
    """
    if simulated():
        await trio.lowlevel.checkpoint()
        return function(*arguments)
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=abandon_on_cancel)

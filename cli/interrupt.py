"""Ctrl-C in a command: the work stops, and the user is told what was kept.

    with keeping(lambda: f"{done} of {total} trajectories are in {out}"):
        run(main)

Invariant: an interrupt is never swallowed; it leaves as `Interrupted`, also
when trio wrapped it in an exception group on its way out of a nursery.

Not here: the exit code (`main`) and the cancellation itself (trio delivers it).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Interrupted(BaseException):
    """Ctrl-C stopped a command. The text says what was kept, and how to go on.

    Like `KeyboardInterrupt` it is not an `Exception`: no boundary that classifies
    faults can mistake it for one.
    """


def run(main: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
    """Run trio so that Ctrl-C reaches `main`, at a checkpoint.

    By default Python raises it in whatever runs at that moment: in an actor, which
    then fails and is restarted, or in the middle of somebody's clean-up.
    """
    import trio  # here, so that `rollwave --help` does without

    return trio.run(main, *arguments, restrict_keyboard_interrupt_to_checkpoints=True)


@contextmanager
def keeping(sentence: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C in the block into `Interrupted`, saying what was kept by then.

    Args:
        sentence: called after the block was left, so that it counts what the
            clean-up saved as well.
    """
    try:
        yield
    except BaseException as error:
        # Errors beside an interrupt are what it caught in mid-air: the interrupt counts.
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves(error)):
            raise Interrupted(sentence()) from error
        raise


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Walk the exceptions inside nested groups, left to right."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error

"""How a child process ended, in one line for an error.

Not here: watching or ending it (`envs.worker.process`, `actors.learner_processes`).
"""

from __future__ import annotations

import signal
from typing import Final

_LINES: Final = 6


def last_words(code: int | None, said: bytes) -> str:
    """How it ended, with the last lines that it printed.

    Args:
        code: as `subprocess.Popen.returncode`; None: it still runs.
        said: the end of what it printed, in whatever encoding.
    """
    if code is None:
        how = "does not end"
    elif code < 0:
        how = f"was killed by {_name(-code)}"
    else:
        how = f"ended with exit code {code}"
    lines = said.decode(errors="replace").strip().splitlines()[-_LINES:]
    return f"{how}; it said last: {' | '.join(lines)}" if lines else how


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"

"""A child process that ends with the process that started it, however that ends.

Invariant: on Linux the kernel sees to it, also where the parent was killed, or the child is
deep in foreign code. It holds from the call on, and for the *thread* that started the child: one
that ends before its process takes the child with it.

Elsewhere nothing is done here: the child finds its connection closed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """Be killed when the process `parent`, which started this one, ends; at once if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before
            os._exit(0)

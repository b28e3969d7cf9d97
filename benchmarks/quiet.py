"""The engine's log, silent for a while: what a benchmark breaks on purpose is no news.

Invariant: the log is afterwards as it was, since others may run in the same process.

Not here: what is printed (`cli.output`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(level: int = logging.CRITICAL) -> Iterator[None]:
    """Keep what is below `level` out of the log for the length of the block."""
    logger = logging.getLogger("rollwave")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)

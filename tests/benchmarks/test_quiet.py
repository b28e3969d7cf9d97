"""A benchmark's silence ends with it."""

from __future__ import annotations

import logging

import pytest
from rollwave.benchmarks.quiet import quiet


def test_the_log_is_silent_within_the_block_alone(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("rollwave.engine")

    def breaks() -> None:
        with quiet():
            log.error("broken on purpose")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        breaks()
    with quiet(logging.ERROR):
        log.warning("broken on purpose")
        log.error("no, really")
    log.warning("told")
    assert caplog.messages == ["no, really", "told"]

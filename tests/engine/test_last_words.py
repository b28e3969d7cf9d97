"""How a child process ended, in one line."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.last_words import last_words


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        (None, b"", "does not end"),
        (0, b" \n", "ended with exit code 0"),
        (3, b"a\nno memory\n", "ended with exit code 3; it said last: a | no memory"),
        (-signal.SIGKILL, b"", "was killed by SIGKILL"),
        (-40, b"", "was killed by signal 40"),  # real-time signals have no names
        (1, b"\xff!", "ended with exit code 1; it said last: \ufffd!"),
    ],
)
def test_the_end_in_one_line(code: int | None, said: bytes, line: str) -> None:
    assert last_words(code, said) == line


@given(st.one_of(st.none(), st.integers(-64, 255)), st.binary(max_size=200))
def test_it_is_one_line_whatever_it_said(code: int | None, said: bytes) -> None:
    assert len(last_words(code, said).splitlines()) == 1

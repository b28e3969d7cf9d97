"""Formats: total on any text, and inverse to their own rendering."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError
from rollwave.envs.formats import FORMATS, Raw, React, get_format

# Text with what breaks parsers: markers, lone surrogates, NULs, line separators.
MARKERS = st.sampled_from(["Thought:", "Action:", "\n", "action:", "Action", ":", "\x00", "\ud800"])
HOSTILE = st.lists(st.one_of(MARKERS, st.text(max_size=8)), max_size=12).map("".join)
ACTIONS = st.text(min_size=1, max_size=30).map(str.strip).filter(lambda s: s and "Action:" not in s)


@given(st.sampled_from(sorted(FORMATS)), HOSTILE)
def test_any_text_gives_an_action_or_an_error(name: str, text: str) -> None:
    parsed = get_format(name).parse(text)
    assert (parsed.action is None) != (parsed.error == "")
    if parsed.action is not None:
        assert parsed.action == parsed.action.strip() != ""
        assert parsed.action in text
    else:
        assert "\n" not in parsed.error
        assert len(parsed.error) < 100


@given(st.sampled_from(sorted(FORMATS)), st.text(max_size=30), ACTIONS)
def test_what_was_rendered_is_read_back(name: str, thought: str, action: str) -> None:
    clean = thought.replace("Action:", "").replace("Thought:", "").strip()
    form = get_format(name)
    parsed = form.parse(form.render(clean, action))
    assert parsed.action == action
    assert parsed.thought == ("" if name == "raw" else clean)


@given(HOSTILE)
def test_strict_accepts_only_what_lenient_reads_the_same(text: str) -> None:
    strict = React(strict=True).parse(text)
    if strict.action is not None:
        assert strict == React().parse(text)


@pytest.mark.parametrize(
    ("completion", "thought", "action"),
    [
        ("Thought:\nwood first\n\nAction:\nget 1 oak log", "wood first", "get 1 oak log"),
        ("Thought: a Action: b Action: c", "a Action: b", "c"),
        ("Action: inventory", "", "inventory"),
        ("no marker, then Action:  x \n", "no marker, then", "x"),
        ("Thought: t\nAction:\nline one\nline two", "t", "line one\nline two"),
    ],
)
def test_react_splits_on_the_last_action(completion: str, thought: str, action: str) -> None:
    parsed = React().parse(completion)
    assert (parsed.thought, parsed.action, parsed.error) == (thought, action, "")


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        ("Thought: only a thought", "no action found"),
        ("", "no action found"),
        ("Thought: t\nAction:  \n", "empty"),
    ],
)
def test_react_says_what_is_missing(completion: str, words: str) -> None:
    for strict in (False, True):
        parsed = React(strict=strict).parse(completion)
        assert parsed.action is None
        assert words in parsed.error or strict


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        ("Thought: t\nAction: a\nAction: b", 'write "Action:" once'),
        ("Action: a", 'start your response with one "Thought:"'),
        ("Sure! Thought: t\nAction: a", 'start your response with one "Thought:"'),
        ("Thought: t\nThought: u\nAction: a", 'start your response with one "Thought:"'),
    ],
)
def test_strict_refuses_what_lenient_reads(completion: str, words: str) -> None:
    assert React().parse(completion).action is not None
    assert words in React(strict=True).parse(completion).error


def test_raw_is_the_stripped_completion() -> None:
    assert Raw().parse(" up \n").action == "up"
    assert Raw().parse(" \n").error


def test_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="react, react-strict, raw"):
        get_format("xml")

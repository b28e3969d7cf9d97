"""Wordle: sets of words, feedback, drawing anew, the entropy expert, the published games."""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from itertools import product
from math import log2
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError, EnvironmentFault
from rollwave.envs.base import Task
from rollwave.envs.registry import resolve
from rollwave.envs.wordle import Wordle
from rollwave.envs.wordle.expert import advise, information
from rollwave.envs.wordle.tasks import fixed, redrawn
from rollwave.envs.wordle.vocabulary import Vocabulary, feedback, load

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/agenttraj/wordle.json.gz"

words = st.text("abcde", min_size=5, max_size=5)
lists = st.lists(words, min_size=1, max_size=40, unique=True)


def members(known: Vocabulary, left: int) -> set[str]:
    return {word for number, word in enumerate(known.words) if left >> number & 1}


@pytest.mark.parametrize(
    ("guess", "hidden", "marks"),
    [
        ("crane", "crane", "ggggg"),
        ("could", "audio", "byyby"),
        ("atoll", "audio", "gbybb"),
        ("sheep", "elbow", "bbyyb"),  # both e: AgentGym's rule does not count letters
    ],
)
def test_feedback(guess: str, hidden: str, marks: str) -> None:
    assert feedback(guess, hidden) == marks


@given(lists, words, st.data())
def test_sets_of_words_agree_with_a_loop_over_them(
    known: list[str], guess: str, data: st.DataObject
) -> None:
    vocabulary = Vocabulary(known)
    left = data.draw(st.integers(0, vocabulary.all))
    inside = members(vocabulary, left)
    for marks in map("".join, product("gyb", repeat=5)):
        expected = {word for word in inside if feedback(guess, word) == marks}
        assert members(vocabulary, vocabulary.consistent(left, guess, marks)) == expected
    cells = [members(vocabulary, cell) for cell in vocabulary.split(left, guess)]
    assert all(cells)
    assert set().union(*cells) == inside
    assert sum(map(len, cells)) == len(inside)
    assert all(len({feedback(guess, word) for word in cell}) == 1 for cell in cells)


@given(lists, st.data())
def test_nth_counts_the_members(known: list[str], data: st.DataObject) -> None:
    vocabulary = Vocabulary(known)
    left = data.draw(st.integers(0, vocabulary.all))
    numbers = [number for number in range(len(known)) if left >> number & 1]
    assert [vocabulary.nth(left, n) for n in range(len(numbers))] == numbers
    with pytest.raises(IndexError):
        vocabulary.nth(left, len(numbers))
    assert set(vocabulary.spread(left, 5)) <= members(vocabulary, left)


@pytest.mark.parametrize(
    "bad", [[], ["crane", "crane"], ["cranes"], ["Crane"], ["cr ne"], ["naïve"]]
)
def test_a_list_that_is_none_is_refused(bad: list[str]) -> None:
    with pytest.raises(ConfigError):
        Vocabulary(bad)


def test_the_shipped_lists_are_words_and_disjoint() -> None:
    common, rare = load("common"), load("rare")
    assert not set(common) & set(rare)
    assert len(Vocabulary((*common, *rare))) == 4635


@settings(max_examples=40)
@given(lists, st.integers(0, 99), st.lists(st.integers(0, 99), min_size=1, max_size=6))
def test_no_redrawn_answer_contradicts_an_earlier_one(
    known: list[str], index: int, guesses: list[int]
) -> None:
    env = Wordle(words=known)
    env.reset(Task("wordle-v1", index), 0)
    heard: list[tuple[str, str]] = []
    for number in guesses:
        guess = known[number % len(known)]
        result = env.step(" ".join(guess))
        heard.append((guess, "".join(result.observation.split())))
        possible = [w for w in known if all(feedback(g, w) == marks for g, marks in heard)]
        assert possible
        if result.done:
            break
    assert result.success == (heard[-1][1] == "ggggg")
    assert result.reward == float(result.success)


def test_a_game_is_lost_after_six_guesses_of_any_kind() -> None:
    env = Wordle(words=["crane", "slate"], redraw=False)
    env.reset(Task("wordle-fixed-v1", 0), 0)
    for said in ("s l a t e", "xyzzy", "", "c r a n", "slate"):
        result = env.step(said)
        assert not result.done
    assert result.observation == "b b g b g\n"
    result = env.step("q" * 100_000)
    assert (result.observation, result.reward) == ("invalid word", 0)
    assert result.terminated
    assert not result.success
    with pytest.raises(EnvironmentFault, match="over"):
        env.step("c r a n e")


def test_a_fixed_word_is_found_on_the_last_guess() -> None:
    env = Wordle(words=["crane", "slate"], redraw=False, guesses=2)
    env.reset(Task("wordle-fixed-v1", 1), 0)
    assert not env.step("CRANE").done  # spaces and case do not matter
    result = env.step("s l a t e")
    assert (result.observation, result.reward, result.success) == ("g g g g g\n", 1.0, True)
    assert env.available_actions() == ()


def test_the_draws_depend_on_the_task_and_differ_between_tasks() -> None:
    spec = resolve("wordle-v1")

    def answers(index: int, seed: int) -> str:
        env = spec.make()
        env.reset(Task(spec.id, index), seed)
        return env.step("p a n i c").observation

    assert answers(3, 1) == answers(3, 2)
    assert len({answers(index, 0) for index in range(50)}) > 5


def test_splits_hide_different_words() -> None:
    for count, sizes in ((0, (2132, 533, 889, 1081)), (400, (240, 60, 100, 100))):
        games, splits = fixed(count)
        hidden = {}
        for split, indices in splits.items():
            found = [games(index) for index in indices]
            hidden[split] = {game.vocabulary.words[game.hidden or 0] for game in found}
            assert len(hidden[split]) == len(indices)
        assert tuple(map(len, hidden.values())) == sizes
        train, dev, test, unseen = hidden.values()
        assert not train & dev
        assert not (train | dev) & test
        if not count:
            assert not (train | dev | test) & unseen


def test_the_unseen_split_of_the_redrawn_game_has_other_words() -> None:
    games, splits = redrawn(400)
    seen = set(games(0).vocabulary.words)
    unseen = set(games(splits["unseen"][0]).vocabulary.words)
    assert seen & unseen == {"shire", "panic", "felon", "frown"}  # named in the prompt
    assert len(seen) == len(unseen) == 400


@settings(max_examples=60)
@given(lists, words, st.data())
def test_information_is_the_entropy_of_the_answers(
    known: list[str], guess: str, data: st.DataObject
) -> None:
    vocabulary = Vocabulary(known)
    left = data.draw(st.integers(1, vocabulary.all))
    counts: dict[str, int] = {}
    for word in members(vocabulary, left):
        counts[feedback(guess, word)] = counts.get(feedback(guess, word), 0) + 1
    total = sum(counts.values())
    entropy = -sum(n / total * log2(n / total) for n in counts.values())
    assert information(vocabulary, left, guess) == pytest.approx(entropy, abs=1e-9)


@settings(max_examples=60)
@given(lists, st.booleans(), st.data())
def test_the_expert_takes_the_best_of_a_short_list(
    known: list[str], last: bool, data: st.DataObject
) -> None:
    """With few words every guess is tried: none tells more than the advice."""
    vocabulary = Vocabulary(known[:20])
    left = data.draw(st.integers(1, vocabulary.all))
    advice = advise(vocabulary, left, last)
    if last or left.bit_count() <= 2:
        assert advice in members(vocabulary, left)
    else:
        best = max(information(vocabulary, left, word) for word in vocabulary.words)
        assert information(vocabulary, left, advice) == pytest.approx(best)


@pytest.mark.parametrize(
    ("id", "tasks", "least"), [("wordle-v1", 60, 60), ("wordle-fixed", 60, 58)]
)
def test_the_expert_wins(id: str, tasks: int, least: int) -> None:
    spec = resolve(id)
    env = spec.make()
    won = 0
    for split in ("test", "unseen"):
        for task in spec.tasks(split, limit=tasks // 2):
            env.reset(task, 0)
            while (advice := env.expert()) is not None:
                won += env.step(advice).success
    assert won >= least


def test_a_snapshot_of_other_words_is_refused() -> None:
    one, two = Wordle(words=["crane"]), Wordle(words=["slate"])
    one.reset(Task("wordle-v1", 0), 0)
    with pytest.raises(EnvironmentFault, match="other words"):
        two.restore(one.snapshot())
    for forged in (b"", b"\x93not"):
        with pytest.raises(EnvironmentFault, match="not a snapshot"):
            two.restore(forged)


def test_states_in_which_nothing_may_be_asked() -> None:
    env = resolve("wordle-v1").make()
    for call in (env.observation, env.available_actions, env.expert, env.snapshot):
        with pytest.raises(EnvironmentFault, match="not reset"):
            call()
    env.close()
    with pytest.raises(EnvironmentFault, match="closed"):
        env.reset(Task("wordle-v1", 0), 0)
    with pytest.raises(EnvironmentFault, match="closed"):
        env.restore(b"")


@pytest.mark.parametrize(
    ("id", "index"),
    [("wordle-v1", -1), ("wordle-v1", 6500), ("wordle-fixed-v1", -1), ("wordle-fixed-v1", 4635)],
)
def test_a_task_that_is_none_is_refused(id: str, index: int) -> None:
    with pytest.raises(ConfigError, match="has tasks 0 to"):
        resolve(id).make().reset(Task(id, index), 0)


def test_words_of_ones_own() -> None:
    for index in (-1, 1):
        with pytest.raises(ConfigError, match="words 0 to 0"):
            Wordle(words=["crane"], redraw=False).reset(Task("wordle-fixed-v1", index), 0)
    for wrong in ({}, {"games": redrawn(10)[0], "words": ["crane"]}):
        with pytest.raises(ConfigError, match="either"):
            Wordle(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("id", ["wordle-v1?words=9", "wordle?words=1501", "wordle-fixed?words=3"])
def test_options_out_of_range_are_named(id: str) -> None:
    with pytest.raises(ConfigError, match="words must be"):
        resolve(id)


def test_large_lists_are_not_spelled_out() -> None:
    for id, listed in (("wordle-v1", True), ("wordle-fixed-v1", False)):
        spec = resolve(id)
        first = spec.make().reset(spec.tasks("train")[0], 0)
        assert ("complete list of valid vocabulary words" in first) is listed
        assert first.count("\n") > 400 if listed else len(first) < 4000


@cache
def published() -> list[dict[str, Any]]:
    games: list[dict[str, Any]] = json.loads(gzip.decompress(PUBLISHED.read_bytes()))
    return games


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published trajectories are not here")
def test_published_games_come_out_word_for_word() -> None:
    """Each game ends with its hidden word, so that word, fixed, must explain every answer."""
    games = published()
    assert len(games) > 400
    opening = games[0]["conversations"][2]["value"]
    listing = re.search(r"```\n((?:[a-z]{5}\n)+)```", opening)
    assert listing
    known = listing[1].split()
    env = Wordle(words=known, redraw=False)
    for game in games:
        texts = [turn["value"] for turn in game["conversations"]]
        assert texts[:2] == [message.text for message in resolve("wordle").prompt]
        guesses = [text.partition("Action:")[2] for text in texts[3::2]]
        index = known.index("".join(guesses[-1].split()))
        observation = env.reset(Task("wordle-fixed-v1", index), 0)
        for human, guess in zip(texts[2::2], guesses, strict=True):
            assert human == observation
            result = env.step(guess)
            observation = result.observation
        assert result.success

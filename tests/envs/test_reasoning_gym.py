"""reasoning-gym's questions: asked by number, scored by their own rule, and never run."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import encode
from rollwave.engine.errors import ConfigError, EnvironmentFault, MissingDependency
from rollwave.envs import reasoning_gym
from rollwave.envs.base import Task
from rollwave.envs.laws import broken, check
from rollwave.envs.reasoning_gym import DATASETS, SPLITS, Question, QuestionState
from rollwave.envs.registry import resolve

# One that is quick to make, of each way to score: equal text, numbers, grids, lists, logic.
SOME = ("leg_counting", "chain_sum", "mini_sudoku", "palindrome_partitioning", "knights_knaves")


def ask(dataset: str, index: int) -> tuple[Question, str]:
    env = Question(dataset)
    return env, env.reset(Task("reasoning-gym-v1", index), 0)


@pytest.mark.parametrize("dataset", SOME[2:4])
def test_every_law_holds(dataset: str) -> None:
    results = check(f"reasoning-gym-v1?dataset={dataset}", examples=4)
    assert [str(result) for result in broken(results)] == []


def test_the_right_answer_is_worth_one_and_ends_the_episode() -> None:
    env, question = ask("leg_counting", 3)
    assert "legs" in question
    answer = env.step(env.expert() or "")
    assert (answer.reward, answer.terminated, answer.success) == (1.0, True, True)
    with pytest.raises(EnvironmentFault, match="answered"):
        env.step("1")


def test_a_wrong_answer_ends_it_too() -> None:
    env, _ = ask("leg_counting", 3)
    answer = env.step("none")
    assert (answer.observation, answer.success, answer.done) == ("Wrong.", False, True)


def test_part_of_the_worth_is_no_success() -> None:
    env, _ = ask("leg_counting", 3)
    answer = env.step(f"It must be {env.expert()}, I think.")
    assert 0 < answer.reward < 1
    assert (answer.observation, answer.success) == ("Partly right.", False)


def test_a_rule_that_fails_or_gives_no_number_finds_the_answer_wrong() -> None:
    class Odd:
        def __init__(self, score: Any) -> None:
            self.score = score

        def score_answer(self, **_: Any) -> float:
            if isinstance(self.score, Exception):
                raise self.score
            return self.score  # type: ignore[no-any-return]

    for score, worth in ((ValueError("x"), 0.0), (float("nan"), 0.0), (7.0, 1.0), (-3.0, 0.0)):
        env, _ = ask("leg_counting", 0)
        env._rule = Odd(score)
        assert env.step("4").reward == worth


@settings(deadline=None, max_examples=15)
@given(dataset=st.sampled_from(SOME), index=st.integers(0, 11_999), other=st.integers(0, 11_999))
def test_a_question_depends_on_its_number_alone(dataset: str, index: int, other: int) -> None:
    env, question = ask(dataset, index)
    env.reset(Task("reasoning-gym-v1", other), 5)
    assert env.reset(Task("reasoning-gym-v1", index), 9) == question


def test_no_rule_that_is_taken_evaluates_an_answer() -> None:
    package: Any = importlib.import_module("reasoning_gym.factory")
    runs = ("eval(answer", "exec(", "parse_expr(answer", "sympify")
    taken = {name: inspect.getsource(package.DATASETS[name][0].score_answer) for name in DATASETS}
    assert [name for name, source in taken.items() if any(text in source for text in runs)] == []
    refused = package.DATASETS.keys() - set(DATASETS)
    evaluates = {
        name
        for name in refused - {"composite"}
        if any(
            text in inspect.getsource(package.DATASETS[name][0].score_answer)
            for text in ("eval(", "parse_expr(")
        )
    }
    assert len(evaluates) >= 9  # the search above finds what there is to find


def test_an_answer_that_is_code_does_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"[open({str(mark)!r}, 'w').close()]"
    for dataset in DATASETS[::6]:
        env, _ = ask(dataset, 1)
        assert env.step(code).reward < 1
    assert not mark.exists()


@pytest.mark.parametrize("dataset", ["string_insertion", "countdown", "leg_countin"])
def test_other_datasets_are_refused(dataset: str) -> None:
    with pytest.raises(ConfigError, match=dataset):
        resolve(f"reasoning-gym-v1?dataset={dataset}")


@pytest.mark.parametrize(
    "state", [b"", b"\x93no", encode(QuestionState(-1, "", False)), encode(("x", 1))]
)
def test_what_is_no_snapshot_is_refused(state: bytes) -> None:
    with pytest.raises(EnvironmentFault, match="not a snapshot"):
        Question("leg_counting").restore(state)


def test_splits_are_what_can_be_asked() -> None:
    assert sum(len(part) for part in SPLITS.values()) == 12_000
    with pytest.raises(ConfigError, match="tasks 0 to 11999"):
        ask("leg_counting", 12_000)


def test_closed_is_closed() -> None:
    env, _ = ask("leg_counting", 0)
    env.close()
    for call in (env.observation, env.expert, env.snapshot, env.available_actions):
        with pytest.raises(EnvironmentFault, match="closed"):
            call()
    with pytest.raises(EnvironmentFault, match="closed"):
        env.restore(ask("leg_counting", 0)[0].snapshot())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoning_gym._package.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    try:
        with pytest.raises(MissingDependency, match=r"rollwave\[reasoning-gym\]"):
            ask("leg_counting", 0)
    finally:
        reasoning_gym._package.cache_clear()

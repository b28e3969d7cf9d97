"""The laws hold for a sound world, and each one is broken by a world made to break it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from rollwave.engine.codec import encode
from rollwave.engine.errors import ConfigError, EnvironmentFault, LawBroken
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.laws import LAWS, LawResult, SessionsMachine, broken, check, machine
from rollwave.envs.laws.probe import Move, Probe, Script
from rollwave.envs.laws.single import answers_any_text, expert_keeps_its_word
from rollwave.envs.registry import families


class Count(Environment):
    """A sound world: press "up" until the count is the task's number, 1 to 6."""

    def __init__(self) -> None:
        self.goal = 0
        self.count = 0
        self.said = ""
        self.over = False
        self.closed = False

    def reset(self, task: Task, seed: int) -> str:
        self.open()
        if task.index not in range(1, 7):
            raise ConfigError(f"no task {task.index}")
        self.goal, self.count, self.over = task.index, 0, False
        self.said = f"count to {self.goal}"
        return self.said

    def step(self, action: str) -> StepResult:
        self.live()
        if self.over:
            raise EnvironmentFault("the episode is over")
        self.count += action == "up"
        self.over = self.count == self.goal
        self.said = "done" if self.over else str(self.count)
        return StepResult(self.said, float(self.over), self.over, success=self.over)

    def observation(self) -> str:
        self.live()
        return self.said

    def available_actions(self) -> Sequence[str]:
        self.live()
        return () if self.over else ("up", "stay")

    def expert(self) -> str | None:
        self.live()
        return None if self.over else "up"

    def secrets(self) -> Sequence[str]:
        return ("xyzzy",)

    def snapshot(self) -> bytes:
        self.live()
        return bytes((self.goal, self.count, self.over)) + self.said.encode()

    def restore(self, state: bytes) -> None:
        self.open()
        if len(state) < 3 or state[0] > 6:
            raise EnvironmentFault("not a snapshot")
        self.goal, self.count, self.over = state[0], state[1], bool(state[2])
        self.said = state[3:].decode()

    def close(self) -> None:
        self.closed = True

    def open(self) -> None:
        if self.closed:
            raise EnvironmentFault("closed")

    def live(self) -> None:
        self.open()
        if not self.goal:
            raise EnvironmentFault("not reset")


SOUND = EnvSpec(
    id="count-v1",
    make=Count,
    splits={"train": [1, 2, 3], "dev": [4], "test": [5, 6]},
    action_format="raw",
    turn_limit=6,
)


def verdicts(spec: EnvSpec, **settings: Any) -> dict[str, LawResult]:
    return {result.law: result for result in check(spec, **settings)}


def the_broken(make: Callable[[], Environment], *only: str) -> dict[str, str]:
    """The laws that a world breaks, each with its failure."""
    results = check(replace(SOUND, make=make), examples=200, only=only or LAWS)
    return {result.law: result.failure for result in broken(results)}


def test_a_sound_world_keeps_every_law() -> None:
    results = verdicts(SOUND)
    assert sorted(results) == sorted(LAWS)
    assert len(results) == 14
    assert all(result.held and not result.skipped for result in results.values())


# ScienceWorld, in Java, has its own in tests/envs/sciworld, with fewer examples.
@pytest.mark.parametrize("id", [f.id for f in families() if f.id != "sciworld-v1"])
def test_the_built_in_worlds_keep_every_law(id: str) -> None:
    assert [str(result) for result in broken(check(id, examples=30))] == []


# --- worlds made to break one law ---------------------------------------------------


class Raises(Count):
    def step(self, action: str) -> StepResult:
        result = super().step(action)
        int(action.replace("up", "1").replace("stay", "0"))
        return result


class Garbage(Count):
    answer: ClassVar[Any] = None

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        answer: StepResult = self.answer if action == "stay" else result
        return answer


class Echoes(Count):
    """Repeats the action, cut in the middle of a character of another language."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        cut = action.encode()[:1].decode("utf-8", "surrogateescape")
        return StepResult(
            self.said if self.over else cut, result.reward, self.over, success=self.over
        )


class Pump(Count):
    """Pays for every visit to 2."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return StepResult(self.said, float(self.count == 2), result.terminated, success=self.over)


class ObservationMoves(Count):
    def observation(self) -> str:
        self.count += self.count > 1
        return super().observation()


class ExpertMoves(Count):
    def expert(self) -> str | None:
        advice = super().expert()
        self.count += self.count == 1 and self.goal > 2
        return advice


class StaleObservation(Count):
    def observation(self) -> str:
        return "count" if self.said == "done" else super().observation()


class NeverOver(Count):
    """Goes on after the end, and pays again."""

    def step(self, action: str) -> StepResult:
        self.over = False
        return super().step(action)


class StartsUnasked(Count):
    def live(self) -> None:
        self.open()

    def step(self, action: str) -> StepResult:
        self.goal = self.goal or 1
        return super().step(action)


class WrongError(Count):
    def step(self, action: str) -> StepResult:
        assert not self.over
        return super().step(action)


class AnswersClosed(Count):
    def close(self) -> None:
        self.over = True


class ClosesOnce(Count):
    def close(self) -> None:
        self.open()
        super().close()


class Random(Count):
    """Every fourth session starts at 1."""

    made: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Random.made += 1
        self.odd = Random.made % 4 == 0

    def reset(self, task: Task, seed: int) -> str:
        first = super().reset(task, seed)
        self.count = int(self.odd and self.goal > 1)
        return first


class ForgetsToReset(Count):
    def reset(self, task: Task, seed: int) -> str:
        kept = self.count if self.count < task.index else 0
        first = super().reset(task, seed)
        self.count = kept
        return first


class SharesItsCount(Count):
    """The count is kept by all sessions together."""

    shared: ClassVar[list[int]] = [0]

    def reset(self, task: Task, seed: int) -> str:
        self.shared[0] = 0
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        self.count = min(self.shared[0], max(self.goal - 1, 0))
        result = super().step(action)
        self.shared[0] = self.count
        return result


class ForgetfulSnapshot(Count):
    def snapshot(self) -> bytes:
        state = super().snapshot()
        return state[:1] + bytes((min(1, state[1]),)) + state[2:]


class EmptySnapshot(Count):
    def snapshot(self) -> bytes:
        state = super().snapshot()
        return state[:1] + b"\0" + state[2:]


class TakesAnySnapshot(Count):
    def restore(self, state: bytes) -> None:
        if len(state) > 2 and state[0] <= 6:
            super().restore(state)


class SnapshotMoves(Count):
    def snapshot(self) -> bytes:
        state = super().snapshot()
        self.count += self.count == 1 and self.goal > 2
        return state


class LazyExpert(Count):
    def expert(self) -> str | None:
        return super().expert() if self.goal < 6 else "stay"


class GivesUp(Count):
    """The expert loses on purpose: nothing but "up" is allowed, and it says "down"."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        if action != "down":
            return result
        self.over = True
        return StepResult(self.said, 0.0, True)

    def expert(self) -> str | None:
        return "down" if self.goal == 5 and not self.over else super().expert()


class AnyTask(Count):
    def reset(self, task: Task, seed: int) -> str:
        return super().reset(Task(task.env, min(6, max(1, task.index))), seed)


@pytest.mark.parametrize(
    ("world", "law", "finding"),
    [
        (Raises, "answers any text", "step raised ValueError"),
        (Echoes, "answers any text", "the observation cannot be sent"),
        (Pump, "answers any text", "the rewards sum to 2, outside reward_range 0 to 1"),
        (ObservationMoves, "asking changes nothing", "action"),
        (ExpertMoves, "asking changes nothing", "action"),
        (StaleObservation, "asking changes nothing", "observation() when asked first is 'count'"),
        (NeverOver, "nothing after the end", "step after the end answered"),
        (StartsUnasked, "nothing after the end", "step before reset answered"),
        (WrongError, "nothing after the end", "step after the end raised AssertionError"),
        (AnswersClosed, "closed is closed", "reset after close answered"),
        (ClosesOnce, "closed is closed", "close raised EnvironmentFault"),
        (Random, "deterministic", "the answer to action"),
        (ForgetfulSnapshot, "snapshot equals replay", "the answer to action"),
        (TakesAnySnapshot, "snapshot equals replay", "restore of garbage answered None"),
        (SnapshotMoves, "snapshot equals replay", "action"),
        (ForgetsToReset, "reset resets", "the answer to action"),
        (SharesItsCount, "isolated", "the answer to action"),
        (SharesItsCount, "sessions in any order", "the answer to action"),
        (ForgetsToReset, "sessions in any order", "the answer to action"),
        (EmptySnapshot, "sessions in any order", "the answer to action"),
        (LazyExpert, "expert keeps its word", "the expert is not done after 6 actions"),
        (GivesUp, "expert keeps its word", "the expert failed"),
        (AnyTask, "splits are disjoint", "reset accepts task -1, which is in no split"),
    ],
)
def test_each_law_finds_the_world_that_breaks_it(
    world: type[Count], law: str, finding: str
) -> None:
    Random.made = 0
    failures = the_broken(world, law)
    assert law in failures
    assert finding in failures[law]
    assert "environment: count-v1" in failures[law]


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (None, "step answered None, not a StepResult"),
        (StepResult(5), "step answered 5, not text"),  # type: ignore[arg-type]
        (StepResult("x", float("inf")), "the reward is inf"),
        (StepResult("x", True), "the reward is True, not a number"),
        (StepResult("x", "1"), "the reward is '1', not a number"),  # type: ignore[arg-type]
        (StepResult("x", -1.0), "the rewards sum to -1"),
        (StepResult("x", 0.0, 1), "terminated is 1, not a bool"),  # type: ignore[arg-type]
        (StepResult("x", success=True), "success without terminated"),
        (StepResult("x", terminated=True, truncated=True), "ends in one way"),
    ],
)
def test_an_unsound_answer_is_named(
    answer: Any, finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Garbage, "answer", answer)
    assert finding in the_broken(Garbage, "answers any text")["answers any text"]


def test_a_failure_is_shrunk_to_the_fewest_and_plainest_actions() -> None:
    failures = the_broken(Raises)
    assert list(failures) == ["answers any text"]  # and is told once, not under every law
    assert failures["answers any text"].splitlines()[1:] == [
        "  environment: count-v1",
        "  episode: task 1 (train), seed 0",
        "  actions: ['']",
    ]
    pumped = the_broken(Pump, "answers any text")["answers any text"]
    assert re.search(r"task [34] \(\w+\), seed 0\n  actions: \['up', 'up', '(stay)?'\]", pumped)


def test_the_same_seed_finds_the_same_failure() -> None:
    spec = replace(SOUND, make=ForgetsToReset)
    first, again = (check(spec, seed=3, only={"reset resets"}) for _ in range(2))
    assert first == again
    found = broken(first)
    assert "search seed: 3" in str(found[0])
    assert str(found[0]).startswith("BROKEN  reset resets\n")


def test_a_failure_of_several_sessions_tells_what_each_did() -> None:
    law = "sessions in any order"
    failure = the_broken(ForgetsToReset, law)[law]
    steps = failure.partition("sessions:\n")[2].splitlines()
    assert 2 <= len(steps) <= 6
    assert all(step.startswith("    session ") for step in steps)


def test_a_world_that_is_not_deterministic_may_say_so() -> None:
    Random.made = 0
    results = verdicts(replace(SOUND, make=Random, deterministic=False))
    assert not broken(results.values())
    assert "not deterministic" in results["deterministic"].skipped
    assert str(results["isolated"]).startswith("skipped isolated: the spec says")


class NoExtras(Count):
    """Neither snapshots nor an expert: both are optional."""

    def snapshot(self) -> bytes:
        return Environment.snapshot(self)

    def restore(self, state: bytes) -> None:
        Environment.restore(self, state)

    def expert(self) -> str | None:
        return None


def test_what_is_optional_is_skipped_and_said() -> None:
    results = verdicts(replace(SOUND, make=NoExtras), examples=20)
    assert not broken(results.values())
    assert "no snapshots" in results["snapshot equals replay"].skipped
    assert "no expert" in results["expert keeps its word"].skipped


def test_a_claim_of_the_expert_is_judged_by_what_is_likely() -> None:
    class Sometimes(Count):
        def expert(self) -> str | None:
            return super().expert() if self.goal % 2 else "stay"

    spec = replace(SOUND, make=Sometimes, expert_success=0.5)
    tasks = [Task(spec.id, 1 + n % 6) for n in range(60)]
    expert_keeps_its_word(spec, tasks)
    with pytest.raises(LawBroken, match="solved 30 of 60 tasks; the spec claims 90%"):
        expert_keeps_its_word(replace(spec, expert_success=0.9), tasks)


@pytest.mark.parametrize(
    ("splits", "finding"),
    [
        ({}, "no tasks"),
        ({"train": []}, "no tasks"),
        ({"train": [1, 2], "test": [2]}, "task 2 is in train and in test"),
        ({"training": [1]}, "split 'training' is none of"),
        ({"train": [1, 9]}, "reset raised ConfigError: no task 9"),
        ({"train": [1, 2]}, "reset accepts task 3"),
    ],
)
def test_splits_are_checked_before_anything_is_played(splits: dict[str, Any], finding: str) -> None:
    results = check(replace(SOUND, splits=splits))
    assert [result.held for result in results] == [False]
    assert finding in results[0].failure


def test_a_single_law_takes_a_script_of_ones_own() -> None:
    script = Script(Task("count-v1", 3, "train"), 5, (Move(), Move("stay"), Move("{} {}"), Move()))
    answers_any_text(SOUND, script)
    probe = Probe(SOUND).play(script)
    assert probe.actions == ["up", "stay", "up up", "up"]
    assert [answer.result.observation for answer in probe.answers] == [
        *("count to 3", "1", "1", "1", "2")
    ]
    assert probe.reward == 0


def test_a_probe_raises_law_broken_and_nothing_else() -> None:
    def explode() -> Environment:
        raise SystemError("no licence for this world")

    with pytest.raises(LawBroken, match="making a session raised SystemError: no licence"):
        Probe(replace(SOUND, make=explode))
    failure = the_broken(explode)["splits are disjoint"]
    assert "no licence" in failure


def test_the_machine_runs_under_unittest() -> None:
    for world, sound in ((Count, True), (ForgetsToReset, False)):
        rules = machine(replace(SOUND, make=world))
        assert issubclass(rules, SessionsMachine)
        rules.TestCase.settings = settings(max_examples=30, database=None, deadline=None)
        outcome = rules.TestCase("runTest").run()
        assert outcome is not None
        assert outcome.wasSuccessful() == sound


def test_results_can_be_sent_as_json() -> None:
    import msgspec

    results = check(SOUND, examples=5)
    assert len(msgspec.json.decode(msgspec.json.encode(results))) == len(results)
    assert encode(SOUND.tasks("train")[0])  # tasks of the laws are ordinary tasks


def test_without_hypothesis_the_missing_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from rollwave.engine.errors import MissingDependency\n"
        "try:\n    import rollwave.envs.laws\n"
        "except MissingDependency as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "rollwave[laws]" in done.stdout


def test_a_world_that_never_repeats_itself_is_a_finding_and_no_crash() -> None:
    """Hypothesis calls such a search flaky; that stays inside."""
    Random.made = 0
    assert broken(check(replace(SOUND, make=Random), examples=30))

"""Experiments as files: their arms, what is run once, what is judged, and the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rollwave.actors.arena import curriculum
from rollwave.actors.config import parse_config
from rollwave.benchmarks.experiments import __main__ as command
from rollwave.benchmarks.experiments.experiment import (
    FILES,
    Arm,
    Experiment,
    Term,
    load_experiment,
)
from rollwave.benchmarks.experiments.experiment import Test as Claim
from rollwave.benchmarks.experiments.page import draw, markdown
from rollwave.benchmarks.experiments.runs import KEPT, Outcome, Point, Results, read
from rollwave.benchmarks.experiments.verdict import contrast_of, finished, judge
from rollwave.engine.errors import ConfigError, StoreError

EXPERIMENTS = [load_experiment(path) for path in sorted(FILES.glob("e[0-9]*.toml"))]


def small(**changes) -> Experiment:
    """One experiment with two arms, by hand."""
    fields = {
        "id": "E0",
        "claim": "more is more",
        "source": "nobody",
        "base": "maze.toml",
        "seeds": 6,
        "arms": {"more": {"rollout.attempts": 2}, "less": {"rollout.attempts": 1}},
        "tests": (
            Claim(
                name="more − less",
                terms=(Term(weight=1, arm="more", wave=2), Term(weight=-1, arm="less", wave=2)),
            ),
        ),
        "budget": "unequal.",
    }
    return Experiment(**(fields | changes))


def as_toml(experiment: Experiment) -> str:
    """The fields as TOML; its inline values happen to be JSON's."""
    built = msgspec.to_builtins(experiment)
    arms = built.pop("arms")
    tests = built.pop("tests")
    lines = [f"{key} = {json.dumps(value)}" for key, value in built.items()]
    for name, settings in arms.items():
        lines += [f"[arms.{name}]", *(f'"{k}" = {json.dumps(v)}' for k, v in settings.items())]
    for test in tests:
        terms = ", ".join(
            "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in term.items()) + "}"
            for term in test["terms"]
        )
        lines += ["[[tests]]", f"name = {json.dumps(test['name'])}", f"terms = [{terms}]"]
    return "\n".join(lines)


def outcome(experiment: Experiment, name: str, seed: int, *tests: float, best: int = 0) -> Outcome:
    arm = Arm.of(experiment, name)
    points = tuple(Point(wave, test, test, 10, 0, 1) for wave, test in enumerate(tests))
    return Outcome(
        key=arm.key(seed),
        base=arm.base,
        settings=dict(arm.settings),
        seed=seed,
        points=points,
        best=best,
        stopped="all waves were run",
        turns=1,
        seconds=1.0,
        commit="",
    )


@pytest.fixture
def filled(tmp_path) -> tuple[Experiment, Results]:
    """Six seeds in which "more" ends 10 to 15 points higher."""
    experiment = small()
    results = Results(tmp_path / "results.jsonl")
    for seed in range(6):
        results.add(outcome(experiment, "more", seed, 30, 40, 50 + seed))
        results.add(outcome(experiment, "less", seed, 30, 35, 40))
    return experiment, results


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.id)
def test_every_arm_of_every_seed_is_a_campaign_that_could_start(experiment) -> None:
    """Its keys exist, its splits are large enough for all seeds, nothing tested is trained on."""
    for name in experiment.arms:
        for seed in (0, experiment.seeds - 1):
            config = parse_config(
                Arm.of(experiment, name).document(seed), f"{experiment.id} {name}"
            )
            assert config.run.seed == seed
            tasks = curriculum(config)
            assert len(tasks.test) == config.evaluate.test_tasks


def test_seeds_take_other_tasks_and_other_weights_and_the_same_test() -> None:
    arm = Arm.of(EXPERIMENTS[0], "evolved")
    first, second = (parse_config(arm.document(seed)) for seed in (0, 1))
    assert first.run.seed != second.run.seed
    one, other = curriculum(first), curriculum(second)
    assert not {task.id for task in one.experts} & {task.id for task in other.experts}
    assert one.dev != other.dev
    assert one.test == other.test


def test_equal_arms_of_different_experiments_are_one_run() -> None:
    by_id = {experiment.id: experiment for experiment in EXPERIMENTS}
    keys = {Arm.of(by_id[id_], "evolved").key(3) for id_ in ("E1", "E2", "E3", "E5")}
    assert len(keys) == 1
    assert Arm.of(by_id["E2"], "k1").key(3) not in keys


def test_a_contrast_is_the_weighted_sum_of_its_terms(filled) -> None:
    experiment, results = filled
    value = contrast_of(experiment, experiment.tests[0].terms, 3, results.get)
    assert value == pytest.approx(53 - 40)


def test_the_chosen_wave_and_waves_after_the_end() -> None:
    run = outcome(small(), "more", 0, 10, 30, 20, best=1)
    assert run.at(0) == 10
    assert run.at(-1) == 20
    assert run.at(-1, chosen=True) == 30
    assert run.at(7) == 20  # it had ended: it stands still


def test_verdicts_follow_interval_and_correction(filled) -> None:
    experiment, results = filled
    (found,) = judge([experiment], results.get)
    assert found.word == "supports"
    assert found.contrast.mean == pytest.approx(12.5)
    turned = small(
        tests=(
            Claim(
                name="less − more",
                terms=(Term(weight=-1, arm="more", wave=2), Term(weight=1, arm="less", wave=2)),
            ),
        )
    )
    assert judge([turned], results.get)[0].word == "contradicts"
    same = small(
        tests=(
            Claim(
                name="at the start",
                terms=(Term(weight=1, arm="more", wave=0), Term(weight=-1, arm="less", wave=0)),
            ),
        )
    )
    assert judge([same], results.get)[0].word == "open"
    # A test more, even one that found nothing, makes each claim dearer.
    both = judge([experiment, same], results.get)
    assert both[0].corrected == pytest.approx(2 * found.corrected)


def test_a_seed_counts_when_all_its_arms_are_there(filled, tmp_path) -> None:
    experiment, results = filled
    less = Results(tmp_path / "less.jsonl")
    for seed in (0, 2):
        less.add(outcome(experiment, "more", seed, 1, 2, 3))
    less.add(outcome(experiment, "less", 2, 1, 2, 3))
    assert finished(experiment, less.get) == [2]
    assert judge([experiment], less.get) == []  # one seed is no evidence
    left = list(command.missing([experiment], less))
    assert len(left) == 12 - 3
    assert [seed for _, seed in left] == sorted(seed for _, seed in left)
    assert list(command.missing([experiment], results)) == []
    assert {seed for _, seed in command.missing([experiment], less, 2)} == {0, 1}


def test_a_run_that_ended_before_it_learned_has_no_figure_of_learning() -> None:
    term = Term(weight=1, arm="more", wave=2, metric="entropy")
    experiment = small(tests=(*small().tests, Claim(name="entropy", terms=(term,))))

    def find(arm: Arm, seed: int) -> Outcome | None:
        name = "more" if dict(arm.settings)["rollout.attempts"] == 2 else "less"
        found = outcome(experiment, name, seed, 10.0, 20.0)
        if seed == 3:
            return found
        learned = msgspec.structs.replace(found.points[1], metrics={"entropy": 1.0})
        return msgspec.structs.replace(found, points=(found.points[0], learned))

    assert [v.contrast.seeds for v in judge([experiment], find)] == [6, 5]


def test_the_figures_that_claims_are_about_are_kept() -> None:
    asked = {term.metric for e in EXPERIMENTS for test in e.tests for term in test.terms}
    assert {"", "entropy"} <= asked <= {"", *KEPT}


def test_results_are_read_back_and_a_damaged_line_is_named(filled) -> None:
    experiment, results = filled
    again = Results(results.path)
    assert again.get(Arm.of(experiment, "more"), 4) == results.get(Arm.of(experiment, "more"), 4)
    with results.path.open("ab") as file:
        file.write(b'{"key": 1')
    with pytest.raises(StoreError, match="line 13"):
        Results(results.path)


def test_what_is_kept_of_a_report() -> None:
    row = {
        "arm": "evolution",
        "wave": 0,
        "steps": 8,
        "explored": 0,
        "kept": 25,
        "dev": {"success_rate": 0.5},
        "test": {"success_rate": 0.25},
        "metrics": {"loss": 1.0, "entropy": 0.5, "chosen_reward": None},
    }
    report = {
        "rows": [
            row,
            row | {"arm": "control", "wave": 1},
            row | {"wave": 1, "dev": None, "test": None},  # was not evaluated
        ],
        "best": 0,
        "stopped": "all 0 waves were run",
        "turns": 12,
        "seconds": 1.26,
    }
    found = read(Arm.of(small(), "more"), 2, report)
    assert found.points == (Point(0, 25.0, 50.0, 8, 0, 25, {"entropy": 0.5}),)
    assert found.at(0, metric="entropy") == 0.5
    with pytest.raises(LookupError, match=r"wave 0 .* no chosen_reward"):
        found.at(0, metric="chosen_reward")
    assert (found.seed, found.turns, found.seconds) == (2, 12, 1.3)


def test_the_page_shows_every_seed_and_the_figure_is_a_picture(filled, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    experiment, results = filled
    text = markdown(experiment, judge([experiment], results.get), results.get, "images/e0.png")
    assert "| more | 50.0 | 51.0 | 52.0 | 53.0 | 54.0 | 55.0 | 52.5 |" in text
    assert "| more − less | +12.5 [" in text
    assert "] points |" in text
    path = draw(experiment, results.get, tmp_path / "images" / "e0.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_files_are_named(tmp_path) -> None:
    path = tmp_path / "bad.toml"
    for change in ({"seeds": 1}, {"arms": {"more": {}}}, {"base": 3}):
        path.write_text(as_toml(small(**change)), "utf-8")
        with pytest.raises(ConfigError, match=r"bad\.toml"):
            load_experiment(path)
    path.write_text("id = ")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_experiment(path)


def test_the_command_refuses_unknown_names_and_runs_nothing_unasked(tmp_path) -> None:
    line = [sys.executable, "-m", "rollwave.benchmarks.experiments"]
    bad = subprocess.run([*line, "e99"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "e99" in bad.stderr
    assert "e01" in bad.stderr
    empty = [*line, "e01", "--results", str(tmp_path / "none.jsonl")]
    done = subprocess.run(empty, capture_output=True, text=True, check=True)
    assert "10 runs are missing" in done.stdout


@pytest.mark.learn
def test_a_run_is_a_campaign_and_leaves_figures_alone(tmp_path, monkeypatch) -> None:
    """The real thing, as small as it can be, on the transformers backend."""
    pytest.importorskip("torch")
    settings = {
        "inference.backend": "transformers",
        "experts.tasks": 4,
        "cloning.max_steps": 2,
        "cloning.batch": 2,
        "rollout.tasks": 2,
        "rollout.attempts": 1,
        "evaluate.dev_tasks": 2,
        "evaluate.test_tasks": 2,
        "stop.waves": 0,
        "environment.turn_limit": 2,
    }
    experiment = small(arms={"more": settings, "less": settings}, seeds=2)
    results = Results(tmp_path / "results.jsonl")
    left = list(command.missing([experiment], results))
    command.play(left, results, tmp_path / "out", 1, 10.0)
    assert len(results.path.read_text().splitlines()) == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert json.loads(results.path.read_text().splitlines()[0])["points"][0]["wave"] == 0
    assert Path(results.path).stat().st_size < 2000

"""The training benchmark: both sides meet the same batches, and the bars count what they say."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the benchmark trains a torch model")
pytestmark = pytest.mark.learn

from rollwave.benchmarks.training import OURS, compare, course, memory  # noqa: E402
from rollwave.benchmarks.training_job import Size, in_order, make_model, make_samples  # noqa: E402
from rollwave.benchmarks.training_side import train  # noqa: E402

SMALL = Size(
    items=6, batch=4, per_device=2, shortest=16, longest=48, typical=20, vocabulary=20, width=32,
    layers=1, epochs=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from rollwave.learners.model.policy import configure_threads

    configure_threads(1)
    return make_model(tmp_path_factory.mktemp("model") / "m", SMALL)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_tells_its_losses_time_and_memory(model, tmp_path, kind):
    found = course(kind, model, SMALL, 1e-3)
    figures = train(found.jobs[OURS], tmp_path)
    assert len(figures["losses"]) == 4  # 2 epochs of a whole step and a smaller one
    assert figures["losses"][0] == pytest.approx(0.6931, abs=1e-3) or kind == "sft"
    assert figures["cpu_seconds"] > figures["reference_seconds"] >= 0
    assert figures["peak_mib"] >= figures["before_mib"]
    assert figures["packed"]
    theirs = found.jobs["TRL"]["items"]
    assert len(theirs) == SMALL.epochs * SMALL.items
    assert {id(item) for item in theirs} == {id(item) for item in found.jobs[OURS]["items"]}


def test_samples_are_ragged_and_carry_loss_at_their_end():
    made = make_samples(SMALL)
    assert made == make_samples(SMALL)
    lengths = [len(item["ids"]) for item in made]
    assert len(set(lengths)) > 2
    assert all(16 <= n <= 48 for n in lengths)
    assert all(item["mask"][-1] == 1 and len(item["mask"]) == len(item["ids"]) for item in made)
    assert sorted(in_order(range(6), SMALL, lambda n: 1)) == sorted([*range(6), *range(6)])


def test_the_bars_take_the_best_mode_and_the_largest_gap():
    speeds = {OURS: [30.0, 33.0, 30.0], "TRL": [10.0, 11.0, 15.0], "TRL packed": [30.0, 30.0, 20.0]}
    losses = {OURS: [1.0, 2.0], "TRL": [1.0, 2.001], "TRL packed": [5.0]}
    results = {name: [{"losses": losses[name]}] * 3 for name in speeds}
    default, best, gap = compare("sft", speeds, results)
    assert (default.value.median, default.verdict) == (3.0, "reached")
    assert "TRL packed" in best.name
    assert best.value.median == pytest.approx(1.1)
    assert (round(gap.value.median, 6), gap.verdict) == (0.001, "missed")
    assert compare("sft", {OURS: [1.0]}, {}) == []
    share = memory({OURS: [{"peak_mib": 90.0}], "TRL": [{"peak_mib": 80.0}]})[0]
    assert (share.value.median, share.verdict) == (1.125, "missed")

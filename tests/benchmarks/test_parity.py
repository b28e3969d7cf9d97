"""Losses and gradients equal TRL's on the same batch: its numbers as written down, and live."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="losses are taken of a torch model")
pytestmark = pytest.mark.learn

from rollwave.benchmarks.parity import GOLDEN, KINDS, furthest, make_jobs, ours, theirs  # noqa: E402

PYTHON = Path(__file__).resolve().parents[2] / ".bench" / "trl" / "bin" / "python"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict:
    from rollwave.learners.model.policy import configure_threads

    configure_threads(1)
    return make_jobs(tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_that_trl_gave(jobs, kind):
    golden = json.loads(GOLDEN.read_text("utf-8"))[kind]
    assert golden["versions"]["trl"] == "1.16.0"
    assert furthest(ours(jobs[kind]), golden) < TOLERANCE


def test_the_dpo_loss_is_trls_to_a_millionth(jobs):
    """Both take it of the same log-probs of the same reference."""
    golden = json.loads(GOLDEN.read_text("utf-8"))["dpo"]
    assert ours(jobs["dpo"])["loss"] == pytest.approx(golden["loss"], abs=1e-6)


def test_the_comparison_sees_another_loss_and_another_gradient(jobs):
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert furthest(ours(jobs["grpo"]), golden["dapo"]) > TOLERANCE
    other = jobs["dpo"] | {"beta": 0.31}
    assert furthest(ours(other), golden["dpo"]) > TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON.exists(), reason="TRL is not installed: `python -m rollwave.benchmarks.parity` does"
)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_trl(jobs, kind):
    assert furthest(ours(jobs[kind]), theirs(jobs[kind], PYTHON)) < TOLERANCE

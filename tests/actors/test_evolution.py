"""The rules of the loop, through a whole campaign: when it ends, and which policy it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rollwave.actors import arena, evolution
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import parse_config
from rollwave.actors.evaluator import Evaluation
from rollwave.actors.protocol import PolicyUpdated, UpdatePolicy
from rollwave.actors.report import CampaignResult
from rollwave.actors.simulation.rehearsal import SleepingLearner, rehearsal
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Trajectory


def play(
    out: Path,
    *,
    every: int = 1,
    learner: dict[str, Any] | None = None,
    orders: list[UpdatePolicy] | None = None,
    **stop: Any,
) -> CampaignResult:
    """A campaign of at most six waves whose learner sleeps; two dev tasks, no test tasks.

    `orders` takes what the learner is told.
    """
    document: dict[str, Any] = {
        "environment": {"id": "maze-grid-v1?size=3&style=terse"},
        "model": {"path": "nowhere"},
        "experts": {"tasks": 0},
        "rollout": {"tasks": 12, "batch": 4, "attempts": 2},
        "learner": learner or {"algorithm": "grpo"},
        "evaluate": {"dev_tasks": 2, "test_tasks": 0, "every": every},
        "stop": {"waves": 6} | stop,
    }
    told: list[UpdatePolicy] = [] if orders is None else orders

    class Listening(SleepingLearner):
        async def receive(self, message: UpdatePolicy) -> PolicyUpdated:  # type: ignore[override]
            told.append(message)
            return await super().receive(message)

    asleep = rehearsal(ConstantLatency(0.1), lambda _: 1.0)
    cast = replace(asleep, learner=lambda _config, _watch: Listening(lambda _: 1.0))

    async def main() -> CampaignResult:
        return await run_campaign(parse_config(document), out, cast=cast)

    return run_simulated(main)


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`rewarded(r0, r1, …)`: dev rewards of the policies, by wave, with an error of 0.02."""
    plain = arena.summarise

    def give(*rewards: float) -> None:
        def told(name: str, trajectories: Sequence[Trajectory]) -> Evaluation:
            reward = rewards[trajectories[0].wave]
            found = plain(name, trajectories)
            return replace(found, average_reward=reward, average_reward_error=0.02)

        monkeypatch.setattr(arena, "summarise", told)

    return give


@pytest.mark.parametrize(
    ("rewards", "stop", "waves", "best", "reason"),
    [
        # A fall of 0.1 is more than twice the error of the difference, which is 0.028.
        ((0.2, 0.6, 0.5), {}, 2, 1, "dev reward fell in wave 2: rolled back to wave 1"),
        # One of 0.05 is not; but it is no gain either, twice.
        ((0.2, 0.6, 0.55, 0.56), {}, 3, 1, "dev reward gained less than 0.005 in 2 waves"),
        # What gained a little is the best all the same.
        ((0.5, 0.502, 0.504), {}, 2, 2, "dev reward gained less than 0.005 in 2 waves"),
        ((0.5, 0.5, 0.51, 0.51, 0.51), {}, 4, 2, "dev reward gained less than 0.005 in 2 waves"),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), {}, 6, 6, "all 6 waves were run"),
        # The same fall is within 4 errors.
        ((0.2, 0.6, 0.5, 0.6), {"rollback_errors": 4.0}, 3, 1, "dev reward gained less than"),
        ((0.6, 0.5), {"rollback_errors": 1.0}, 1, 0, "dev reward fell in wave 1: rolled back to"),
        # Of equals the earliest.
        ((0.4, 0.4, 0.4, 0.4), {"patience": 3}, 3, 0, "dev reward gained less than 0.005 in 3"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_dev_tasks_end_it_and_choose(
    tmp_path: Path,
    rewarded: Any,
    rewards: tuple[float, ...],
    stop: dict[str, Any],
    waves: int,
    best: int,
    reason: str,
) -> None:
    rewarded(*rewards)
    result = play(tmp_path, **stop)
    assert [row.wave for row in result.rows] == list(range(waves + 1))
    assert result.best == best
    assert result.stopped.startswith(reason)
    assert play(tmp_path, **stop) == result  # what is on disk is judged again, and alike


@pytest.mark.parametrize(
    ("newest", "best", "kept"),
    [(0.3, 0, "rolled back to wave 0"), (0.9, 1, "dev tasks choose it all the same")],
)
def test_a_collapsed_policy_is_evaluated_before_anything_is_said_of_it(
    tmp_path: Path,
    rewarded: Any,
    monkeypatch: pytest.MonkeyPatch,
    newest: float,
    best: int,
    kept: str,
) -> None:
    """It named the best of those before, and the table then chose another."""
    rewarded(0.5, newest)
    monkeypatch.setattr(evolution, "collapse", lambda **_: "its KL jumped")
    result = play(tmp_path, every=3)
    assert result.stopped == f"collapse in wave 1: its KL jumped; {kept}"
    assert result.best == best
    assert [row.dev is not None for row in result.rows] == [True, True]


def test_patience_counts_evaluations_where_not_every_wave_is_evaluated(
    tmp_path: Path, rewarded: Any
) -> None:
    rewarded(0.5, 9.0, 0.5, 9.0, 0.5, 9.0, 9.0)
    result = play(tmp_path, every=2)
    assert [row.wave for row in result.rows if row.dev is not None] == [0, 2, 4]
    assert result.stopped == "dev reward gained less than 0.005 in 2 evaluations"
    assert result.best == 0


@pytest.mark.parametrize(
    ("learner", "everything"),
    [
        ({"algorithm": "agent_evol"}, True),
        ({"algorithm": "eto", "scope": "all_tasks", "self_play": True}, True),
        ({"algorithm": "rft"}, False),
        ({"algorithm": "dpo"}, False),
        ({"algorithm": "ppo"}, False),
    ],
    ids=lambda value: value["algorithm"] if isinstance(value, dict) else "",
)
def test_a_step_gets_all_waves_or_its_own_and_the_policies_to_start_from(
    tmp_path: Path, rewarded: Any, learner: dict[str, Any], everything: bool
) -> None:
    rewarded(0.1, 0.2, 0.3, 0.4)
    orders: list[UpdatePolicy] = []
    play(tmp_path, learner=learner, orders=orders, waves=3)
    assert [order.wave for order in orders] == [1, 2, 3]
    for order in orders:
        given = [int(Path(path).stem.rpartition("-")[2]) for path in order.waves]
        assert given == list(range(1 if everything else order.wave, order.wave + 1))
        assert order.starts["base_bc"] == order.starts["pretrained"] == "nowhere"
        last = Path(order.starts["last"]).name
        assert last == (f"policy-{order.wave - 1:04d}" if order.wave > 1 else "nowhere")
        assert order.out.endswith(f"policy-{order.wave:04d}")

"""Waves explored ahead of the learner: nothing too old, nothing twice, nothing lost, and an end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.actors import arena
from rollwave.actors.backends.latency import ConstantLatency, Latency, UniformLatency
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.actors.embedding import Engine, open_engine
from rollwave.actors.monitor import Snapshot
from rollwave.actors.report import CampaignResult
from rollwave.actors.simulation.rehearsal import read_rehearsed, rehearsal
from rollwave.actors.simulation.scenario import told
from rollwave.actors.turnlog import read_progress
from rollwave.engine.errors import TooManyFaults
from rollwave.engine.incarnation import sole
from rollwave.engine.store import Store
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Trajectory

EVER = 1e7
TASKS, ATTEMPTS, WAVES = 6, 2, 4


def config(max_staleness: int, **sections: dict[str, Any]) -> CampaignConfig:
    document: dict[str, Any] = {
        "run": {"max_staleness": max_staleness, "concurrency": 4, "turn_seconds": 1e4},
        "environment": {"id": "maze-grid-v1?size=3&style=terse", "turn_limit": 4},
        "model": {"path": "nowhere"},
        "experts": {"tasks": 0},
        "rollout": {"tasks": 20, "batch": TASKS, "attempts": ATTEMPTS},
        "learner": {"algorithm": "grpo"},
        "evaluate": {"dev_tasks": 3, "test_tasks": 0, "every": 2},
        "stop": {"waves": WAVES, "patience": 99, "rollback_errors": 1000.0},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    return parse_config(document)


class Campaign:
    """A campaign in virtual time, killed now and then, on a disk that survives."""

    def __init__(
        self,
        out: Path,
        settings: CampaignConfig,
        latency: Latency,
        training: Callable[[int], float],
        swap_seconds: float = 0.0,
    ) -> None:
        self.out = out
        self.settings = settings
        self.cast = rehearsal(latency, training, swap_seconds=swap_seconds)
        self.engines: list[Engine] = []
        self.seconds = 0.0
        self.stages: list[str] = []

    def run(self, seed: int = 0, kill_at: float = EVER) -> CampaignResult | None:
        """Run the command; None where it was killed at that second, with the disk as it was."""
        left = self.out.with_name("left")

        async def kill(scope: trio.CancelScope) -> None:
            await trio.sleep(kill_at)
            shutil.copytree(self.out, left)
            scope.cancel()

        async def main() -> CampaignResult | None:
            result = None
            with trio.fail_after(EVER):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kill, nursery.cancel_scope)
                    result = await run_campaign(self.settings, self.out, self.watch, cast=self.cast)
                    nursery.cancel_scope.cancel()
            self.seconds = trio.current_time()
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arena, "open_engine", self.open_engine)
            patch.setattr(os, "fsync", lambda _: None)  # nobody cuts the power here
            patch.setattr(os, "fdatasync", lambda _: None)
            try:
                result = run_simulated(main, seed=seed)
            except BaseExceptionGroup as group:
                raise sole(group) from None
        if left.exists():
            if result is None:
                shutil.rmtree(self.out)
                left.rename(self.out)
            else:
                shutil.rmtree(left)
        return result

    def watch(self, snapshot: Snapshot) -> None:
        self.stages.append(snapshot.stage)

    def open_engine(self, *arguments: Any, **named: Any) -> Any:
        """As the engine's own, but remembered."""
        inner = open_engine(*arguments, **named)
        campaign = self

        class Opened:
            async def __aenter__(self) -> Engine:
                engine = await inner.__aenter__()
                campaign.engines.append(engine)
                return engine

            async def __aexit__(self, *error: Any) -> bool | None:  # noqa: PYI036
                return await inner.__aexit__(*error)

        return Opened()

    def sealed(self) -> dict[int, list[Trajectory]]:
        with Store.open(self.out, exclusive=False) as store:
            return {w.number: list(store.read(w.number).trajectories) for w in store.waves()}


def check(campaign: Campaign, result: CampaignResult) -> None:
    """What must hold at the end, whatever happened before."""
    oldest = campaign.settings.run.max_staleness
    assert [row.wave for row in result.rows] == list(range(WAVES + 1))
    assert [row.policy_version for row in result.rows] == list(range(WAVES + 1))
    sealed = campaign.sealed()
    assert sorted(sealed) == list(range(1, WAVES + 1))
    seen: set[str] = set()
    for row in result.rows[1:]:
        trained = read_rehearsed(row.model)
        # Trained on exactly the wave, none of it too old, none of it ever before.
        assert list(trained.trained) == [t.id for t in sealed[row.wave]]
        assert len(trained.trained) == TASKS * ATTEMPTS == row.kept
        assert max(trained.ages) <= oldest
        assert row.dropped == {"stale": 0}
        assert not seen & set(trained.trained)
        seen |= set(trained.trained)
        for t in sealed[row.wave]:
            written = [turn.policy_version for turn in t.turns]
            assert written == sorted(written)
            assert t.versions == (written[0], written[-1])
            assert row.wave - 1 - oldest <= written[0]
            assert written[-1] <= row.wave - 1
    assert result.rows[-1].explored == len(seen)
    assert result.unused == 0
    for engine in campaign.engines:
        assert engine.permits.statistics().held == 0
        assert engine.ledger.books == {}


latencies = st.one_of(
    st.builds(ConstantLatency, st.floats(0.01, 5.0)),
    st.builds(lambda low, more: UniformLatency(low, low + more), st.floats(0, 1), st.floats(0, 20)),
)
trainings = st.lists(st.floats(0, 100), min_size=WAVES, max_size=WAVES)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 3),
    latencies,
    trainings,
    st.floats(0, 5),
    st.lists(st.floats(0.5, 200), max_size=3),
    st.integers(0, 99),
)
def test_nothing_is_too_old_or_trained_on_twice_or_lost_and_it_ends(
    max_staleness: int,
    latency: Latency,
    training: list[float],
    swap: float,
    kills: list[float],
    seed: int,
) -> None:
    with TemporaryDirectory() as folder:
        campaign = Campaign(
            Path(folder) / "run",
            config(max_staleness),
            latency,
            lambda wave: training[wave - 1],
            swap,
        )
        acknowledged: dict[str, Trajectory] = {}
        result = None
        for number, kill_at in enumerate([*kills, EVER]):
            result = campaign.run(seed + number, kill_at)
            if result is not None:
                break
            ended, _ = read_progress(campaign.out / "journal.msgpack")
            acknowledged |= ended
            for wave in campaign.sealed().values():
                acknowledged |= {t.id: t for t in wave}
        assert result is not None
        check(campaign, result)
        final = {t.id: t for wave in campaign.sealed().values() for t in wave}
        assert len(final) == WAVES * TASKS * ATTEMPTS
        # What had ended before a kill was not played again, by whatever policy.
        assert acknowledged.items() <= final.items()


def learned(campaign: Campaign, result: CampaignResult) -> list[object]:
    """All that a campaign comes to, without the times."""
    waves = [[told(t) for t in wave] for wave in campaign.sealed().values()]
    return [waves, [(r.wave, r.steps, r.kept, r.dev) for r in result.rows], result.best]


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(latencies, trainings, st.lists(st.floats(0.5, 100), max_size=2), st.integers(0, 9))
def test_taking_turns_the_same_seed_gives_the_same_run_whatever_the_times(
    latency: Latency, training: list[float], kills: list[float], seed: int
) -> None:
    with TemporaryDirectory() as folder:
        plain = Campaign(Path(folder) / "a" / "run", config(0), ConstantLatency(1.0), lambda _: 1.0)
        first = plain.run()
        other = Campaign(
            Path(folder) / "b" / "run", config(0), latency, lambda wave: training[wave - 1]
        )
        second = None
        for number, kill_at in enumerate([*kills, EVER]):
            if (second := other.run(seed + number, kill_at)) is not None:
                break
        assert first is not None
        assert second is not None
        assert learned(other, second) == learned(plain, first)
        assert {t.versions for t in plain.sealed()[3]} == {(2, 2)}


def staleness(result: CampaignResult) -> list[dict[int, int]]:
    return [row.figures.staleness for row in result.rows if row.figures is not None]


def test_a_slow_learner_is_met_by_waves_as_old_as_is_allowed_and_the_campaign_is_faster(
    tmp_path: Path,
) -> None:
    seconds = {}
    for ahead in (0, 1, 2):
        campaign = Campaign(
            tmp_path / str(ahead) / "run", config(ahead), ConstantLatency(1.0), lambda _: 50.0
        )
        result = campaign.run()
        assert result is not None
        check(campaign, result)
        seconds[ahead] = campaign.seconds
        oldest = [max(ages) for ages in staleness(result)]
        assert oldest == [min(wave, ahead) for wave in range(WAVES)]
    assert seconds[1] < seconds[0]
    # The learner never waits for a wave but the first, from one wave ahead on.
    assert seconds[2] == seconds[1]


def test_weights_are_swapped_under_episodes_that_run(tmp_path: Path) -> None:
    """Each turn says who wrote it: some trajectories were written by two policies."""
    campaign = Campaign(
        tmp_path / "run", config(1), UniformLatency(1.0, 9.0), lambda _: 20.0, swap_seconds=0.5
    )
    result = campaign.run()
    assert result is not None
    check(campaign, result)
    spans = {t.versions for t in campaign.sealed()[3]}
    assert any(first < last for first, last in spans)


def test_a_finished_campaign_is_read_and_starts_no_engine(tmp_path: Path) -> None:
    for ahead in (0, 2):
        campaign = Campaign(
            tmp_path / str(ahead) / "run", config(ahead), ConstantLatency(1.0), lambda _: 5.0
        )
        first = campaign.run()
        campaign.engines.clear()
        campaign.stages.clear()
        assert campaign.run(seed=9) == first
        assert campaign.engines == []
        assert campaign.stages == []


def test_what_was_explored_ahead_of_an_early_end_is_counted_and_left_alone(tmp_path: Path) -> None:
    """The budget ends it after two waves, while later ones are under way."""
    settings = config(2, stop={"steps": 2})
    campaign = Campaign(tmp_path / "run", settings, ConstantLatency(1.0), lambda _: 50.0)
    first = campaign.run()
    assert first is not None
    assert "the budget of 2 optimiser steps is used up" in first.stopped
    assert [row.wave for row in first.rows] == [0, 1, 2]
    assert first.unused == 2 * TASKS * ATTEMPTS
    campaign.engines.clear()
    assert campaign.run() == first
    assert campaign.engines == []


def test_an_exploration_that_breaks_is_told_after_the_step_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollwave.actors.explorer import Explorer

    explore = Explorer.explore

    async def broken(self: Explorer, wave: int) -> Any:
        if wave == 3:
            raise TooManyFaults("the world is broken")
        return await explore(self, wave)

    campaign = Campaign(tmp_path / "run", config(2), ConstantLatency(1.0), lambda _: 50.0)
    with monkeypatch.context() as patch:
        patch.setattr(Explorer, "explore", broken)
        with pytest.raises(TooManyFaults, match="the world is broken"):
            campaign.run()
    assert (tmp_path / "run" / "models" / "policy-0002" / "training.json").is_file()
    result = campaign.run()
    assert result is not None
    check(campaign, result)

"""What a wave is made of: batches, rounds until groups say something, stages of turns, branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.campaign import run_campaign
from rollwave.actors.config import parse_config
from rollwave.actors.report import CampaignResult, Row
from rollwave.actors.simulation.rehearsal import WORDS, read_rehearsed, rehearsal
from rollwave.engine.codec import unpack_tokens
from rollwave.engine.store import Store
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import FinishReason, Trajectory, Wave
from rollwave.learners.settings import AnyLearner


def play(out: Path, learner: dict[str, Any], **sections: dict[str, Any]) -> CampaignResult:
    """A campaign whose policy draws words and whose learner sleeps."""
    document: dict[str, Any] = {
        "environment": {"id": "maze-grid-v1?size=3&style=terse"},
        "model": {"path": "nowhere"},
        "experts": {"tasks": 0},
        "rollout": {"tasks": 12, "batch": 4, "attempts": 2},
        "learner": learner,
        "evaluate": {"dev_tasks": 2, "test_tasks": 0},
        "stop": {"waves": 3, "patience": 99, "rollback_errors": 1000.0},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    cast = rehearsal(ConstantLatency(0.1), lambda _: 1.0)

    async def main() -> CampaignResult:
        return await run_campaign(parse_config(document), out, cast=cast)

    return run_simulated(main)


def sealed(out: Path) -> dict[int, Wave]:
    with Store.open(out, exclusive=False) as store:
        return {info.number: store.read(info.number) for info in store.waves()}


def tasks(wave: Wave) -> list[str]:
    return [group.task_id for group in wave.groups()]


def useful(wave: Wave) -> int:
    return sum(len(set(group.rewards())) > 1 for group in wave.groups())


GRPO = {"algorithm": "grpo"}


def test_a_batch_is_drawn_for_each_wave_and_none_comes_twice_in_a_pass(tmp_path: Path) -> None:
    result = play(tmp_path, GRPO)
    waves = sealed(tmp_path)
    assert sorted(waves) == [1, 2, 3]
    played = [task for wave in waves.values() for task in tasks(wave)]
    assert len(played) == len(set(played)) == 12
    assert [row.explored for row in result.rows] == [0, 8, 16, 24]
    assert result.rows[3].figures is not None
    assert result.rows[3].figures.rounds == 1


def test_rounds_make_up_for_groups_that_say_nothing(tmp_path: Path) -> None:
    """Short episodes: most attempts fail alike."""
    result = play(
        tmp_path,
        GRPO,
        rollout={"tasks": 200, "rounds": 8, "batch": 4, "horizon": [3]},
        stop={"waves": 2},
    )
    waves = sealed(tmp_path)
    for row in result.rows[1:]:
        figures = row.figures
        assert figures is not None
        # Eight numbers a wave; those that were played stand one after another.
        first = (row.wave - 1) * 8 + 1
        parts = [waves[n] for n in range(first, first + figures.rounds)]
        assert 1 < figures.rounds <= 8
        found = 0
        for part in parts:
            assert len(tasks(part)) == 4 - found  # never more than can be missing
            found += useful(part)
        assert found == figures.groups_used <= 4
        assert found == 4 or figures.rounds == 8
        drawn = [task for part in parts for task in tasks(part)]
        assert len(drawn) == len(set(drawn)) == figures.tasks
        assert figures.episodes == 2 * figures.tasks
        trained = read_rehearsed(row.model).trained
        assert list(trained) == [t.id for part in parts for t in part.trajectories]
    assert sum(len(w.trajectories) for w in waves.values()) == result.rows[-1].explored
    assert result.unused == 0


def test_a_wave_in_which_no_group_says_anything_ends_the_campaign(tmp_path: Path) -> None:
    hard = {
        "environment": {"id": "maze-grid-v1?size=7&style=terse"},
        "rollout": {"rounds": 9, "horizon": [1]},
    }
    result = play(tmp_path, GRPO, **hard)
    assert [row.wave for row in result.rows] == [0]
    # The pool has 12 tasks: after three rounds it has had its turn.
    assert "wave 1: after 3 rounds with 12 tasks every group's rewards are equal" in result.stopped
    assert result.unused == 24
    assert play(tmp_path, GRPO, **hard) == result


def test_the_horizon_grows_by_stages_and_evaluation_has_the_last(tmp_path: Path) -> None:
    result = play(
        tmp_path,
        GRPO,
        rollout={"horizon": [1, 2, 5], "horizon_waves": 2},
        stop={"waves": 6},
        evaluate={"every": 4},
    )
    limits = [row.figures.turn_limit for row in result.rows if row.figures is not None]
    assert limits == [1, 1, 2, 2, 5, 5]
    for number, wave in sealed(tmp_path).items():
        longest = max(len(t.turns) for t in wave.trajectories)
        assert longest <= limits[number - 1]
        assert longest == limits[number - 1] or number > 4
    dev = sealed(tmp_path / "evaluations" / "dev")
    assert sorted(dev) == [0, 4, 6]
    assert max(len(t.turns) for t in dev[0].trajectories) > 2
    assert [row.wave for row in result.rows if row.dev is not None] == [0, 4, 6]
    assert result.best in {0, 4, 6}


@pytest.mark.parametrize(
    ("stop", "waves", "reason"),
    [
        ({"steps": 2}, 2, "the budget of 2 optimiser steps is used up, after wave 2"),
        ({"episodes": 9}, 2, "the budget of 9 episodes is used up, after wave 2"),
        ({"max_format_errors": 0.0}, 3, "all 3 waves were run"),
        ({"min_entropy": 1.0}, 1, "collapse in wave"),
    ],
)
def test_budgets_and_collapse_end_it_and_the_last_policy_is_evaluated(
    tmp_path: Path, stop: dict[str, Any], waves: int, reason: str
) -> None:
    result = play(tmp_path, GRPO, stop=stop, evaluate={"every": 50})
    assert result.stopped.startswith(reason)
    assert waves <= result.rows[-1].wave <= 3
    assert [row.dev is not None for row in result.rows] == [
        row in (result.rows[0], result.rows[-1]) for row in result.rows
    ]


def test_kl_far_above_its_median_is_a_collapse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollwave.actors import evolution

    read = evolution.read_training

    def jumping(model: str) -> Any:
        training = read(model)
        training.metrics["kl"] = 0.9 if model.endswith("7") else 0.01
        return training

    monkeypatch.setattr(evolution, "read_training", jumping)
    result = play(tmp_path, GRPO, stop={"waves": 9})
    assert result.stopped == (
        "collapse in wave 7: KL 0.9 is above 10 times its median of 0.01; rolled back to wave "
        f"{result.best}"
    )


# -- branches ---------------------------------------------------------------------------------

ETO = {"algorithm": "eto", "contrast": "step"}


def branches(out: Path, learner: dict[str, Any], **sections: dict[str, Any]) -> list[Row]:
    """Experts are played; cloning is slept through like any step."""
    return list(
        play(
            out,
            learner,
            experts={"tasks": 4},
            rollout={"batch": 3, "attempts": 1, "temperature": 0.0},
            stop={"waves": 2},
            **sections,
        ).rows
    )


def prefix(t: Trajectory, turns: int) -> list[tuple[str, str, float]]:
    return [(turn.observation, turn.action, turn.reward) for turn in t.turns[:turns]]


def check_branches(wave: Wave, experts: dict[str, Trajectory]) -> None:
    """The t-th goes on behind the expert's first t-1 turns, whose tokens are not its own."""
    by_task = {group.task_id: group.trajectories for group in wave.groups()}
    assert len(by_task) == 3
    for task, members in by_task.items():
        expert = experts[task]
        assert [t.attempt for t in members] == list(range(1, len(expert.turns) + 1))
        for t in members:
            t.check()
            assert t.environment_seed == expert.environment_seed
            before = t.attempt - 1
            assert prefix(t, before) == prefix(expert, before)
            assert {turn.finish for turn in t.turns[:before]} <= {FinishReason.SCRIPTED}
            assert len(t.turns) > before
            for turn in t.turns[before:]:
                assert turn.finish is not FinishReason.SCRIPTED
                assert turn.completion in WORDS
                assert turn.end > turn.start
            assert t.versions == (wave.policy_version, wave.policy_version)
            first = t.turns[before]
            assert not any(t.loss_mask[: first.start])
            # The model saw the expert's words.
            seen = bytes(i for i in unpack_tokens(t.token_ids)[: first.start] if i < 256)
            for turn in expert.turns[:before]:
                assert turn.completion.encode() in seen


def test_single_turns_are_explored_behind_the_experts_own(tmp_path: Path) -> None:
    rows = branches(tmp_path, ETO)
    waves = sealed(tmp_path)
    assert sorted(waves) == [0, 1, 2]
    experts = {t.task_id: t for t in waves[0].trajectories}
    assert max(len(t.turns) for t in experts.values()) > 2
    for number in (1, 2):
        check_branches(waves[number], experts)
    assert [row.wave for row in rows] == [0, 1, 2]


def test_both_are_explored_where_pairs_are_mixed(tmp_path: Path) -> None:
    rows = branches(tmp_path, ETO | {"contrast": "mixture"})
    waves = sealed(tmp_path)
    assert sorted(waves) == [0, 1, 2, 3, 4]
    experts = {t.task_id: t for t in waves[0].trajectories}
    for wave in (1, 2):
        plain, branched = waves[2 * wave - 1], waves[2 * wave]
        assert {t.attempt for t in plain.trajectories} == {0}
        assert tasks(plain) == tasks(branched)
        check_branches(branched, experts)
        trained = read_rehearsed(rows[wave].model).trained
        both = (*plain.trajectories, *branched.trajectories)
        assert list(trained) == [t.id for t in both]


def test_an_opening_that_cannot_be_rebuilt_is_a_fault_and_no_other_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollwave.actors import explorer

    make = explorer.branches

    def forged(experts: list[Trajectory], wave: int, renderer: Any) -> Any:
        from msgspec.structs import replace

        openings = make(experts, wave, renderer)
        for id_, opening in openings.items():
            if opening.turns:
                first, *rest = opening.turns
                other = replace(first, turn=replace(first.turn, observation="elsewhere"))
                openings[id_] = replace(opening, turns=(other, *rest))
        return openings

    monkeypatch.setattr(explorer, "branches", forged)
    branches(tmp_path, ETO, run={"max_fault_share": 1.0})
    for t in sealed(tmp_path)[1].trajectories:
        if t.attempt == 1:
            assert t.outcome.scored
        else:
            assert t.fault is not None
            assert "cannot be rebuilt: turn 0 began with another observation" in t.fault.text


def test_every_algorithm_of_the_settings_names_a_way_to_explore() -> None:
    kinds = {str(kind().exploration) for kind in AnyLearner.__args__}
    assert kinds == {"tasks"}  # of all defaults; branches are asked for

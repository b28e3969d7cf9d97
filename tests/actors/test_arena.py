"""The tasks of a campaign, and when its world counts as broken."""

from __future__ import annotations

from typing import Any

import pytest
from rollwave.actors.arena import curriculum
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.engine.errors import ConfigError


def config(**sections: dict[str, Any]) -> CampaignConfig:
    document: dict[str, Any] = {
        "environment": {"id": "maze-grid-v1?style=terse"},
        "model": {"tiny": {}},
        "experts": {"tasks": 4},
        "rollout": {"tasks": 10},
        "evaluate": {"dev_tasks": 3, "test_tasks": 5},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    return parse_config(document)


def test_evaluation_tasks_are_none_of_those_trained_on() -> None:
    tasks = curriculum(config())
    assert [len(part) for part in (tasks.experts, tasks.explore, tasks.dev, tasks.test)] == [
        4,
        10,
        3,
        5,
    ]
    assert tasks.evaluation == (*tasks.dev, *tasks.test)
    trained = {task.id for task in (*tasks.experts, *tasks.explore)}
    assert not trained & {task.id for task in tasks.evaluation}
    assert {task.split for task in tasks.dev} == {"dev"}
    assert {task.split for task in tasks.test} == {"test"}


def test_every_part_may_begin_elsewhere_in_its_split() -> None:
    shifted = curriculum(
        config(experts={"first": 40}, rollout={"first": 100}, evaluate={"test_first": 7})
    )
    assert [task.index for task in shifted.experts] == [40, 41, 42, 43]
    assert [task.index for task in shifted.explore] == list(range(100, 110))
    assert [task.index - 4500 for task in shifted.test] == [7, 8, 9, 10, 11]


def test_experts_tasks_alone_may_be_explored() -> None:
    tasks = curriculum(config(learner={"scope": "expert_tasks"}))
    assert tasks.explore == tasks.experts


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"rollout": {"tasks": 4001}}, "split 'train' of .* has no 4001 tasks from number 0"),
        ({"rollout": {"split": "nowhere"}}, "no split 'nowhere'; it has: train"),
        ({"evaluate": {"dev_first": 499}}, "split 'dev' of .* has no 3 tasks from number 499"),
    ],
)
def test_tasks_that_do_not_exist_are_named(sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        curriculum(config(**sections))

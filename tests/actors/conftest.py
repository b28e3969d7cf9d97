"""Files of experts as others bring them, made of what an environment's own expert does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rollwave.envs.base import EnvSpec
from rollwave.envs.formats import get_format
from rollwave.envs.registry import resolve

ExpertFile = Callable[..., str]


def item(spec: EnvSpec, number: int) -> dict[str, Any]:
    """One solved episode in AgentTraj's form."""
    task = spec.numbered([number])[0]
    form = get_format(spec.action_format)
    session = spec.make()
    seen = session.reset(task, 0)
    talk: list[dict[str, Any]] = []
    for message in spec.prompt:
        speaker = "human" if message.role == "user" else "gpt"
        talk.append({"from": speaker, "loss": message.loss, "value": message.text})
    done = False
    while not done:
        action = session.expert()
        assert action is not None
        talk.append({"from": "human", "loss": None, "value": seen})
        talk.append({"from": "gpt", "loss": True, "value": form.render("next", action)})
        result = session.step(action)
        seen, done = result.observation, result.done
    session.close()
    return {"item_id": task.id, "conversations": talk}


@pytest.fixture
def expert_file(tmp_path: Path) -> ExpertFile:
    """Write a file of episodes: `expert_file("a.json", env, numbers, **changes of each item)`."""

    def make(name: str, env: str, numbers: Iterable[int], **changes: Any) -> str:
        spec = resolve(env)
        items = [item(spec, number) | changes for number in numbers]
        path = tmp_path / name
        path.write_text(json.dumps(items), "utf-8")
        return str(path)

    return make

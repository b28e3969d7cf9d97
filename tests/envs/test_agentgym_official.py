"""AgentGym's own client classes against our server, where a copy of AgentGym is at hand.

Name its checkout (or where its package `agentenv` 0.2 is installed) in AGENTGYM; its
package needs requests, torch, transformers and openai.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.envs.agentgym.listener import Listener, open_listeners
from rollwave.envs.agentgym.server import WireServer
from rollwave.envs.base import Task
from rollwave.envs.registry import families, resolve

pytestmark = pytest.mark.slow

CLIENTS = {
    "textcraft": ("textcraft", "TextCraftEnvClient", "Thought: x\nAction: inventory"),
    "maze": ("lmrlgym", "MazeEnvClient", "Thought: x\nAction: move up"),
    "wordle": ("lmrlgym", "WordleEnvClient", "Thought: x\nAction: s h i r e"),
    "babyai": ("babyai", "BabyAIEnvClient", "Thought: x\nAction: turn left"),
    "alfworld": ("alfworld", "AlfWorldEnvClient", "Thought: x\nAction: look"),
    "sciworld": ("sciworld", "SciworldEnvClient", "Thought: x\nAction: look around"),
}


@pytest.fixture
def agentenv(monkeypatch: pytest.MonkeyPatch) -> Any:
    where = os.environ.get("AGENTGYM", "")
    if not where:
        pytest.skip("AGENTGYM does not say where AgentGym is")
    roots = [path for path in (Path(where) / "agentenv", Path(where)) if path.is_dir()]
    monkeypatch.setattr(sys, "path", [*map(str, roots), *sys.path])
    pytest.importorskip("requests")
    pytest.importorskip("torch")
    return lambda module: importlib.import_module(f"agentenv.envs.{module}")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CLIENTS)
async def test_every_call_of_an_episode_works_unchanged(name: str, agentenv: Any) -> None:
    known = {family.id.rpartition("-v")[0]: family.id for family in families()}
    if name not in known:
        pytest.skip(f"our {name} is not registered yet")
    spec = resolve(known[name])
    module, cls, said = CLIENTS[name]
    make = getattr(agentenv(module), cls)
    wire = WireServer([spec])
    sockets = await open_listeners("127.0.0.1", 0)
    port = sockets[0].socket.getsockname()[1]
    prefix = wire.served[0].dialect.prefix

    def episode() -> str:
        client = make(f"http://127.0.0.1:{port}{prefix}", data_len=5, timeout=60)
        for index in (0, 1):
            client.reset(index)
            first = client.observe()
            for _ in range(3):
                output = client.step(said)
                assert isinstance(output.state, str)
                assert isinstance(output.reward, int | float)
                assert output.done in (True, False)
                if output.done:
                    break
        if hasattr(client, "close"):
            assert client.close() is True
        return str(first)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Listener(wire).run, sockets)
        first = await trio.to_thread.run_sync(episode)
        nursery.cancel_scope.cancel()
    task = Task(spec.id, 1)
    if name in ("textcraft", "sciworld"):
        assert first == spec.make().reset(task, 0)

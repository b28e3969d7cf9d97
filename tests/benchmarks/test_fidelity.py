"""The fidelity benchmark over a file made here: what is equal, and what misses the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollwave.benchmarks import fidelity


def published(answer: str) -> list[dict[str, Any]]:
    """One episode in AgentTraj's format: fetch four logs, craft the wood."""
    command = "craft 3 stripped oak wood using 4 stripped oak log"
    commands = f"Crafting commands:\n{command}\n\nGoal: craft stripped oak wood."
    said = [
        ("human", None, "Rules."),
        ("gpt", False, "OK."),
        ("human", None, f"Instruction:\n{commands}"),
        ("gpt", True, "Thought:\nI need logs.\n\nAction:\nget 4 stripped oak log"),
        ("human", None, f"Instruction:\n{answer}"),
        ("gpt", True, f"Thought:\nNow craft.\n\nAction:\n{command}"),
    ]
    turns = [{"from": who, "loss": loss, "value": text} for who, loss, text in said]
    return [{"conversations": turns, "item_id": "textcraft_1"}]


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_meets_the_bar_only_if_its_texts_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    honest: bool,
) -> None:
    file, out = tmp_path / "textcraft.json", tmp_path / "fidelity.json"
    file.write_text(json.dumps(published("Got 4 stripped oak log" if honest else "Got it")))
    monkeypatch.setattr("sys.argv", ["fidelity", str(file), "--out", str(out)])
    assert fidelity.main() == (0 if honest else 1)
    written = json.loads(out.read_text())
    figures = written["files"]["textcraft.json"]
    assert figures["trajectories"] == 1
    assert figures["trajectories_equal"] == int(honest)
    assert figures["rewards_equal"] == 1
    assert written["met"] is honest
    assert ("MISSED" in capsys.readouterr().out) is not honest

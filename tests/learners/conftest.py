"""What the learners' tests share: a very small model, and trajectories made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from rollwave.engine.errors import FaultKind
from rollwave.engine.trajectory import Fault, Outcome, Trajectory, Turn

VOCABULARY = ("at", "door", "wall", "key", "up", "down", "left", "right", *map(str, range(8)))


def expert(task: int, actions: str = "up right", *, env: str = "grid-v1", **fields) -> Trajectory:
    """An expert's trajectory: text only, one word an action."""
    turns = tuple(
        Turn(f"at {task % 8} {i % 8} door", word, word, 0.0)
        for i, word in enumerate(actions.split())
    )
    base = {
        "id": f"w0/grid_{task}/0",
        "env": env,
        "task_id": f"grid_{task}",
        "split": "train",
        "wave": 0,
        "attempt": 0,
        "seed": 0,
        "outcome": Outcome.SUCCESS,
        "reward": 1.0,
        "terminated": True,
        "turns": turns,
        "policy": "expert",
    }
    return Trajectory(**(base | fields))


def attempt(
    task: int, number: int = 0, actions: str = "up right", *, wave: int = 1, **fields
) -> Trajectory:
    """An agent's attempt at a task, by policy version `wave`."""
    base = {
        "id": f"w{wave}/grid_{task}/{number}",
        "wave": wave,
        "attempt": number,
        "versions": (wave, wave),
        "policy": f"policies/{wave}",
    }
    return expert(task, actions, **(base | fields))


def faulted(task: int, number: int = 0, **fields) -> Trajectory:
    base = {"outcome": Outcome.FAULT, "reward": None, "fault": Fault(FaultKind.BACKEND, "died")}
    return attempt(task, number, **(base | fields))


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Makers of trajectories: `make.expert(task, actions)`, `make.attempt`, `make.faulted`."""
    return SimpleNamespace(expert=expert, attempt=attempt, faulted=faulted)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of width 32: 2 layers, closed vocabulary."""
    pytest.importorskip("torch", reason="learners need torch")
    from rollwave.learners.policy import configure_threads
    from rollwave.learners.tiny import make_tiny_model

    configure_threads(1)  # two spinning threads on two busy cores are many times slower
    out: Path = tmp_path_factory.mktemp("models") / "tiny"
    return str(
        make_tiny_model(out, vocabulary=VOCABULARY, width=32, layers=2, heads=2, context=128)
    )

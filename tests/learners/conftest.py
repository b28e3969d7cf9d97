"""What the learners' tests share: a very small model, and trajectories made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from rollwave.engine.codec import pack_floats, pack_tokens
from rollwave.engine.errors import FaultKind
from rollwave.engine.trajectory import (
    ChatMessage,
    Fault,
    FinishReason,
    Outcome,
    Trajectory,
    Turn,
)

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
    from rollwave.learners.model.policy import configure_threads
    from rollwave.learners.model.tiny import make_tiny_model

    configure_threads(1)  # two spinning threads on two busy cores are many times slower
    out: Path = tmp_path_factory.mktemp("models") / "tiny"
    return str(
        make_tiny_model(out, vocabulary=VOCABULARY, width=32, layers=2, heads=2, context=128)
    )


@pytest.fixture(scope="session")
def sample() -> Callable[..., list[Trajectory]]:
    """`sample(model, tasks, reward, attempts=…)`: what a model itself wrote, one token a turn.

    A task is a list of observations, one a turn; `reward(task number, words)` scores it.
    """
    return _sampled


def _sampled(
    model: str,
    tasks: Sequence[Sequence[str]],
    reward: Callable[[int, list[str]], float],
    *,
    attempts: int = 4,
    wave: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Trajectory]:
    import torch
    from rollwave.learners.model.chat import load_renderer
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model)
    renderer = load_renderer(model)
    random = torch.Generator().manual_seed(1000 * seed + wave)
    made = []
    for number, seen in enumerate(tasks):
        ids = torch.zeros((attempts, 0), dtype=torch.int64)
        mask, turns, logprobs = b"", [], torch.zeros((attempts, 0))
        for index, observation in enumerate(seen):
            first = [ChatMessage("user", observation)]
            prompt = (
                renderer.following(observation, closed=False) if index else renderer.opening(first)
            )
            prompts = torch.tensor([prompt] * attempts)
            ids = torch.cat([ids, prompts], dim=1)
            with torch.no_grad():
                logps = (policy(ids).logits[:, -1] / temperature).log_softmax(-1)
            drawn = torch.multinomial(logps.exp(), 1, generator=random)
            ids = torch.cat([ids, drawn], dim=1)
            zeros = torch.zeros(prompts.shape)
            logprobs = torch.cat([logprobs, zeros, logps.gather(1, drawn)], dim=1)
            mask += bytes(len(prompt)) + b"\x01"
            turns.append((observation, len(mask) - 1))
        for row in range(attempts):
            words = [renderer.decode([int(ids[row, at])]) for _, at in turns]
            value = reward(number, words)
            made.append(
                attempt(
                    number,
                    row,
                    wave=wave,
                    versions=(wave - 1, wave - 1),
                    outcome=Outcome.SUCCESS if value >= 1 else Outcome.FAILURE,
                    reward=value,
                    temperature=temperature,
                    token_ids=pack_tokens(ids[row].tolist()),
                    loss_mask=mask,
                    logprobs=pack_floats(logprobs[row].tolist()),
                    turns=tuple(
                        Turn(seen, word, word, 0.0, at, at + 1, finish=FinishReason.LENGTH)
                        for (seen, at), word in zip(turns, words, strict=True)
                    ),
                )
            )
    return made

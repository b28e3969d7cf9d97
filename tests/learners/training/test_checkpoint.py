"""Checkpoints: whole or not at all, restored exactly, refused when damaged."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="checkpoints hold tensors")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import CheckpointCorrupt  # noqa: E402
from rollwave.learners.training.checkpoint import (  # noqa: E402
    State,
    gathered,
    hash_model,
    load_checkpoint,
    read_state,
    save_checkpoint,
)


def trained(steps: int):
    """A small layer after some steps of AdamW."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    step(layer, optimiser, steps)
    return layer, optimiser


def step(layer, optimiser, count: int) -> None:
    for _ in range(count):
        optimiser.zero_grad()
        layer(torch.tensor([1.0, -2.0, 3.0])).square().sum().backward()
        optimiser.step()


def save(path: Path, steps: int = 3, **fields) -> None:
    layer, optimiser = trained(steps)
    state = State(step=steps, fingerprint="f", **fields)
    save_checkpoint(path, state, gathered(dict(layer.named_parameters()), optimiser))


def load(path: Path):
    layer, optimiser = trained(0)
    state = load_checkpoint(path, weights=dict(layer.named_parameters()), optimiser=optimiser)
    return layer, optimiser, state


def test_training_goes_on_bit_exactly_from_a_checkpoint(tmp_path):
    save(tmp_path / "c", 3)
    with torch.random.fork_rng():
        layer, optimiser, state = load(tmp_path / "c")
    assert state.step == 3
    step(layer, optimiser, 4)
    straight, _ = trained(7)
    assert torch.equal(layer.weight, straight.weight)
    assert torch.equal(layer.bias, straight.bias)


def test_state_and_random_state_come_back(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        save(tmp_path / "c", policy_version=4, metrics={"loss": 0.5}, dev=[(2, 0.25)])
        expected = torch.rand(3)
        torch.manual_seed(8)
        _, _, state = load(tmp_path / "c")
        assert torch.equal(torch.rand(3), expected)
    assert (state.policy_version, state.metrics, state.dev) == (4, {"loss": 0.5}, [(2, 0.25)])


def test_no_checkpoint_is_no_state(tmp_path):
    assert read_state(tmp_path / "none") is None


FILES = ["weights.safetensors", "optimiser.safetensors", "state.json"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "c"
    save(path, metrics={"loss": 0.5, "tokens": 1234.0}, dev=[(2, 0.25)])
    return path


@given(data=st.data())
def test_any_flip_or_cut_anywhere_is_found(saved, data):
    """In state.json it once was not: a flipped digit of the step shifted the whole run."""
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((saved / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), "cut"):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        (Path(folder) / name).write_bytes(content)
        with pytest.raises(CheckpointCorrupt) as caught:
            load(Path(folder))
    assert name in str(caught.value)
    assert folder in str(caught.value)
    assert "Delete this directory" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_damage_is_found_and_the_error_says_what_to_do(tmp_path, name, damage):
    save(tmp_path / "c")
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="Delete this directory"):
        load(tmp_path / "c")


def test_a_checkpoint_of_another_format_or_model_is_refused(tmp_path):
    save(tmp_path / "c")
    other = torch.nn.Linear(4, 2)
    optimiser = torch.optim.AdamW(other.parameters())
    with pytest.raises(CheckpointCorrupt, match="not those of this model"):
        load_checkpoint(tmp_path / "c", weights=dict(other.named_parameters()), optimiser=optimiser)
    file = tmp_path / "c" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointCorrupt, match="format 99"):
        read_state(tmp_path / "c")


def test_the_hash_of_a_model_sees_weights_and_configuration_but_not_notes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"w")
    first = hash_model(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    assert hash_model(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"v")
    assert hash_model(tmp_path) != first

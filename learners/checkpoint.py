"""Checkpoints of a training run, and directories that appear whole or not at all.

    CHECKPOINT/weights.safetensors     trainable parameters
              /optimiser.safetensors   the optimiser's tensors, `<parameter>/<key>`
              /state.json              step, policy version, random state, metrics,
                                       fingerprint, and the hash of the two files above

Invariants: a directory is written beside its place and renamed into it, so that a crash
leaves the old one or the new one; what is loaded matches the hashes it was saved with; a
run resumed on a CPU ends with bit-equal weights. Nothing is unpickled.

Not here: when to checkpoint (`training`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from ..engine.errors import CheckpointCorrupt, storage_error

FORMAT: Final = 1
_TENSOR_FILES: Final = ("weights.safetensors", "optimiser.safetensors")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a checkpoint that is not tensors."""

    step: int
    """Optimiser steps done."""
    fingerprint: str
    """Hash of data, start and settings: only the same run may resume from it."""
    policy_version: int = 0
    metrics: dict[str, float] = {}
    dev: list[tuple[int, float]] = []
    """(step, dev reward) of every evaluation so far."""
    random_state: bytes = b""
    """torch's CPU generator."""
    files: dict[str, str] = {}
    """Hash of each tensor file."""
    format: int = FORMAT


@contextmanager
def atomic_directory(out: str | Path) -> Iterator[Path]:
    """Give an empty directory that takes the place of `out` when the block ends well.

    Raises:
        StorageFailed: the disk refused; `out` is as it was.
    """
    target = Path(out)
    draft = target.with_name(f".{target.name}.draft")
    old = target.with_name(f".{target.name}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not target.exists():  # a crash between the two renames below
            old.rename(target)
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
    except OSError as error:
        raise storage_error(error, target) from error
    try:
        yield draft
        for file in draft.iterdir():
            _flush(file)
        _flush(draft)
        if target.exists():
            target.rename(old)
        draft.rename(target)
        _flush(target.parent)
    except OSError as error:
        raise storage_error(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Hash a file's content."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_model(path: str | Path) -> str:
    """Hash what makes a model directory's answers: configuration, weights and tokenizer."""
    digest = blake2b(digest_size=16)
    for file in sorted(Path(path).iterdir()):
        names = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")
        if file.suffix in (".safetensors", ".bin") or file.name in names:
            digest.update(f"{file.name}:{hash_file(file)};".encode())
    return digest.hexdigest()


def save_checkpoint(
    path: str | Path,
    state: State,
    *,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint atomically; `files` and `random_state` of the state are filled in.

    Args:
        weights: trainable parameters by name, in the order the optimiser was given them.

    Raises:
        StorageFailed: the disk refused; an earlier checkpoint is intact.
    """
    from safetensors.torch import save_file

    moments: dict[str, Tensor] = {}
    states = optimiser.state_dict()["state"]
    for index, name in enumerate(weights):
        for key, value in states.get(index, {}).items():
            moments[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    tensors = {n: p.detach().cpu().contiguous() for n, p in weights.items()}
    with atomic_directory(path) as draft:
        save_file(tensors, draft / _TENSOR_FILES[0])
        save_file(moments, draft / _TENSOR_FILES[1])
        whole = msgspec.structs.replace(
            state,
            random_state=torch.get_rng_state().numpy().tobytes(),
            files={name: hash_file(draft / name) for name in _TENSOR_FILES},
        )
        (draft / "state.json").write_bytes(msgspec.json.encode(whole))


def read_state(path: str | Path) -> State | None:
    """Read the state of a checkpoint; None where there is none.

    Raises:
        CheckpointCorrupt: the state cannot be read, or is of another format.
    """
    file = Path(path) / "state.json"
    if not Path(path).exists():
        return None
    try:
        state = msgspec.json.decode(file.read_bytes(), type=State)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise _corrupt(path, f"state.json: {error}") from error
    if state.format != FORMAT:
        raise _corrupt(path, f"format {state.format}, this build reads {FORMAT}")
    return state


def load_checkpoint(
    path: str | Path,
    *,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> State:
    """Restore parameters, optimiser and torch's CPU generator in place.

    Raises:
        CheckpointCorrupt: a file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state = read_state(path)
    if state is None:
        raise _corrupt(path, "it does not exist")
    loaded: list[dict[str, Tensor]] = []
    for name in _TENSOR_FILES:
        try:
            if hash_file(Path(path) / name) != state.files.get(name):
                raise _corrupt(path, f"{name} does not match its hash")
            loaded.append(load_file(Path(path) / name))
        except (OSError, SafetensorError) as error:
            raise _corrupt(path, f"{name}: {error}") from error
    tensors, moments = loaded
    shapes = {name: p.shape for name, p in weights.items()}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise _corrupt(path, "its parameters are not those of this model")
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(tensors[name])
    by_index: dict[int, dict[str, Any]] = {}
    index_of = {name: index for index, name in enumerate(weights)}
    for key, value in moments.items():
        name, _, entry = key.rpartition("/")
        by_index.setdefault(index_of[name], {})[entry] = value
    whole = optimiser.state_dict()
    optimiser.load_state_dict({"state": by_index, "param_groups": whole["param_groups"]})
    torch.set_rng_state(torch.frombuffer(bytearray(state.random_state), dtype=torch.uint8))
    return state


def _corrupt(path: str | Path, reason: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        f"checkpoint {path}: {reason}. Delete this directory and run again: training then "
        "starts from its beginning"
    )

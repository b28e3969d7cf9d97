"""Checkpoints of a training run: saved whole, loaded as they were saved, or refused.

    CHECKPOINT/weights.safetensors     trainable parameters
              /optimiser.safetensors   the optimiser's tensors, `<parameter>/<key>`
              /state.json              format, hash of the state, and the state: step, policy
                                       version, random state, metrics, fingerprint, and the
                                       hashes of the two files above

Invariants: what is loaded matches the hashes it was saved with, to the last byte of all
three files; a run resumed on a CPU ends with bit-equal weights; tensors are saved whole,
however they are spread over processes, so that any number of them can go on. Nothing is
unpickled.

Not here: when to checkpoint (`cadence`), and how a directory is replaced (`directories`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from ...engine.errors import CheckpointCorrupt
from ..model.sharding import spread_like, whole
from .directories import atomic_directory

FORMAT: Final = 2
_TENSOR_FILES: Final = ("weights.safetensors", "optimiser.safetensors")

CARRIED: Final = "training/optimiser.safetensors"
"""The optimiser's state beside a finished policy, where the next evolution step goes on with it."""

_PARAMETERS: Final = "parameters"
"""Key of that file's metadata: whose state it is."""


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


class _Format(msgspec.Struct, frozen=True):
    """What a state.json of any build says."""

    format: int


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of state.json."""

    format: int
    hash: str
    state: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Tensors:
    """What a training has changed so far, whole and on the CPU."""

    weights: dict[str, Tensor]
    """Trained parameters by name."""
    moments: dict[str, Tensor]
    """The optimiser's tensors as `<parameter>/<key>`."""


def gathered(
    weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, *, keep: bool = True
) -> Tensors:
    """Gather what is spread over processes: all of them call this, who writes and who does not.

    Args:
        weights: trainable parameters by name, in the order the optimiser was given them.
        keep: False where this process has no use for them: it only gives its parts.
    """
    states = optimiser.state_dict()["state"]
    found = Tensors({}, {})
    for index, (name, parameter) in enumerate(weights.items()):
        _keep(found.weights, name, parameter, keep)
        for key, value in states.get(index, {}).items():
            _keep(found.moments, f"{name}/{key}", torch.as_tensor(value), keep)
    return found


def _keep(into: dict[str, Tensor], name: str, tensor: Tensor, keep: bool) -> None:
    all_of_it = whole(tensor.detach())
    if keep:
        into[name] = all_of_it.cpu().contiguous()


def hash_file(path: Path) -> str:
    """Hash a file's content."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_model(path: str | Path) -> str:
    """Hash what makes a model directory's answers: configuration, weights and tokenizer.

    A critic and an optimiser's state, in directories below it, count too.
    """
    digest = blake2b(digest_size=16)
    for file in sorted(Path(path).rglob("*")):
        names = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")
        if file.suffix in (".safetensors", ".bin") or file.name in names:
            digest.update(f"{file.relative_to(path)}:{hash_file(file)};".encode())
    return digest.hexdigest()


def hash_adapter(path: str | Path) -> str:
    """Hash what makes a directory of adapters' answers: their weights, rank and scale."""
    digest = blake2b(hash_model(path).encode(), digest_size=16)
    form = Path(path) / "adapter_config.json"
    if form.is_file():  # without it they are refused where they are loaded
        digest.update(hash_file(form).encode())
    return digest.hexdigest()


def save_checkpoint(path: str | Path, state: State, tensors: Tensors) -> None:
    """Write a checkpoint atomically; `files` and `random_state` of the state are filled in.

    Raises:
        StorageFailed: the disk refused; an earlier checkpoint is intact.
    """
    from safetensors.torch import save_file

    with atomic_directory(path) as draft:
        save_file(tensors.weights, draft / _TENSOR_FILES[0])
        save_file(tensors.moments, draft / _TENSOR_FILES[1])
        whole = msgspec.structs.replace(
            state,
            random_state=torch.get_rng_state().numpy().tobytes(),
            files={name: hash_file(draft / name) for name in _TENSOR_FILES},
        )
        text = msgspec.json.encode(whole)
        file = _File(FORMAT, _hash(text), msgspec.Raw(text))
        (draft / "state.json").write_bytes(msgspec.json.encode(file))


def read_state(path: str | Path) -> State | None:
    """Read the state of a checkpoint; None where there is none.

    Raises:
        CheckpointCorrupt: the state cannot be read, or is of another format.
    """
    if not Path(path).exists():
        return None
    try:
        content = (Path(path) / "state.json").read_bytes()
        format_ = msgspec.json.decode(content, type=_Format).format
        if format_ != FORMAT:
            raise _corrupt(path, f"state.json: format {format_}, this build reads {FORMAT}")
        file = msgspec.json.decode(content, type=_File)
        if _hash(bytes(file.state)) != file.hash:
            raise _corrupt(path, "state.json does not match its hash")
        return msgspec.json.decode(file.state, type=State)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _corrupt(path, f"state.json: {error}") from error


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
            parameter.copy_(spread_like(tensors[name].to(parameter.device), parameter))
    if not _put_moments(moments, weights, optimiser):
        raise _corrupt(path, f"{_TENSOR_FILES[1]} is of another model")
    torch.set_rng_state(torch.frombuffer(bytearray(state.random_state), dtype=torch.uint8))
    return state


def save_moments(model: Path, tensors: Tensors) -> None:
    """Leave the optimiser's state in a model directory, for the evolution step that follows."""
    from safetensors.torch import save_file

    path = model / CARRIED
    path.parent.mkdir(exist_ok=True)  # beside the weights, a server would load it as weights
    save_file(tensors.moments, path, {_PARAMETERS: _hash_names(tensors.weights)})


def load_moments(
    model: str | Path, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> bool:
    """Take up the optimiser's state of the step before.

    Returns:
        False where there is none, or where it is not of exactly these parameters (the step
        before trained a critic too, or adapters): the optimiser then starts afresh.

    Raises:
        CheckpointCorrupt: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(model) / CARRIED
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_PARAMETERS) != _hash_names(weights):
                return False
            moments = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    if not _put_moments(moments, weights, optimiser):
        raise _damaged(path, "it is not of the parameters that it names")
    return True


def _damaged(path: Path, reason: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        f"{path}: {reason}. Delete this file, or set training.carry_optimiser = false: the "
        "optimiser then starts afresh"
    )


def _hash_names(weights: Mapping[str, Tensor]) -> str:
    """Hash which parameters are trained, also those that no gradient has reached yet."""
    return _hash(msgspec.json.encode({name: list(p.shape) for name, p in sorted(weights.items())}))


def _put_moments(
    moments: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> bool:
    """Give the optimiser its tensors; False where a name or a shape is not this model's."""
    by_index: dict[int, dict[str, Any]] = {}
    index_of = {name: index for index, name in enumerate(weights)}
    for key, value in moments.items():
        name, _, entry = key.rpartition("/")
        if name not in index_of or (value.dim() and value.shape != weights[name].shape):
            return False
        if value.dim():
            value = spread_like(value.to(weights[name].device), weights[name])
        by_index.setdefault(index_of[name], {})[entry] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": by_index, "param_groups": groups})
    return True


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()


def _corrupt(path: str | Path, reason: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        f"checkpoint {path}: {reason}. Delete this directory and run again: training then "
        "starts from its beginning"
    )

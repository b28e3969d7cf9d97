"""A decoder's layers spread over the processes that train it: each holds a part of every one.

torch's FSDP2. A layer is whole in a process only while it is computed with: its parts are
gathered before it, dropped behind it, gathered again on the way back, and its gradients are
summed into the parts. Embeddings, the last norm and the head stay whole in every process:
the head's weights are read without its module (`head`).

Invariants: gradients are summed, never averaged, as `training.processes` does with those of
whole parameters; names and shapes of parameters stay what they were.

The caller's duty: every process makes the same passes, forth and back, in the same order.

Not here: who makes which pass (`training.loop`), the optimiser (`training.optimiser`), and
files (`training.checkpoint`). Nor a start that does not fit into the memory of the machine:
every process reads the whole model before it drops what is not its part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ...engine.errors import ConfigError


def shard_layers(model: Any, decoder: Any, *, device: torch.device, half: bool) -> None:
    """Leave of every layer this process's part, and move model and part to the device.

    Args:
        model: a transformers model, or a peft wrapper of one, with all of its parameters.
        decoder: the part of it that has the layers.
        half: layers are gathered, and computed with, in bfloat16. Gradients are summed in
            float32 all the same.

    Raises:
        ConfigError: this model names no layers.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    layers = _layers(decoder)
    if not layers:
        raise ConfigError(
            f"shard = true: {type(decoder).__name__} does not say which its layers are, so that "
            "they cannot be sharded; set it to false"
        )
    mesh = init_device_mesh(device.type, (get_world_size(),))
    # Left to autocast, a bfloat16 copy of every whole layer would live until the way back.
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    outside = set(decoder.parameters()) - inside
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
    # A root without parameters of its own, so that the layers prefetch one another.
    fully_shard(decoder, mesh=mesh, ignored_params=outside)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    model.to(device)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of it alone."""
    return isinstance(tensor, DTensor)


def part(tensor: Tensor) -> Tensor:
    """What this process holds of it, sharing its memory; all of it where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process asks for the same ones, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same in every process, spread as a parameter of its shape is."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    # Every process has it already: nothing is sent.
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def _layers(decoder: Any) -> list[Any]:
    """The layers, none of them inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[Any] = []
    inner: set[Any] = set()
    for module in decoder.modules():  # outer ones come first
        if isinstance(module, GradientCheckpointingLayer) and module not in inner:
            found.append(module)
            inner.update(module.modules())
    return found

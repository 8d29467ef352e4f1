"""Weights sharded over processes by FSDP2: which modules, what goes with it, and whole tensors for the files.

On GPUs accelerate shards by its config file (docs/scaling.md) with the network's `_no_split_modules`,
which is the plan of `shard`. Files always hold whole tensors, so a result or a checkpoint says nothing
about how many processes made it.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from glm2core.errors import UserError
from glm2core.model.layers import GLMBlock
from glm2core.params import TrainParams
from glm2core.training.processes import is_first

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_asked_for() -> bool:
    """Whether accelerate was launched with an FSDP config."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def require_shardable(params: TrainParams, dtype: torch.dtype) -> None:
    """Refuse what FSDP2 can't shard, before a network is loaded.

    Sharded fp32 weights are the master weights; the config file's `mixed_precision: bf16` makes the
    network compute in bf16.

    Raises:
        UserError: names each setting that must change.
    """
    wrong = {
        "method": params.method != "full" and params.method,
        "optimizer": params.optimizer != "adamw" and params.optimizer,
        "memory": params.memory != "normal" and params.memory,
        "dtype": dtype != torch.float32 and str(dtype).removeprefix("torch."),
        "gradient_checkpointing": params.gradient_checkpointing and "true",
    }
    found = ", ".join(f"train.{name} {value}" for name, value in wrong.items() if value)
    if found:
        raise UserError(
            f"accelerate's config shards the weights (FSDP), and {found} doesn't go with it. Set method full, "
            "optimizer adamw, memory normal, dtype float32 and gradient_checkpointing false (the config file's "
            "mixed_precision and fsdp_activation_checkpointing stand for the last two), or take a config without FSDP."
        )


def sharded_modules(network: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together: each block, then all that is left."""
    return [*(module for module in network.modules() if isinstance(module, GLMBlock)), network]


def shard(network: nn.Module, mesh: DeviceMesh | None = None) -> None:
    """Shard a network in place: its parameters become DTensors, 1/processes of each here.

    Args:
        mesh: of the processes; None = all of them.
    """
    for module in sharded_modules(network):
        fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of it: then every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are, or whole on the CPU of the first process where they are sharded; all must call this."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)  # one at a time: all of them would not fit a GPU
        if is_first():
            found[name] = gathered.cpu() if isinstance(tensor, DTensor) else gathered
    return found


def is_sharded(network: nn.Module) -> bool:
    """Whether parameters are DTensors."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a parameter, sharded or not."""
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def whole_optimizer_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter names, whole, on the first process; every process must call this."""
    return dict(get_optimizer_state_dict(network, optimizer, options=_WHOLE))


def put_optimizer_state(network: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give each process its shards of a whole state, which every process holds."""
    set_optimizer_state_dict(network, optimizer, state, options=_WHOLE)

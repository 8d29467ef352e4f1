"""Trains one network in several processes, with collective operations and with weights sharded by FSDP2.

torchrun and accelerate give each process its rank in environment variables. With one process, every function here
returns its argument, so callers need not know how many processes there are.

On GPUs, accelerate shards the weights as its config file says (docs/scaling.md). The units to shard are the network's
`_no_split_modules`; `shard` follows the same plan.

Files always contain whole tensors, so results and checkpoints do not depend on the number of processes that wrote them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from glm2core.errors import UserError
from glm2core.model.layers import GLMBlock
from glm2core.params import TrainParams

T = TypeVar("T")

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


# The identity of this process is read from the environment. accelerate's PartialState would choose the device and the
# backend by itself if it were used before `joined`.


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files, tracks the run and prints messages."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the process group, and leave it if there was no error.

    After an error, this process does not leave the group, because the other processes may be inside a collective
    operation that it will never join. The launcher ends them.
    """
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    # If this is unset, accelerate overrides our number of threads with its own.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    state = PartialState(cpu=device.type == "cpu", backend=_BACKENDS[device.type])
    yield
    state.destroy_process_group()


# Collective operations


def summed(values: list[float], device: torch.device) -> list[float]:
    """Sum each value over all processes."""
    if not _several():
        return values
    total = reduce(torch.tensor(values, dtype=torch.float64, device=device), reduction="sum")
    return [float(value) for value in total.tolist()]


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    return summed([float(flag)], device)[0] > 0


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    return list(gather_object([value])) if _several() else [value]


def first_decides(choose: Callable[[], T]) -> T:
    """Call `choose` only in the first process; all processes receive its result."""
    if not _several():
        return choose()
    chosen: T = broadcast_object_list([choose() if is_first() else None])[0]
    return chosen


def meet() -> None:
    """Wait until every process has called this. Everything that a process did before is then visible to all."""
    if _several():
        PartialState().wait_for_everyone()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# Sharded weights


def sharding_is_asked_for() -> bool:
    """Whether accelerate was launched with an FSDP config."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def require_shardable(params: TrainParams, dtype: torch.dtype) -> None:
    """Reject settings that do not work with FSDP2, before a network is loaded.

    Sharded fp32 weights are the master weights; `mixed_precision: bf16` in the config file makes the
    network compute in bf16.

    Raises:
        UserError: some settings must change; the message names each of them.
    """
    wrong = {
        "method": params.method != "full" and params.method,
        "optimizer": params.optimizer != "adamw" and params.optimizer,
        "memory": params.memory != "normal" and params.memory,
        "dtype": dtype != torch.float32 and str(dtype).removeprefix("torch."),
        "gradient_checkpointing": params.gradient_checkpointing is True and "true",
    }
    if os.environ.get("FSDP_VERSION", "2") != "2":  # set by accelerate's launcher
        raise UserError(
            "accelerate's config asks for FSDP1, which is not supported. In that file, set fsdp_version to 2."
        )
    found = ", ".join(f"train.{name} {value}" for name, value in wrong.items() if value)
    if found:
        raise UserError(
            f"accelerate's config shards the weights (FSDP), which doesn't work with {found}. Set train.method "
            "to full, train.optimizer to adamw, train.memory to normal, train.dtype to float32 and "
            "train.gradient_checkpointing to false, or use a config without FSDP. In accelerate's "
            "config, mixed_precision and fsdp_activation_checkpointing replace train.dtype and "
            "train.gradient_checkpointing."
        )


def sharded_modules(network: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together, which are each block and then everything else."""
    return [*(module for module in network.modules() if isinstance(module, GLMBlock)), network]


def shard(network: nn.Module, mesh: DeviceMesh | None = None) -> None:
    """Shard a network in place. Each parameter becomes a DTensor, of which every process holds an equal part.

    Args:
        mesh: the processes to shard over; None = all of them.
    """
    for module in sharded_modules(network):
        fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; if it is sharded, every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors; sharded ones are gathered on the first process's CPU. Every process must call this."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)  # one at a time, because together they would not fit on a GPU
        if is_first():
            found[name] = gathered.cpu() if isinstance(tensor, DTensor) else gathered
    return found


def is_sharded(network: nn.Module) -> bool:
    """Whether the network's parameters are DTensors."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a parameter, sharded or not."""
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def whole_optimizer_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's whole state by parameter name, on the first process. Every process must call this."""
    return dict(get_optimizer_state_dict(network, optimizer, options=_WHOLE))


def put_optimizer_state(network: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load each process's shards from a whole state, which every process must have."""
    set_optimizer_state_dict(network, optimizer, state, options=_WHOLE)

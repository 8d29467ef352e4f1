"""Several processes training one network: what they agree on, and weights that FSDP2 shards over them.

torchrun and accelerate tell each process its rank by environment variables. With one process every function
here returns what it is given, so callers need not ask how many there are.

On GPUs accelerate shards by its config file (docs/scaling.md) with the network's `_no_split_modules`, which is the
plan of `shard`. Files always hold whole tensors, so a result or a checkpoint says nothing about how many processes
made it.
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


# Who this process is. Read from the environment, for accelerate's PartialState would choose device and backend on its
# own if it were asked before `joined`.


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes, tracks and speaks."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes, and part from them when all went well.

    After an error the group is left as it is: the others may be inside a collective operation that this
    process will never join, and the launcher ends them.
    """
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    # accelerate sets a number of threads of its own where this is unset, over ours.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    state = PartialState(cpu=device.type == "cpu", backend=_BACKENDS[device.type])
    yield
    state.destroy_process_group()


# What processes agree on


def summed(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over all processes."""
    if not _several():
        return values
    total = reduce(torch.tensor(values, dtype=torch.float64, device=device), reduction="sum")
    return [float(value) for value in total.tolist()]


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    return summed([float(flag)], device)[0] > 0


def gathered(value: T) -> list[T]:
    """The value of each process, by rank."""
    return list(gather_object([value])) if _several() else [value]


def first_decides(choose: Callable[[], T]) -> T:
    """What `choose` returns in the first process; the others are told and don't call it."""
    if not _several():
        return choose()
    chosen: T = broadcast_object_list([choose() if is_first() else None])[0]
    return chosen


def meet() -> None:
    """Wait until every process is here: what each did before has happened for all of them."""
    if _several():
        PartialState().wait_for_everyone()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# Sharded weights


def sharding_is_asked_for() -> bool:
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
        "gradient_checkpointing": params.gradient_checkpointing is True and "true",
    }
    if os.environ.get("FSDP_VERSION", "2") != "2":  # as accelerate's launcher tells it
        raise UserError("accelerate's config asks for FSDP1, which is not supported: set fsdp_version to 2 in it.")
    found = ", ".join(f"train.{name} {value}" for name, value in wrong.items() if value)
    if found:
        raise UserError(
            f"accelerate's config shards the weights (FSDP), which doesn't work with {found}. Set method full, "
            "optimizer adamw, memory normal, dtype float32 and gradient_checkpointing false (the config file's "
            "mixed_precision and fsdp_activation_checkpointing replace the last two), or use a config without FSDP."
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

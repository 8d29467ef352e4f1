"""Several processes training one network: who this one is, and what they agree on.

torchrun and accelerate tell each process its rank by environment variables. With one process every
function here returns what it is given, so callers need not ask how many there are.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


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
    dist.init_process_group(_BACKENDS[device.type])
    yield
    dist.destroy_process_group()


def summed(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over all processes."""
    if not _several():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    return summed([float(flag)], device)[0] > 0


def gathered(value: T) -> list[T]:
    """The value of each process, by rank."""
    if not _several():
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return [found for found in values if found is not None]


def first_decides(choose: Callable[[], T]) -> T:
    """What `choose` returns in the first process; the others are told and don't call it."""
    if not _several():
        return choose()
    values: list[T | None] = [choose() if is_first() else None]
    dist.broadcast_object_list(values, src=0)
    chosen: T = values[0]  # type: ignore[assignment]
    return chosen


def meet() -> None:
    """Wait until every process is here: what each did before has happened for all of them."""
    if _several():
        dist.barrier()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

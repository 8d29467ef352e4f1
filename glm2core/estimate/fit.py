"""Tells whether a training run fits this machine, and which changes would make it fit."""

import os
import shutil
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.estimate.limits import left_to_container, left_to_process
from glm2core.estimate.memory import GIB, Workload, training_disk, training_memory
from glm2core.params import FIT, TrainParams

Change = dict[str, Any]

# Share of the free memory that is reserved for what the estimate misses.
_MARGIN = 0.1
_PARTS = ("weights", "gradients", "optimizer", "activations")
_LOW: Change = {
    "method": "full",
    "memory": "low",
    "optimizer": "adafactor",
    "gradient_accumulation_steps": 1,
    "max_grad_norm": None,
    "launcher": "python",
    "gradient_checkpointing": True,
}
_ADAPTER: Change = {"memory": "normal", "optimizer": "adamw", "gradient_checkpointing": False}


def check_fits(workload: Workload, params: TrainParams, *, device: torch.device, folder: Path) -> None:
    """Raise an error if a run can't fit, before hours are spent on it.

    Args:
        folder: the folder to which checkpoints and the result are written.

    Raises:
        UserError: there is too little memory or disk space. The error message shows how much is needed, how much is
            free and, for memory, which changes would make the run fit.
    """
    need, free = training_memory(workload, params), available_memory(device)
    if need.total > free:
        parts = ", ".join(f"{name} {getattr(need, name) / GIB:.2f}" for name in _PARTS)
        raise UserError(
            f"this run needs about {in_gib(need.total)} of memory ({parts}), but {in_gib(free)} is free on {device}. "
            f"What would fit: {fitting_changes(workload, params, free)}"
        )
    disk, room = training_disk(workload, params), shutil.disk_usage(folder).free
    if disk.total > room:
        raise UserError(
            f"this run writes about {in_gib(disk.total)} ({in_gib(disk.checkpoints)} for checkpoints, "
            f"{in_gib(disk.tuned)} for models/tuned and as much again for DVC's copy of it), but {in_gib(room)} is "
            f"free at {folder}. Free some disk space, or lower train.keep_checkpoints."
        )


def fitting_changes(workload: Workload, params: TrainParams, free: float) -> str:
    """List changes to params that would make a run fit into `free` bytes, mildest first.

    The returned text also shows how much memory the run needs after each change.
    """
    needs = {words: _need(workload, params, change) for words, change in _changes(workload, params).items()}
    fitting = [f"{words} ({in_gib(need)})" for words, need in needs.items() if need <= free]
    if fitting:
        return "; ".join(fitting) + "."
    words = min(needs, key=needs.__getitem__)
    return f"none of the usual changes. The one that needs the least, {words}, needs {in_gib(needs[words])}."


def with_recomputation(params: TrainParams, workload: Workload, free: float, notice: Notice = print) -> TrainParams:
    """Replace `fit` in params with the number of blocks that are recomputed, counted from the first block.

    Args:
        free: number of free bytes; a tenth of them stays in reserve.
    """
    if params.gradient_checkpointing != FIT:
        return params
    layers, room = workload.config.num_layers, free * (1 - _MARGIN)

    def with_blocks(blocks: int) -> TrainParams:
        value = {0: False, layers: True}.get(blocks, blocks)
        return params.model_copy(update={"gradient_checkpointing": value})

    def fits(blocks: int) -> bool:
        return training_memory(workload, with_blocks(blocks)).total <= room

    if workload.sharded or fits(0):  # with sharded weights, accelerate's config file decides what is recomputed
        return with_blocks(0)
    blocks = bisect_left(range(layers), True, lo=1, key=fits)
    need = in_gib(training_memory(workload, with_blocks(0)).total)
    notice(
        f"train.gradient_checkpointing {FIT}: {blocks} of {layers} blocks are recomputed in the backward pass; "
        f"recomputing none needs {need}, but {in_gib(free)} is free"
    )
    return with_blocks(blocks)


def available_memory(device: torch.device) -> float:
    """Return how many bytes this process may use: those that are free and those that it already uses.

    The limits of the container and of the shell are respected. Several processes on one machine (torchrun) share the
    memory equally.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free: float = psutil.virtual_memory().available
    if (left := left_to_container()) is not None:
        free = min(free, left)
    free /= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if (left := left_to_process()) is not None:
        free = min(free, left)
    return free + psutil.Process().memory_info().rss


def in_gib(size: float) -> str:
    """A number of bytes as text, in GiB or MiB."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):,.0f} MiB"


def _changes(workload: Workload, params: TrainParams) -> dict[str, Change]:
    """Changes to the train section, keyed by description, mildest first, except changes that are already in force."""
    recompute: Change = {"gradient_checkpointing": True}
    smaller: Change = {"batch_tokens": min(workload.row_tokens, params.batch_tokens)}
    both = {**smaller, **recompute} if smaller["batch_tokens"] < params.batch_tokens else {}
    wanted: dict[str, Change] = {
        "train.gradient_checkpointing true": recompute,
        f"train.batch_tokens {smaller['batch_tokens']}": smaller,
        f"train.gradient_checkpointing true with train.batch_tokens {smaller['batch_tokens']}": both,
        "train.dtype bfloat16": {"dtype": "bfloat16"},
    }
    low = "train.memory low with optimizer adafactor, max_grad_norm null"
    if params.method == "full":
        wanted |= {
            "train.optimizer adafactor": {"optimizer": "adafactor"},
            low: _LOW,
            f"{low} and dtype bfloat16": {**_LOW, "dtype": "bfloat16"},
            "train.method lora": {**_ADAPTER, "method": "lora", **recompute},
        }
    if params.method in ("full", "lora"):
        wanted["train.method qlora"] = {**_ADAPTER, "method": "qlora", "quantization_bits": 4, **recompute}
    if workload.dtype.itemsize == 2:
        for half in ("train.dtype bfloat16", f"{low} and dtype bfloat16"):
            wanted.pop(half, None)
    now = {**params.model_dump(), "dtype": str(workload.dtype).removeprefix("torch.")}
    return {
        words: change for words, change in wanted.items() if any(now[key] != value for key, value in change.items())
    }


def _need(workload: Workload, params: TrainParams, change: Change) -> float:
    dtype = torch.bfloat16 if change.get("dtype") == "bfloat16" else workload.dtype
    return training_memory(replace(workload, dtype=dtype), params.model_copy(update=change)).total

"""Which device, dtype and threads a run gets, and the memory it took; for train and evaluate alike."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from glm2core.errors import UserError

Notice = Callable[[str], None]

_GIB = 2**30
_STATUS = Path("/proc/self/status")  # Linux


def choose_device(name: Literal["auto", "cpu", "cuda"], *, key: str = "train.device") -> torch.device:
    """The device that `name` means on this machine; under torchrun each process gets its own GPU.

    Raises:
        UserError: cuda asked for where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError(
            f"{key} is cuda, but torch {torch.__version__} sees no CUDA device here. Set it to auto or cpu."
        )
    if name == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def choose_dtype(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device, *, notice: Notice = print
) -> torch.dtype:
    """The dtype that `name` means on `device`; `auto` says what it took and why."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if _computes_in_bfloat16(device):
        notice(f"dtype auto: bfloat16, which this {device.type} computes in")
        return torch.bfloat16
    notice(f"dtype auto: float32, as this {device.type} has no bfloat16 arithmetic")
    return torch.float32


def set_threads(count: int | None) -> int:
    """Use `count` CPU threads (None = all cores this process may use) and return the number."""
    if count is None:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        count = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(count)
    return count


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far, in GiB: of the GPU's tensors, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if _STATUS.exists():
        # getrusage would count what a large parent held when it started this process
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / _GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _GIB if sys.platform == "darwin" else peak * 1024 / _GIB


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # older torch: fp32 is right everywhere, only slower
        return False
    # Without these instructions (x86: AVX512-BF16, AMX; ARM: bf16) such products are emulated, slower than fp32.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))

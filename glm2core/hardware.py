"""Hardware: a run's device, dtype and peak memory, the dtype of matrix multiplications, and the CPU's class."""

import os
import resource
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.process import cpu_cap

DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]

_GIB = 2**30
_STATUS = Path("/proc/self/status")  # Linux
_SMALL = 20_000_000  # with fewer parameters, a CPU takes about as long in fp32 as in bf16, and fp32 is more exact
_LARGE = 1_000_000_000  # with more parameters, fp32 weights need more memory than most machines have
# Instructions that a CPU needs to multiply in half precision: x86 (AVX512, AMX) and ARM.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def choose_device(name: Literal["auto", "cpu", "cuda"], *, key: str = "train.device") -> torch.device:
    """Return the device that `name` means on this machine; under torchrun, each process gets its own GPU.

    Raises:
        UserError: `name` is cuda, but torch sees no CUDA device.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError(
            f"{key} is cuda, but torch {torch.__version__} sees no CUDA device here. Set {key} to auto or cpu."
        )
    if name == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def choose_dtype(
    name: DtypeChoice,
    device: torch.device,
    *,
    parameters: int,
    key: str = "train.dtype",
    half_steps: bool = True,
    notice: Notice = print,
) -> torch.dtype:
    """Resolve `name` to the dtype of the weights on `device`; `notice` receives an explanation if one is needed.

    If the device computes in bfloat16, `auto` means bfloat16. On a CPU, however, `auto` means float32 for
    networks with fewer than 2e7 parameters.

    If the device does not compute in bfloat16, `auto` means float16 on a GPU if `half_steps` is true. Otherwise
    `auto` means float32, or bfloat16 for more than 1e9 parameters, because bfloat16 halves the memory.

    Args:
        parameters: number of parameters in the network.
        key: the params key or the command-line option in which `name` was set, for error messages.
        half_steps: whether the optimizer can take steps in float16.

    Raises:
        UserError: `name` is float16, but the device is a CPU or the optimizer can't train in float16.
    """
    kind: Literal["CPU", "GPU"] = "CPU" if device.type == "cpu" else "GPU"
    if name == "float16":
        _require_float16(device, key, half_steps=half_steps)
        notice("weights and matrix multiplications are in float16; in training, the loss is scaled")
        return torch.float16
    if name == "float32":
        return torch.float32
    if computes_in(torch.bfloat16, device):
        if name == "auto" and kind == "CPU" and parameters < _SMALL:
            notice(f"dtype auto: float32, as bfloat16 saves little time for {parameters / 1e6:.1f} million parameters")
            return torch.float32
        if name == "auto":
            notice(f"dtype auto: bfloat16, which this {kind} computes in")
        return torch.bfloat16
    return dtype_without_bfloat16(name, kind, parameters=parameters, half_steps=half_steps, notice=notice)


def dtype_without_bfloat16(
    name: Literal["auto", "bfloat16"], kind: Literal["CPU", "GPU"], *, parameters: int, half_steps: bool, notice: Notice
) -> torch.dtype:
    """`choose_dtype` on a device without bfloat16 arithmetic."""
    if name == "bfloat16":
        notice(f"weights stay in bfloat16; this {kind} has no bfloat16 arithmetic, so it multiplies in float32")
        return torch.bfloat16
    if name == "auto" and kind == "GPU" and half_steps:
        notice("dtype auto: float16, as this GPU has no bfloat16 arithmetic; in training, the loss is scaled")
        return torch.float16
    if parameters > _LARGE:
        notice(
            f"dtype auto: bfloat16 weights, to save memory for {parameters / 1e9:.1f} billion parameters; this {kind} "
            "has no bfloat16 arithmetic, so it multiplies in float32"
        )
        return torch.bfloat16
    notice(f"dtype auto: float32, as this {kind} has no bfloat16 arithmetic")
    return torch.float32


def _require_float16(device: torch.device, key: str, *, half_steps: bool) -> None:
    if device.type == "cpu":
        raise UserError(
            f"{key} is float16, which is only for GPUs, because CPUs multiply more slowly in float16 than in float32. "
            f"Set {key} to auto, float32 or bfloat16."
        )
    if not half_steps:
        raise UserError(
            f"{key} is float16, but train.optimizer adafactor rounds all weights to bfloat16. Set train.dtype to "
            "bfloat16 or float32, or choose another optimizer."
        )


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` has instructions to multiply in `dtype`; without them, multiplying is about 100 times slower.

    Raises:
        UserError: `GLM2CORE_CPU` names an unknown class of CPUs.
    """
    if dtype not in _INSTRUCTIONS or device.type not in ("cpu", "cuda"):
        return True
    if device.type == "cuda":
        return dtype == torch.float16 or _gpu_computes_in_bfloat16()
    return cpu_cap() is None and any(_capabilities().get(name) for name in _INSTRUCTIONS[dtype])


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which `device` multiplies weights of `dtype`; this is float32 if it can't compute in `dtype`."""
    return dtype if computes_in(dtype, device) else torch.float32


def cpu_class() -> str:
    """Name this CPU's class after the widest instructions for matrix multiplications; benchmarks compare classes."""
    cap, found = cpu_cap(), _capabilities()
    if found.get("neon") or found.get("architecture") in ("aarch64", "arm64"):
        return "NEON with bf16" if computes_in(torch.bfloat16, torch.device("cpu")) else "NEON"
    classes = {"AMX": "amx_bf16", "AVX512-BF16": "avx512_bf16", "AVX-512": "avx512_f", "AVX2": "avx2"}
    allowed = list(classes)[{None: 0, "avx512": 2, "avx2": 3}[cap] :]
    name = next((name for name in allowed if found.get(classes[name])), "without AVX2")
    return name if cap is None else f"{name} (capped by GLM2CORE_CPU)"


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to `device` through pinned memory, so that the caller does not wait for the device."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # itself if already pinned
    return tensor.to(device, non_blocking=device.type == "cuda")


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB; this is the tensors' memory on a GPU, and this process's memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if _STATUS.exists():
        # getrusage would count the memory that a large parent held when it started this process
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / _GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _GIB if sys.platform == "darwin" else peak * 1024 / _GIB


@cache
def _gpu_computes_in_bfloat16() -> bool:
    if not torch.cuda.is_available():  # no GPU here, so assume a current one
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def _capabilities() -> Mapping[str, Any]:
    if not hasattr(torch.cpu, "get_capabilities"):  # older torch; fp32 is correct everywhere, only slower
        return {}
    return torch.cpu.get_capabilities()
